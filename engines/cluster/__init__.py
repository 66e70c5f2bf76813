"""A run on many machines: chunks as committed objects, those who paint them, and the dataset that comes of them."""
