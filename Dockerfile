# A LoRAMux server, for the CPU or for NVIDIA GPUs. The wheel is built, then installed; the tree itself is in no image.
#
#   docker build --target cpu --tag loramux:0.1.0-cpu --build-arg INDEX=URL .     URL: PyTorch's index of CPU builds
#   docker build --target cuda --tag loramux:0.1.0-cuda .
#     --build-arg INDEX=URL          PyTorch's index for another release of CUDA than the pinned torch is built for
#     --build-arg TORCH=2.12.0       another release of torch
#     --build-arg BASE=IMAGE         another base, such as the same one by its digest
#   docker run -p 50051:50051 -p 9090:9090 -v loramux-store:/store -v /etc/loramux:/etc/loramux:ro \
#     -e LORAMUX_TLS_CERT=/etc/loramux/cert.pem -e LORAMUX_TLS_KEY=/etc/loramux/key.pem \
#     -e LORAMUX_TOKENS=/etc/loramux/tokens.toml --read-only --tmpfs /tmp loramux:0.1.0-cpu
#   docker run --gpus all ... loramux:0.1.0-cuda
#
# Without certificate and tokens it does not start, for it listens to all the network that it is given; behind
# something that sees to both, -e LORAMUX_INSECURE=1. docs/operations.md has more.

# By its whole version, not by its digest: none could be checked where this was written. Whoever releases images gives
# BASE with the digest that they have looked at.
ARG BASE=python:3.12.12-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /src
COPY . .
RUN python -m pip install --no-cache-dir --constraint constraints.txt hatchling \
    && python -m hatchling build --target wheel --directory /wheel

FROM ${BASE} AS prepared
WORKDIR /build
COPY constraints.txt pyproject.toml deploy/image/install.sh deploy/image/sbom.sh ./
COPY --from=wheel /wheel /wheel

FROM prepared AS installed-cpu
ARG TORCH=
ARG INDEX=
RUN --mount=type=cache,target=/root/.cache/pip \
    ./install.sh /opt/loramux /wheel/*.whl server "$TORCH" "${INDEX:?expected --build-arg INDEX=URL, the index of builds of torch for the CPU}"

FROM prepared AS installed-cuda
ARG TORCH=
ARG INDEX=
RUN --mount=type=cache,target=/root/.cache/pip ./install.sh /opt/loramux /wheel/*.whl cuda "$TORCH" "$INDEX"

# What both images have. /store and /cache are all that a server writes to, beside /tmp.
FROM ${BASE} AS server
ARG BASE
LABEL org.opencontainers.image.title="LoRAMux" \
      org.opencontainers.image.description="Stable Diffusion server in which every request brings its own blend of LoRA adapters" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.base.name="${BASE}" \
      loramux.sbom="/opt/loramux/sbom.cdx.json"
RUN groupadd --gid 10001 loramux \
    && useradd --no-log-init --uid 10001 --gid 10001 --create-home loramux \
    && install --directory --owner loramux --group loramux /store /cache
ENV PATH=/opt/loramux/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GRPC_ENABLE_FORK_SUPPORT=0 \
    HF_HUB_OFFLINE=1 \
    TRITON_CACHE_DIR=/cache/triton \
    CUDA_CACHE_PATH=/cache/cuda \
    LORAMUX_HOST=0.0.0.0 \
    LORAMUX_STORE=/store \
    LORAMUX_LOG_LEVEL=info
WORKDIR /store
VOLUME ["/store", "/cache"]
EXPOSE 50051 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=180s --retries=3 CMD ["loramux", "healthcheck", "--http", "127.0.0.1:9090"]
ENTRYPOINT ["loramux"]
CMD ["serve"]

# CUDA's libraries come with torch, the driver with NVIDIA's container runtime. Triton compiles its kernels by itself, but
# what loads them is a C file that it compiles at its first use, against Python's headers, which the base has.
FROM server AS cuda
RUN apt-get update \
    && apt-get install --yes --no-install-recommends "gcc=4:12.2.*" "libc6-dev=2.36-*" \
    && rm -rf /var/lib/apt/lists/*
COPY --from=installed-cuda /opt/loramux /opt/loramux
# Which GPUs it sees is said where it is run: a pod that asks for none would get all if they were asked for here.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001

FROM server AS cpu
COPY --from=installed-cpu /opt/loramux /opt/loramux
USER 10001:10001
