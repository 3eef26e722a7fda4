"""Steps pictures: one UNet forward over the rows of many, each row with its own blend, prompt and timestep.

Takes jobs whose adapters are loaded and the keys of the pictures to step; gives results. It owns the device
and knows no queue, no protobuf and no client. `begin`, `step` and `drop` are called from one thread.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from loramux_kernels import MAX_ROW_RANK, Entries, Impl, Tables
from loramux_server import parameters
from loramux_server.engine import image_latents, pictures
from loramux_server.engine.adapter_cache import AdapterCache
from loramux_server.engine.blends import EVERYWHERE, NOTHING, PlacedBlend, RowEntries
from loramux_server.engine.bytes_lru import BytesLru
from loramux_server.engine.captured import Arguments, CapturedForwards, on_card
from loramux_server.engine.conditioning import Conditioner, Given, unet_arguments
from loramux_server.engine.device_memory import RAN_OUT, fitting
from loramux_server.engine.device_tier import VECTOR_BYTES, Lease
from loramux_server.engine.fused_attention import fuse_projections
from loramux_server.engine.host_tier import HostTier
from loramux_server.engine.image_latents import ImageLatents
from loramux_server.engine.layer_group import LayerGroup
from loramux_server.engine.lora_layers import wrap
from loramux_server.engine.pipeline import Base
from loramux_server.engine.previews import Previews
from loramux_server.engine.sampling import ImageSampler, guide
from loramux_server.engine.text_projections import Projected, TextProjections
from loramux_server.errors import BadSetting, OutOfMemory, PictureFailed
from loramux_server.metrics import Metrics
from loramux_server.requests import ImageFormat, ImageKey, Job, Sampling, Source, Weighted
from loramux_store.layout import Layout

Observer = Callable[[Mapping[str, Tables]], None]
"""Sees the tables of every UNet forward by layer group (groups without any entry are absent)."""

_MOST_POOL_ROWS = 8192
_FEWEST_POOL_ROWS = 17  # the zero row and one adapter of rank 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """One picture after a tick: its position, its final latents when finished, or what went wrong.

    foreseen: final latents as foreseen, where a preview is due.
    """

    key: ImageKey
    step: int
    total: int
    latents: Tensor | None = None
    foreseen: Tensor | None = None
    error: PictureFailed | None = None


@dataclass(frozen=True, slots=True)
class _Image:
    """A picture between ticks. given: to each of its rows, blends: theirs; unconditional first where guided.

    projected: keys and values of the rows' texts, where they are kept; settled: entries of the rows where their blends
    do not change with progress.
    """

    sampler: ImageSampler
    given: tuple[Given, ...]
    projected: tuple[Projected | None, ...]
    sampling: Sampling
    blends: tuple[PlacedBlend, ...]
    preview_every: int
    settled: "tuple[Mapping[str, RowEntries], ...] | None"

    def rows(self, groups: Sequence[str]) -> "list[_Row]":
        """Rows of its next step."""
        settled = self.settled or tuple(blend.at(self.sampler.progress, groups) for blend in self.blends)
        latents, timestep = self.sampler.model_input(), self.sampler.timestep.expand(1)
        parts = zip(self.given, self.projected, settled, strict=True)
        return [_Row(latents, timestep, *each) for each in parts]


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of a forward. latents [1, C, h, w]; timestep [1]; given: to this row; projected: keys and values of its
    text, where they are kept; entries: by layer group."""

    latents: Tensor
    timestep: Tensor
    given: Given
    projected: Projected | None
    entries: Mapping[str, RowEntries]


@dataclass(frozen=True, slots=True)
class Fixed:
    """The shape of every forward where pictures must not depend on their company in their last bits: rows of the
    batch, filled up where there are fewer, and the R class."""

    rows: int
    rank: int


class Engine:
    """The base with its rank rows, and the pictures in the making."""

    def __init__(
        self,
        base: Base,
        host: HostTier,
        metrics: Metrics,
        *,
        version: str,
        pool_bytes: int,
        side_bytes: int,
        prompt_cache_bytes: int,
        cross_attention_cache_bytes: int,
        impl: Impl = "reference",
        fixed: Fixed | None = None,
        observer: Observer | None = None,
        graphs: int = 0,
    ) -> None:
        self.base = base
        self._dtype = base.unet.dtype  # diffusers looks through all parameters to tell it
        self._metrics = metrics
        self._version = version
        self._text_bytes = prompt_cache_bytes + cross_attention_cache_bytes
        self._observer = observer
        self._fixed = fixed
        self._images: dict[ImageKey, _Image] = {}
        self.groups = wrap(base.models, impl, side_bytes)
        if impl == "triton":
            fuse_projections(base.unet)
        self.layout = Layout(
            base.name, {path: layer.spec for g in self.groups.values() for path, layer in g.layers.items()}
        )
        size = _pool_rows(pool_bytes, self.groups.values())
        for group in self.groups.values():
            group.open(size, base.device, fixed and fixed.rank)
        self._unet_groups = tuple(name for name in self.groups if name.startswith("unet."))
        self.blocks = {layer.block for group in self.groups.values() for layer in group.layers.values()} - {EVERYWHERE}
        self.max_rank = fixed.rank if fixed else MAX_ROW_RANK
        self.adapters = AdapterCache(self.groups, host, metrics, self.max_rank, base.device)
        self._previews = Previews(base.vae)
        self._forwards = CapturedForwards(self._unet, on_card(base.device), graphs, metrics)
        self.conditioner = Conditioner(base, self.groups, BytesLru("prompt", prompt_cache_bytes, metrics))
        self.texts = TextProjections(
            base.unet, self.groups["unet.attention"], cross_attention_cache_bytes, metrics, fixed and fixed.rows
        )

    @property
    def later_bytes(self) -> int:
        """Device memory that is taken when it is first needed, and kept: rank rows, what is kept of texts, vectors."""
        pools = sum(group.row_bytes * group.rows.size for group in self.groups.values())
        return pools + self._text_bytes + VECTOR_BYTES

    def load(self, job: Job) -> "Future[Lease]":
        """Brings the job's adapters onto the device; never blocks."""
        return self.adapters.request([weighted.version for weighted in (*job.blend, *(job.negative_blend or ()))])

    def encode(self, job: Job, source: Source) -> ImageLatents:
        """What the job's pictures start from; safe beside ticks."""
        with fitting("image"):
            return image_latents.encode(self.base.vae, job, source, inpainting=self.base.inpainting)

    @torch.inference_mode()
    def begin(self, job: Job, lease: Lease, start: ImageLatents | None = None) -> None:
        """Encodes the job's prompts and makes the first latents of its pictures; start: where it has a source."""
        blends = _blends(job, lease)
        with fitting("prompt"):
            given = self.conditioner.given(job, blends)
            by_row, projected = tuple(given.by_row()), self.texts.of(given.text, blends)
        settled = None
        if not any(blend.scheduled for blend in blends):
            settled = tuple(blend.at(0.0, self._unet_groups) for blend in blends)
        scale = self.base.latent_scale
        shape = (1, self.base.latent_channels, job.height // scale, job.width // scale)
        for index in range(job.num_images):
            sampler = ImageSampler(
                job.sampling, self.base.scheduler_config, job.seed + index, shape, self.base.device, start
            )
            self._images[ImageKey(job.id, index)] = _Image(
                sampler, by_row, projected, job.sampling, blends, job.output.preview_every, settled
            )

    def step(self, keys: Sequence[ImageKey]) -> list[StepResult]:
        """One UNet forward over all rows of these pictures, which are of one size.

        A forward that fails, for want of memory or for whatever other reason, is made again in halves until single
        pictures are left; only a picture whose own forward fails is failed.
        """
        return [result for alike in self._alike(keys) for result in self._step_or_halve(alike)]

    @torch.inference_mode()
    def _step_or_halve(self, keys: Sequence[ImageKey]) -> list[StepResult]:
        started = time.monotonic()
        try:
            predictions = self._predict(keys)
            finite = _finite(predictions)
        except Exception as error:
            if isinstance(error, RAN_OUT):
                self._metrics.out_of_memory.labels("forward").inc()
                if self._forwards.clear():
                    return self._step_or_halve(keys)
            if len(keys) == 1:
                return [self._failed_with(keys[0], error, "forward")]
        else:
            # not within the try: a picture that has moved on must not step again
            results = [self._advance(*each) for each in zip(keys, predictions, finite, strict=True)]
            self._metrics.step_seconds.observe(time.monotonic() - started)
            return results
        half = len(keys) // 2
        return [*self._step_or_halve(keys[:half]), *self._step_or_halve(keys[half:])]

    def _predict(self, keys: Sequence[ImageKey]) -> Sequence[Tensor]:
        """The forward's predictions [rows, C, h, w] of each picture; changes nothing."""
        images = [self._images[key] for key in keys]
        rows = [row for image in images for row in image.rows(self._unet_groups)]
        return self._forward(rows).split([len(image.given) for image in images])

    def drop(self, keys: Sequence[ImageKey]) -> None:
        """Forgets pictures that failed or were cancelled."""
        for key in keys:
            self._images.pop(key, None)

    def deliver(self, job: Job, index: int, latents: Tensor) -> bytes:
        """The file of finished latents; safe beside ticks."""
        base = self.base
        text = parameters.text_of(job, index, base.name, base.digest, self._version) if job.output.parameters else ""
        if job.output.format == ImageFormat.LATENTS:
            return pictures.raw(latents, text)
        with fitting(f"picture {index}"):
            return pictures.encode(pictures.decode(base.vae, latents), job.output, text)

    def preview(self, latents: Tensor) -> bytes:
        """A small JPEG of latents as foreseen; safe beside ticks."""
        return self._previews.jpeg(latents)

    def close(self) -> None:
        """Ends the threads that load adapters."""
        self.adapters.close()

    def _forward(self, asked: Sequence[_Row]) -> Tensor:
        """Noise (or velocity) [rows, C, h, w] in fp32; a batch of fixed size is filled up with its first row."""
        filling = replace(asked[0], entries=_nothing(self._unet_groups))
        rows = [*asked, *[filling] * self._missing(len(asked))]
        used: dict[str, Tables] = {}
        with ExitStack() as stack:
            for name in self._unet_groups:
                tables = stack.enter_context(self.groups[name].adding([row.entries[name] for row in rows]))
                used |= {f"{name} {block}".rstrip(): each for block, each in tables.items()}
            sides = [_sides(row) for row in asked]
            self._observe(used, sides)
            adapters = bool(used) or any(sides)
            stack.enter_context(self.texts.given([row.projected for row in rows], adapters=adapters))
            latents, timesteps = torch.cat([row.latents for row in rows]), torch.cat([row.timestep for row in rows])
            arguments = {
                "sample": latents.to(self._dtype),
                "timestep": timesteps,
                **unet_arguments([row.given for row in rows], self._dtype),
            }
            return self._forwards(arguments, self._state)[: len(asked)].float()

    def _unet(self, arguments: Arguments) -> Tensor:
        given = dict(arguments)
        return self.base.unet(given.pop("sample"), given.pop("timestep"), **given, return_dict=False)[0]

    def _state(self) -> Hashable:
        """What a captured forward depends on beside its arguments; None where it cannot be captured."""
        states = tuple(self.groups[name].state for name in self._unet_groups)
        return None if None in states else states

    def _missing(self, rows: int) -> int:
        return max(0, self._fixed.rows - rows) if self._fixed else 0

    def _alike(self, keys: Sequence[ImageKey]) -> list[list[ImageKey]]:
        """The pictures that share a forward: all of them, or where last bits matter those of equally long prompts."""
        if self._fixed is None:
            return [list(keys)]
        lengths: dict[int, list[ImageKey]] = {}
        for key in keys:
            lengths.setdefault(self._images[key].given[0].text.shape[1], []).append(key)
        return list(lengths.values())

    def _observe(self, used: Mapping[str, Tables], sides: Sequence["_Sides"]) -> None:
        self._metrics.batch_rows.observe(len(sides))
        self._metrics.observe_blends(distinct_blends(used, len(sides), sides))
        if self._observer is not None:
            self._observer(used)

    def _advance(self, key: ImageKey, prediction: Tensor, finite: bool) -> StepResult:
        """Moves one picture on; what goes wrong here is that picture's alone."""
        try:
            return self._moved(key, prediction, finite)
        except Exception as error:
            return self._failed_with(key, error, "sampler")

    def _moved(self, key: ImageKey, prediction: Tensor, finite: bool) -> StepResult:
        image = self._images[key]
        sampler = image.sampler
        if not finite:
            return self._failed(key, f"became non-finite at step {sampler.position + 1}")
        guided = guide(prediction, image.sampling)
        due = image.preview_every and (sampler.position + 1) % image.preview_every == 0
        foreseen = sampler.foreseen(guided) if due else None
        sampler.advance(guided)
        if not sampler.finished:
            return StepResult(key, sampler.position, sampler.total, foreseen=foreseen)
        if not torch.isfinite(sampler.latents).all():  # no further forward would notice
            return self._failed(key, f"became non-finite at step {sampler.position}")
        del self._images[key]
        return StepResult(key, sampler.position, sampler.total, latents=sampler.latents)

    def _failed_with(self, key: ImageKey, error: Exception, where: str) -> StepResult:
        if isinstance(error, RAN_OUT):
            return self._failed(key, "does not fit into device memory", OutOfMemory)
        _log.error("a picture failed", exc_info=error)
        return self._failed(key, f"failed in its {where}: {type(error).__name__}")

    def _failed(self, key: ImageKey, reason: str, kind: type[PictureFailed] = PictureFailed) -> StepResult:
        sampler = self._images.pop(key).sampler
        return StepResult(key, sampler.position, sampler.total, error=kind(f"picture {key.index} {reason}"))


def _finite(predictions: Sequence[Tensor]) -> list[bool]:
    """Whether each picture's predictions [rows, C, h, w] are finite; the device is asked once for all."""
    rows = iter(torch.isfinite(torch.cat(list(predictions))).flatten(1).all(dim=1).tolist())
    return [all(list(islice(rows, len(each)))) for each in predictions]


def distinct_blends(tables: Mapping[str, Tables], rows: int, sides: Sequence[object] | None = None) -> int:
    """Number of different blends among the rows of a forward, counted from the tables handed to the op.

    sides: what each row adds by side operations.
    Two rows have one blend where all groups give them the same rank rows and scales, and they the same side operations;
    rows without any entry count as one blend.
    """
    return len({(tuple(table.entries[row] for table in tables.values()), sides and sides[row]) for row in range(rows)})


_Sides = tuple[tuple[str, str, Entries], ...]
"""(layer group, block, side operations) of one row."""


def _sides(row: _Row) -> _Sides:
    return tuple(
        (group, block, added.sides)
        for group, blocks in row.entries.items()
        for block, added in blocks.items()
        if added.sides
    )


def _pool_rows(pool_bytes: int, groups: Iterable[LayerGroup]) -> int:
    row_bytes = sum(group.row_bytes for group in groups)
    size = min(_MOST_POOL_ROWS, pool_bytes // row_bytes)
    if size < _FEWEST_POOL_ROWS:
        raise BadSetting(f"pool_bytes is {pool_bytes}, expected at least {_FEWEST_POOL_ROWS * row_bytes} on this base")
    return size


def _nothing(groups: Sequence[str]) -> Mapping[str, RowEntries]:
    """Entries of a row without adapters."""
    return {group: {EVERYWHERE: NOTHING} for group in groups}


def _blends(job: Job, lease: Lease) -> tuple[PlacedBlend, ...]:
    """Blend of each row of a picture of the job: unconditional first where guided."""

    def placed(blend: Sequence[Weighted]) -> PlacedBlend:
        rows, vectors = lease.rows, lease.vectors
        return PlacedBlend(
            tuple((each, rows[each.version.digest]) for each in blend if each.version.embedding is None),
            tuple((each, vectors[each.version.digest]) for each in blend if each.version.embeddings),
        )

    conditional = placed(job.blend)
    if not job.guided:
        return (conditional,)
    return (conditional if job.negative_blend is None else placed(job.negative_blend)), conditional
