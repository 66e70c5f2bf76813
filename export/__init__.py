"""PyTorch modules to files that run without PyTorch: export, parity gates, bundles."""
