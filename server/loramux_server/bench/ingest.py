"""An SDXL adapter of rank 32 on its way in and out: publishing it against the bare work on its bytes, and loading its
compiled form against reading the file."""

import hashlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from loramux_server.bench.harness import Row, medians
from loramux_server.engine.compiled_reader import host_adapter
from loramux_store.layout import known_layout
from loramux_store.record import UploadSpec, VersionRecord
from loramux_store.seal import Seal
from loramux_store.store import Store

__all__ = ["measure"]

_CHUNK = 1 << 20
_REPEATS = 5
_QUICK_REPEATS = 25  # of what takes milliseconds


def measure(folder: Path, rank: int = 32) -> list[Row]:
    """In a folder of the disk that is measured. Everything is read from the page cache, as right after an upload."""
    source, target, numbers = folder / "sdxl.safetensors", folder / "plain", itertools.count(1)
    tensors = _tensors(rank)
    save_file(tensors, source)
    with Store.open(folder / "sdxl") as store:
        version = _published(store, source)
        compiled = store.compiled(version)
        _check(store, version, tensors)
        del tensors

        def publish() -> None:
            _alter(source, next(numbers))
            _published(store, source)

        def plain() -> None:
            _alter(source, next(numbers))
            _copied(source, target, hashlib.sha256().update)
            _copied(compiled, target, Seal().update)

        def load() -> None:
            assert len(host_adapter(store.read_compiled(version)).factors) == len(version.ranks)

        taken = medians({"publish": publish, "plain": plain}, _REPEATS)
        taken |= medians({"load": load, "read": compiled.read_bytes}, _QUICK_REPEATS)
    said = f"SDXL, rank {rank}, {len(version.ranks)} modules"
    size, made = (f"{path.stat().st_size / 1e6:.0f} MB" for path in (source, compiled))
    return [
        Row(f"publish / read, hash, write, fsync: {said}, {size}", taken["publish"] / taken["plain"], "x", "<=2.5"),
        Row(f"load / read: {said}, {made} compiled", taken["load"] / taken["read"], "x", "<=1.5"),
        Row("publish that", taken["publish"], "s"),
        Row("load that", taken["load"], "s"),
    ]


def _tensors(rank: int) -> dict[str, Tensor]:
    """Of every linear layer of the transformers."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"{path}.lora_{side}.weight": torch.randn(shape, generator=generator).half()
        for path, spec in known_layout("sdxl").modules.items()
        if ".attentions." in path and spec.kind == "linear"
        for side, shape in (("A", (rank, spec.shape[1])), ("B", (spec.shape[0], rank)))
    }


def _published(store: Store, source: Path) -> VersionRecord:
    published = store.publish(source, UploadSpec(name="bench"))
    assert published.created and published.version is not None
    return published.version


def _check(store: Store, version: VersionRecord, tensors: dict[str, Tensor]) -> None:
    """What is loaded is what was uploaded."""
    for path, module in host_adapter(store.read_compiled(version)).factors.items():
        assert torch.equal(module.parts["a"], tensors[f"{path}.lora_A.weight"].float())
        assert torch.equal(module.parts["b"], tensors[f"{path}.lora_B.weight"].float().T)


def _alter(file: Path, number: int) -> None:
    """Another last value, so that it is another file: of the same bytes only a row would be written."""
    with file.open("r+b") as handle:
        handle.seek(-2, os.SEEK_END)
        handle.write(number.to_bytes(2, "little"))


def _copied(source: Path, target: Path, update: Callable[[bytes], object]) -> None:
    """Read, hashed, written to a new file and fsynced."""
    target.unlink(missing_ok=True)
    with source.open("rb") as reads, target.open("xb", buffering=0) as writes:
        while chunk := reads.read(_CHUNK):
            update(chunk)
            writes.write(chunk)
        os.fsync(writes.fileno())
