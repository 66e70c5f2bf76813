"""`dengine evaluate`: what generated images are worth to a detector."""
