# The workflow and its environment.
#
#   docker build -t effllm .                          CPU: the embedded study, tests
#   docker build -t effllm:cuda --target cuda .       CUDA: kernels are compiled when first used, so it holds nvcc
#   docker run --rm -v "$PWD/results:/effllm/results" effllm make table9
#   apptainer build effllm.sif docker-daemon://effllm:cuda
FROM python:3.11-slim-bookworm AS cpu
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make && rm -rf /var/lib/apt/lists/*
WORKDIR /effllm
# The environment is a layer of its own: a change of code does not install it again.
COPY Makefile pyproject.toml requirements.txt requirements-dev.txt constraints.txt ./
COPY effllm/__init__.py effllm/
RUN make setup PYTHON=python3.11 PIP_COMPILE=--compile
COPY . .
CMD ["make", "table9"]

FROM nvidia/cuda:12.8.1-devel-ubuntu22.04 AS cuda
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends software-properties-common g++ git make \
    && add-apt-repository -y ppa:deadsnakes/ppa && apt-get install -y --no-install-recommends python3.11 python3.11-venv \
    python3.11-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /effllm
COPY Makefile pyproject.toml requirements.txt requirements-dev.txt constraints.txt ./
COPY effllm/__init__.py effllm/
RUN make setup PIP_COMPILE=--compile
COPY . .
CMD ["make", "help"]

# What `docker build .` builds.
FROM cpu
