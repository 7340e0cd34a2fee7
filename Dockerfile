# Images of stepstack, for a CPU and for NVIDIA GPUs. docs/clusters.md says how they are used and what of them was built.
#
#   docker build --target cpu -t stepstack:cpu .
#   docker build --target cuda -t stepstack:cuda .
#   docker run --rm -v $PWD/runs:/stepstack/runs stepstack:cpu launch orz-tiny
ARG CPU_BASE=debian:bookworm-20250520-slim
# torch 2.13 of PyPI is built for CUDA 13.0; flash-attn is compiled by the nvcc of this image.
ARG CUDA_BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04

FROM ${CPU_BASE} AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1
WORKDIR /stepstack
COPY . .
RUN python3 scripts/setup_venv.py --torch-index "${TORCH_INDEX}"
ENV PATH=/stepstack/.venv/bin:$PATH
ENTRYPOINT ["stepstack"]
CMD ["--help"]

FROM ${CUDA_BASE} AS cuda
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1
WORKDIR /stepstack
COPY . .
RUN python3 scripts/setup_venv.py --extras vllm,gpu
RUN .venv/bin/pip install -c constraints.txt setuptools packaging wheel==0.48.0 ninja==1.13.2 einops==0.8.2 \
    && .venv/bin/pip install -c constraints.txt --no-build-isolation --no-deps flash-attn==2.8.3.post2
ENV PATH=/stepstack/.venv/bin:$PATH
ENTRYPOINT ["stepstack"]
CMD ["--help"]
