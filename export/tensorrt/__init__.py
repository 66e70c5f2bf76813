"""Graphs to TensorRT plans: profiles, the build with its progress, and the checks after it."""
