"""A run in one HTML file that can be sent to anyone."""
