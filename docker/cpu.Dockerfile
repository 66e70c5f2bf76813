# dengine on CPUs. From the repository's root: docker build -f docker/cpu.Dockerfile -t dengine .
FROM python:3.11-slim

# The address of PyTorch's index of CPU builds (its installation page has it) makes the image some gigabytes smaller.
ARG TORCH_INDEX=""
COPY . /src
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c /src/constraints.txt /src \
    && rm -rf /src

# What dengine compiles and converts: mount a volume here to keep it between containers.
ENV XDG_CACHE_HOME=/cache
WORKDIR /data
ENTRYPOINT ["dengine"]
