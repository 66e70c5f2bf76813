"""What the user types: one file a verb."""
