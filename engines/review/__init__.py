"""Looking at a run or a dataset, and deciding: the page, its server, and what it keeps."""
