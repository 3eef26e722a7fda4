"""What memory goes into, as bytes by kind.

Takes an engine; gives numbers, from any thread. It keeps none of them.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from loramux_server.engine.engine import Engine

_STATM = Path("/proc/self/statm")


def of_process(engine: Engine) -> Callable[[], Mapping[str, int]]:
    """Asks for process (where the system tells), base, pools, adapters (in host memory), texts."""
    base = sum(
        tensor.nbytes for model in engine.base.models.values() for tensor in (*model.parameters(), *model.buffers())
    )

    def asked() -> Mapping[str, int]:
        pools = (layer.pool for group in engine.groups.values() for layer in group.layers.values())
        return {
            **_resident(),
            "base": base,
            "pools": sum(pool.a.nbytes + pool.b.nbytes for pool in pools if pool is not None),
            "adapters": engine.adapters.host.nbytes,
            "texts": engine.conditioner.nbytes + engine.texts.nbytes,
        }

    return asked


def of_gpu(device: torch.device) -> Callable[[], Mapping[str, int]]:
    """Asks for allocated, reserved, free and total; for nothing on the CPU."""

    def asked() -> Mapping[str, int]:
        if device.type != "cuda":
            return {}
        free, total = torch.cuda.mem_get_info(device)
        return {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "free": free,
            "total": total,
        }

    return asked


def _resident() -> Mapping[str, int]:
    if not _STATM.exists():
        return {}
    return {"process": int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")}
