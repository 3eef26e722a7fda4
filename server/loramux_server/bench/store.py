"""Publishing a file (checks, conversion, three fsyncs, a catalog row) against hashing its bytes once."""

import hashlib
import itertools
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from loramux_server.bench.harness import Row, ratio
from loramux_store.record import UploadSpec
from loramux_store.store import Store

_RANK = 64


def measure() -> list[Row]:
    """One file that fits Stable Diffusion 1.5's cross-attention."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        numbers = itertools.count()
        file = folder / "adapter.safetensors"
        with Store.open(folder / "store") as store:

            def publish() -> None:
                number = next(numbers)
                _write(file, number)
                published = store.publish(file, UploadSpec(name="bench"))
                assert published.created and published.version is not None and published.version.rank == _RANK

            def digest() -> str:
                _write(file, next(numbers))
                return hashlib.sha256(file.read_bytes()).hexdigest()

            value = ratio(publish, digest)
            return [Row(f"publish / write and hash, {file.stat().st_size / 1e6:.1f} MB", value, "x")]


def _write(file: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"unet.down_blocks.0.attentions.{i}.transformer_blocks.0.attn2.to_{part}.lora_{side}.weight": torch.randn(
            shape, generator=generator
        )
        for i in (0, 1)
        for part in "kv"
        for side, shape in (("A", (_RANK, 768)), ("B", (320, _RANK)))
    }
    save_file(tensors, file)
