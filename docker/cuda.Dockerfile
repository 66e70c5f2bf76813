# dengine on NVIDIA GPUs. From the repository's root: docker build -f docker/cuda.Dockerfile -t dengine-cuda .
# PyTorch's build for Linux brings CUDA's libraries along; the machine needs a driver and NVIDIA's container toolkit.
FROM python:3.11-slim

# A compiler, for generate --compile.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

# More of pyproject.toml's extras, such as [tensorrt-cu13].
ARG EXTRAS=""
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt "/src${EXTRAS}" && rm -rf /src

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility XDG_CACHE_HOME=/cache
WORKDIR /data
ENTRYPOINT ["dengine"]
