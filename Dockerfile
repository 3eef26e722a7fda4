# A LoRAMux server. The wheel is built, then installed; the tree itself is not in the image.
#
#   docker build -t loramux .                                    the pinned torch
#   docker build -t loramux --build-arg TORCH=2.12.0 .           another release of torch
#   docker build -t loramux --build-arg INDEX=URL .              a build of torch from another index
#   docker run -p 50051:50051 -p 9090:9090 -v loramux-store:/store -v /etc/loramux:/etc/loramux:ro \
#     -e LORAMUX_TLS_CERT=/etc/loramux/cert.pem -e LORAMUX_TLS_KEY=/etc/loramux/key.pem \
#     -e LORAMUX_TOKENS=/etc/loramux/tokens.toml loramux
#
# Without certificate and tokens it does not start, for it listens to all the network that it is given; behind
# something that sees to both, -e LORAMUX_INSECURE=1. docs/security.md has more.

FROM python:3.12-slim-bookworm AS wheel
WORKDIR /src
COPY . .
RUN python -m pip install --no-cache-dir --constraint constraints.txt hatchling \
    && python -m hatchling build --target wheel --directory /wheel

FROM python:3.12-slim-bookworm AS installed
ARG TORCH=
ARG INDEX=
COPY constraints.txt /tmp/pins.txt
COPY --from=wheel /wheel /wheel
SHELL ["/bin/bash", "-eu", "-o", "pipefail", "-c"]
# torch comes first and alone, so that no other package chooses its build. A release other than the
# pinned one brings its own triton: then both pins give way.
RUN python -m venv /opt/loramux \
    && pinned="$(sed -n 's/^torch==//p' /tmp/pins.txt)" \
    && torch="${TORCH:-$pinned}" \
    && if [ "$torch" = "$pinned" ]; then cp /tmp/pins.txt /tmp/constraints.txt; \
       else sed '/^torch==/d; /^triton==/d' /tmp/pins.txt > /tmp/constraints.txt; \
            echo "torch==$torch" >> /tmp/constraints.txt; fi \
    && pip() { /opt/loramux/bin/python -m pip install --no-cache-dir --constraint /tmp/constraints.txt "$@"; } \
    && pip pip \
    && pip ${INDEX:+--extra-index-url "$INDEX"} "torch==$torch" \
    && for wheel in /wheel/*.whl; do pip "${wheel}[server,otel]"; done

FROM python:3.12-slim-bookworm
LABEL org.opencontainers.image.title="LoRAMux" \
      org.opencontainers.image.description="Stable Diffusion server in which every request brings its own blend of LoRA adapters" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --create-home loramux \
    && install --directory --owner loramux --group loramux /store
COPY --from=installed /opt/loramux /opt/loramux
ENV PATH=/opt/loramux/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    LORAMUX_HOST=0.0.0.0 \
    LORAMUX_STORE=/store \
    LORAMUX_LOG_LEVEL=info
USER 10001:10001
WORKDIR /store
VOLUME /store
EXPOSE 50051 9090
HEALTHCHECK --interval=15s --timeout=5s --start-period=180s --retries=3 CMD ["loramux", "healthcheck", "--http", "127.0.0.1:9090"]
ENTRYPOINT ["loramux"]
CMD ["serve"]
