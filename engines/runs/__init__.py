"""A run: its folder, its journal, the loop that fills it, and the dataset files made from it."""
