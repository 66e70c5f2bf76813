"""`dengine push`: a finished dataset into a bucket, onto the Hugging Face hub, or into another folder."""
