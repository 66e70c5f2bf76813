"""The checks that need a GPU, and their report: `dengine doctor` has an option for them."""
