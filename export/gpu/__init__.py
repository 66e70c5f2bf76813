"""`dengine doctor --gpu`: the checks that need a GPU, and their report."""
