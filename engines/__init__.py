"""What runs: the PyTorch path, the exported graphs, and everything between a dataset and a generated one."""
