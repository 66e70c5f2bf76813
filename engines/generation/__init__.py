"""Jobs, the loop that paints and labels them, the journal, and the dataset files."""
