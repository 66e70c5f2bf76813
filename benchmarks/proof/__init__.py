"""The proof on real data of what generated images are worth: see README.md here."""
