"""A bundle held open: images painted, and pictures labelled, one after the other in memory. Nothing is written."""
