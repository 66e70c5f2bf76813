"""Whether pictures are good enough to learn from, in figures and in words."""
