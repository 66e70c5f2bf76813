"""TensorRT on NVIDIA GPUs: the backend, its plans and where they are kept, and the GPU that they are for."""
