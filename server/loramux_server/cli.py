"""`loramux serve`: settings from options and the environment, then one line when it serves.

Takes options; gives a running server. It imports torch last, so that bad options are told at once.
"""

import asyncio
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from pydantic import ValidationError

from loramux_server.settings import Settings

if TYPE_CHECKING:
    from loramux_server.app import Ready


def serve(
    *,
    base: str | None = None,
    store: Path | None = None,
    quota_bytes: int | None = None,
    upload_idle_seconds: float | None = None,
    host: str | None = None,
    port: int | None = None,
    metrics_port: int | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    kernels: Literal["auto", "reference", "triton"] | None = None,
    threads: int | None = None,
    deterministic: Annotated[bool | None, Parameter(negative="")] = None,
    deterministic_rank: Literal[16, 32, 64, 128, 256, 512] | None = None,
    max_rows: int | None = None,
    max_queue: int | None = None,
    max_side: int | None = None,
    pool_bytes: int | None = None,
    side_bytes: int | None = None,
    prompt_cache_bytes: int | None = None,
    cross_attention_cache_bytes: int | None = None,
    drain_seconds: float | None = None,
    verbose: Annotated[bool, Parameter(alias="-v")] = False,
) -> int:
    """Serve pictures over gRPC until stopped.

    Every option but --verbose is also an environment variable: LORAMUX_ and its name in capitals.

    Parameters
    ----------
    base:
        Base model, Stable Diffusion 1.x, 2.x or SDXL: 'builtin', a folder in diffusers layout, a .safetensors
        checkpoint, or a hub id (owner/name) that is in Hugging Face's cache on this machine; nothing is downloaded.
        Default: builtin.
    store:
        Folder of the adapter store. Default: in the user's data folder.
    quota_bytes:
        Most bytes of adapter files that the store takes. Default: what the disk holds.
    upload_idle_seconds:
        An unfinished upload that nobody goes on with is thrown away after these. Default: 86400, a day.
    host:
        Address to listen on. Default: 127.0.0.1.
    port:
        gRPC port; 0 picks a free one. Default: 50051.
    metrics_port:
        HTTP port of /metrics, /livez and /readyz; 0 picks a free one. Default: 9090.
    device:
        Where the base lives. Default: auto, a GPU if there is one.
    kernels:
        Adapter arithmetic. Default: auto, Triton kernels on a GPU and plain torch (reference) on the CPU.
    threads:
        CPU threads of tensor work.
    deterministic:
        Pictures do not depend on their company, not even in their last bits; `docs/isolation.md` has the cost.
    deterministic_rank:
        Largest total rank of a blend with --deterministic; every blend costs as much. Default: 128.
    max_rows:
        Most rows of one UNet forward; a guided picture takes two. Default: what fits a GPU's memory, measured at
        the start; 32 on the CPU.
    max_queue:
        Most pictures waiting or running. Default: 256.
    max_side:
        Largest width and height in pixels. Default: 1024.
    pool_bytes:
        Bytes of device memory for rank rows. Default: 2 GiB.
    side_bytes:
        Most bytes of device memory for adapters without cheap rank rows, such as LoKr and full differences; none is
        taken before one is used. Default: 2 GiB.
    prompt_cache_bytes:
        Bytes of device memory for embeddings of prompts; 0 keeps none. Default: 64 MiB.
    cross_attention_cache_bytes:
        Bytes of device memory for cross-attention keys and values of pictures in flight; 0 keeps none.
        Default: 256 MiB.
    drain_seconds:
        Seconds that running requests get at stop. Default: 30.
    verbose:
        Log every RPC.
    """
    given = {name: value for name, value in locals().items() if value is not None and name != "verbose"}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        for problem in error.errors():
            print(f"--{'-'.join(map(str, problem['loc'])).replace('_', '-')}: {problem['msg']}", file=sys.stderr)
        return 2
    return _run(settings, logging.INFO if verbose else logging.WARNING)


def _run(settings: Settings, level: int) -> int:
    from loramux_server import memory

    if settings.device != "cuda":
        memory.keep_freed()
    from loramux_server import app, logs
    from loramux_server.errors import LoraMuxError
    from loramux_store.errors import StoreError

    logs.configure(level)
    try:
        asyncio.run(app.serve(app.App(settings), _announce))
    except (LoraMuxError, StoreError, OSError, RuntimeError) as error:
        print(f"loramux: {error}", file=sys.stderr)
        return 1
    return 0


def _announce(ready: "Ready") -> None:
    print(
        f"loramux ready grpc={ready.host}:{ready.grpc_port} http={ready.host}:{ready.http_port} base={ready.base}",
        flush=True,
    )
