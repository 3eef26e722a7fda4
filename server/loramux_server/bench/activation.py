"""What the host does for a blend whose adapters are resident: among few and among many, and when a weight changes.

Takes nothing; gives rows. The UNet's arithmetic is left out: what is timed is everything else from the request to the
end of the first tick, the gathering of rank rows included.
"""

import itertools
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from loramux_server.app import App
from loramux_server.bench.harness import Row, medians, processor, ratio
from loramux_server.bench.operations import operations
from loramux_server.engine.blends import EVERYWHERE, Added
from loramux_server.engine.compiled_reader import HostAdapter
from loramux_server.requests import GenerationRequest, ImageKey, Job, Weighted
from loramux_server.settings import Settings
from loramux_store.record import UploadSpec, VersionRecord

FEW, MANY = 10, 1000
_REPEATS = 101  # of some hundred microseconds each
_CHANGED = 50  # changes of a weight that are timed together
_ROWS, _RANK = 2, 32
_LAYERS = tuple(f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_{part}" for part in "qk")


def measure() -> list[Row]:
    """First ticks among few and many residents, and rewritten tables."""
    with tempfile.TemporaryDirectory() as folder:
        few, many = _Residents(Path(folder) / "few", FEW), _Residents(Path(folder) / "many", MANY)
        try:
            first = ratio(many.first_tick, few.first_tick, _REPEATS, processor)
            few.change_weights()  # makes the tables
            launched = operations(few.change_weights).total()
            change = medians({"": few.change_weights}, _REPEATS, processor)[""] / _CHANGED
        finally:
            few.close()
            many.close()
    what = f"another weight in the {_ROWS} rows of a picture, {_RANK} rank rows in every layer group"
    return [
        Row(
            f"first tick of a blend of resident adapters, processor time, {MANY} / {FEW} residents", first, "x", "<=1.1"
        ),
        Row(f"{what}, processor time", change * 1e3, "ms", "<=0.2"),
        Row(f"{what}, operations and allocations", launched, "operations", "<=0"),
    ]


class _Residents:
    """A server's engine with that many adapters of rank 1 resident, and a UNet that only gathers their rows."""

    def __init__(self, store: Path, count: int) -> None:
        self._app = app = App(Settings(store=store, device="cpu"))
        file = store / "one.safetensors"
        _write(file, app)
        published = app.store.publish(file, UploadSpec(name="one"))
        assert published.version is not None
        host = app.engine.adapters.host
        host.read = partial(_one, host.read(published.version))
        self._versions = [replace(published.version, digest=f"{number:064x}") for number in range(count)]
        for version in self._versions:
            app.engine.adapters.release(app.engine.adapters.request([version]).result())
        assert app.metrics.registry.get_sample_value("loramux_adapters_resident", {"tier": "device"}) == count
        self._picked, self._weights = random.Random(0), itertools.cycle((0.3, 0.6, 0.9))
        self._job = app.admission.admit(GenerationRequest("a red apple", steps=4, seed=1))
        self._numbers = itertools.count()
        self._gathered = 0
        unet: Any = app.engine.base.unet
        unet.forward = self._gather

    def first_tick(self) -> None:
        """Request, lease, beginning and first tick of a job with two of the adapters, then its end."""
        engine = self._app.engine
        job = self._blended(self._picked.sample(self._versions, 2))
        asked = engine.load(job)
        assert asked.done(), "the adapters are not resident"
        engine.begin(job, asked.result())
        (result,) = engine.step([ImageKey(job.id, 0)])
        assert result.error is None and self._gathered > 0
        engine.drop([result.key])
        engine.adapters.release(asked.result())

    def change_weights(self) -> None:
        """Writes the tables of a guided picture again and again, another weight each time."""
        groups = [group for name, group in self._app.engine.groups.items() if name.startswith("unet.")]
        for weight in itertools.islice(self._weights, _CHANGED):
            entries = {EVERYWHERE: Added(tuple((row, weight) for row in range(1, _RANK + 1)))}
            for group in groups:
                with group.adding([entries] * _ROWS) as tables:
                    assert len(tables) == 1

    def close(self) -> None:
        """Ends its threads."""
        self._app.engine.close()
        self._app.store.close()

    def _blended(self, versions: Sequence[VersionRecord]) -> Job:
        weight = next(self._weights)
        blend = tuple(Weighted(version, weight) for version in versions)
        return replace(self._job, id=str(next(self._numbers)), blend=blend)

    def _gather(self, latents: Tensor, *_: object, **__: object) -> tuple[Tensor]:
        """In the UNet's place: the factors of all layers that add rank rows, and no noise."""
        self._gathered = 0
        for group in self._app.engine.groups.values():
            for layer in group.layers.values():
                tables = group.tables_of(layer.block)
                if tables is not None and layer.pool is not None:
                    layer.pool.gathered(tables.composition)
                    self._gathered += 1
        return (torch.zeros_like(latents),)


def _one(adapter: HostAdapter, _: VersionRecord) -> HostAdapter:
    """The same for every version."""
    return adapter


def _write(file: Path, app: App) -> None:
    """An adapter of rank 1 that touches two layers."""
    layers = app.engine.groups["unet.attention"].layers
    shapes = {path: tuple(layers[path].weight.shape) for path in _LAYERS}
    factors = {f"{path}.lora_A.weight": torch.randn(1, k) for path, (_, k) in shapes.items()}
    save_file(factors | {f"{path}.lora_B.weight": torch.randn(n, 1) for path, (n, _) in shapes.items()}, file)
