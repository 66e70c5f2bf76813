"""OpenVINO on CPUs: the backend, and what makes its graphs cheaper (halves, int8, pairs, upsampling)."""
