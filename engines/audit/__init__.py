"""`dengine audit`: what a dataset's own labels miss or have wrong."""
