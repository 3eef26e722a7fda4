"""What may become a job: fills open fields with the base's defaults, checks every field, resolves adapters.

Takes a request, the store and what the base can do; gives a job or one error that names every field at fault.
It reads the catalog and decodes images, so it does not belong on the event loop. It knows no protobuf and no queue.
"""

import math
import secrets
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from loramux_server import embeddings, images, sizes
from loramux_server.errors import Incompatible, InvalidRequest, Violation
from loramux_server.images import Brought
from loramux_server.requests import (
    BlendEntry,
    GenerationRequest,
    Job,
    PartWeights,
    Prompt,
    Sampler,
    Sampling,
    SchedulePoint,
    SigmaSchedule,
    TextMode,
    Weighted,
)
from loramux_store.record import VersionRecord
from loramux_store.store import Store

T = TypeVar("T")

MAX_STEPS = 200
TIMESTEPS = 1000  # of the noise schedule that Stable Diffusion was trained with
MAX_GUIDANCE = 50.0
MAX_IMAGES = 16
MAX_ENTRIES = 32
MAX_WEIGHT = 16.0
MAX_POINTS = 32
MAX_BLOCKS = 64  # no UNet that is served has as many
MAX_PROMPT = 10_000
MAX_SEED = 2**63 - 1
STRENGTH = 0.8  # where a picture starts from an image, as diffusers has it
MASKED_STRENGTH = 1.0  # and where a mask says what is redrawn


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What admission needs of the base. side, size_multiple, min_side and max_side in pixels.

    inpainting: whether its UNet sees an image and a mask beside the latents.
    guidance_embedded: the guidance scale is an input of the UNet; size_conditioned: so is a picture's size;
    text_widths: of token embeddings, by text encoder.
    """

    name: str
    digest: str
    layout_name: str
    layout_digest: str
    side: int
    size_multiple: int
    min_side: int
    max_side: int
    guidance_scale: float
    max_rank: int
    steps: int = 20
    sampler: Sampler = Sampler.DPMPP_2M
    inpainting: bool = False
    family: str = "sd1"
    distilled: str = ""
    guidance_embedded: bool = False
    text_widths: Mapping[str, int] = field(default_factory=dict[str, int])
    size_conditioned: bool = False


class Admission:
    """Turns requests into jobs.

    check_blends: refuses versions that can never fit beside one another; check_sampling: what a sampler cannot do on
    this base; check_prompts: what is wrong with prompts by field, and embeddings that none of them calls; blocks: of
    the base's UNet.
    """

    def __init__(
        self,
        store: Store,
        base: BaseFacts,
        check_blends: Callable[[Sequence[Sequence[VersionRecord]]], None],
        check_sampling: Callable[[Sampling], Sequence[Violation]],
        check_prompts: Callable[[Sequence[Prompt], TextMode], Sequence[Violation]],
        blocks: Collection[str],
    ) -> None:
        self._store = store
        self.base = base
        self._check_blends = check_blends
        self._check_sampling = check_sampling
        self._check_prompts = check_prompts
        self._blocks = blocks

    def admit(self, request: GenerationRequest) -> Job:
        """The request as a job.

        Raises:
            InvalidRequest: fields outside their range, all of them named.
            NotFound: an adapter or version that is not on the shelf.
            Incompatible: an adapter of another layout, or a blend that can never fit.
        """
        brought = images.decode(request)
        job = self._settle(request, brought)
        violations = [
            *_violations(request, job, self.base, self._blocks),
            *sizes.violations(request, self.base.name, taken=self.base.size_conditioned),
            *_drawn_over(request, job, brought, self.base),
        ]
        _refuse(violations)
        blend = self._resolved("blend", request.blend)
        negative = None if request.negative_blend is None else self._resolved("negative_blend", request.negative_blend)
        prompts = _prompts(job, blend, negative)
        _refuse([*self._check_sampling(job.sampling), *self._check_prompts(prompts, job.text_mode)])
        if not job.guided:
            negative = None  # there is no row that it could act in
        self._check_blends([[weighted.version for weighted in each] for each in (blend, negative or ())])
        source = images.source(request, brought, job.width, job.height)
        job = replace(job, blend=blend, negative_blend=negative, source=source)
        return sizes.settled(job, request) if self.base.size_conditioned else job

    def suits(self, version: VersionRecord) -> None:
        """Refuses a version that the base cannot use.

        Raises:
            Incompatible: it is of another layout.
        """
        if not self._fits(version):
            raise Incompatible(
                "LAYOUT_MISMATCH",
                f"adapter {version.adapter}@{version.number} is for the layout {version.layout_name}, "
                f"the base {self.base.name} has {self.base.layout_name}",
            )

    def _resolved(self, field: str, entries: Sequence[BlendEntry]) -> tuple[Weighted, ...]:
        blend = tuple(self._weighted(entry) for entry in entries)
        _refuse_twice(field, blend)
        _refuse(embeddings.violations(field, blend))
        return blend

    def _settle(self, request: GenerationRequest, brought: Brought) -> Job:
        """The request with every open field filled, without its blend and its source."""
        base = self.base
        width, height = _sides(brought, base)
        return Job(
            id=uuid.uuid4().hex,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            text_mode=request.text_mode,
            blend=(),
            negative_blend=None,
            sampling=Sampling(
                sampler=_either(request.sampler, base.sampler),
                steps=_either(request.steps, len(request.timesteps) or base.steps),
                sigma_schedule=request.sigma_schedule,
                timesteps=request.timesteps,
                guidance_scale=_either(request.guidance_scale, base.guidance_scale),
                guidance_rescale=_either(request.guidance_rescale, 0.0),
                strength=_strength(request),
            ),
            seed=secrets.randbelow(2**32) if request.seed is None else request.seed,
            num_images=_either(request.num_images, 1),
            width=_either(request.width, width),
            height=_either(request.height, height),
            output=request.output,
            priority=request.priority,
            guidance_embedded=base.guidance_embedded,
        )

    def _weighted(self, entry: BlendEntry) -> Weighted:
        version = self._store.resolve(entry.adapter)
        self.suits(version)
        weight = entry.weight
        if weight is None:
            weight = _either(self._store.get_adapter(version.adapter).default_weight, 1.0)
        return Weighted(version, weight, entry.parts, entry.schedule)

    def _fits(self, version: VersionRecord) -> bool:
        """Of the layout only the text encoders' widths matter to an embedding."""
        if version.embedding is not None:
            return version.embedding.widths == self.base.text_widths
        return version.layout_digest == self.base.layout_digest


def _refuse(violations: Sequence[Violation]) -> None:
    if violations:
        raise InvalidRequest(tuple(violations))


def _prompts(job: Job, blend: tuple[Weighted, ...], negative: tuple[Weighted, ...] | None) -> tuple[Prompt, ...]:
    """Both texts, each with the blend of its row."""
    of_negative = ("blend", blend) if negative is None else ("negative_blend", negative)
    return Prompt("prompt", job.prompt, "blend", blend), Prompt("negative_prompt", job.negative_prompt, *of_negative)


def _either(value: T | None, default: T) -> T:
    return default if value is None else value


def _sides(brought: Brought, base: BaseFacts) -> tuple[int, int]:
    """Width and height where none are asked for: the image's, rounded down to what the base draws."""
    if brought.image is None:
        return base.side, base.side
    step = base.size_multiple
    return brought.image.width // step * step, brought.image.height // step * step


def _strength(request: GenerationRequest) -> float | None:
    if request.image is None:
        return None
    return _either(request.strength, STRENGTH if request.mask is None else MASKED_STRENGTH)


def _violations(request: GenerationRequest, job: Job, base: BaseFacts, blocks: Collection[str]) -> list[Violation]:
    found = [
        _range("steps", job.sampling.steps, 1, MAX_STEPS),
        _range("guidance_scale", job.sampling.guidance_scale, 0, MAX_GUIDANCE),
        _range("guidance_rescale", job.sampling.guidance_rescale, 0, 1),
        *_timesteps(request),
        _range("seed", job.seed, 0, MAX_SEED - MAX_IMAGES),
        _range("num_images", job.num_images, 1, MAX_IMAGES),
        _size("width", job.width, request.width is None, base),
        _size("height", job.height, request.height is None, base),
        _range("quality", job.output.quality, 1, 100),
        _range("preview_every", job.output.preview_every, 0, MAX_STEPS),
        _length("prompt", job.prompt),
        _length("negative_prompt", job.negative_prompt),
        *_blend("blend", request.blend, base, blocks),
        *_blend("negative_blend", request.negative_blend or (), base, blocks),
    ]
    if request.blend and not request.prompt.strip():
        found.append(Violation("prompt", "is empty, expected text where the blend lists adapters"))
    return [violation for violation in found if violation is not None]


def _blend(
    field: str, entries: Sequence[BlendEntry], base: BaseFacts, blocks: Collection[str]
) -> list[Violation | None]:
    found = [_range(f"{field}.entries", len(entries), 0, MAX_ENTRIES)]
    for index, entry in enumerate(entries):
        where = f"{field}.entries[{index}]"
        if not entry.adapter:
            found.append(Violation(f"{where}.adapter", "is empty, expected a name or name@version"))
        if entry.weight is not None:
            found.append(_weight(f"{where}.weight", entry.weight))
        found += _parts(f"{where}.part_weights", entry.parts, base, blocks)
        found += _schedule(f"{where}.schedule", entry.schedule)
    return found


def _weight(field: str, value: float) -> Violation | None:
    return _range(field, value, -MAX_WEIGHT, MAX_WEIGHT)


def _parts(where: str, parts: PartWeights, base: BaseFacts, blocks: Collection[str]) -> list[Violation | None]:
    found = [
        _weight(f"{where}.unet", parts.unet),
        _weight(f"{where}.text_encoder", parts.text_encoder),
        _weight(f"{where}.text_encoder_2", parts.text_encoder_2),
    ]
    if parts.text_encoder_2 != 1 and "text_encoder_2" not in base.text_widths:
        found.append(Violation(f"{where}.text_encoder_2", "is given, this base has one text encoder"))
    for block, factor in parts.blocks:
        found.append(_weight(f"{where}.blocks[{block}]", factor))
        if block not in blocks:
            expected = ", ".join(sorted(blocks))
            found.append(Violation(f"{where}.blocks[{block}]", f"is no block of this base, expected one of {expected}"))
    return found


def _schedule(where: str, points: Sequence[SchedulePoint]) -> list[Violation | None]:
    found = [_range(where, len(points), 0, MAX_POINTS)]
    for index, (progress, factor) in enumerate(points):
        found.append(_range(f"{where}[{index}].progress", progress, 0, 1))
        found.append(_weight(f"{where}[{index}].factor", factor))
        if index and progress < points[index - 1][0]:
            before = points[index - 1][0]
            found.append(Violation(f"{where}[{index}].progress", f"is {progress}, expected at least {before} after it"))
    return found


def _range(field: str, value: float, low: float, high: float) -> Violation | None:
    if math.isfinite(value) and low <= value <= high:
        return None
    return Violation(field, f"is {value}, expected {low} to {high}")


def _timesteps(request: GenerationRequest) -> list[Violation]:
    given = request.timesteps
    if not given:
        return []
    found: list[Violation] = []
    if list(given) != sorted(set(given), reverse=True) or not 0 <= given[-1] <= given[0] < TIMESTEPS:
        found.append(Violation("timesteps", f"are {list(given)}, expected falling numbers from 0 to {TIMESTEPS - 1}"))
    if len(given) > MAX_STEPS:
        found.append(Violation("timesteps", f"are {len(given)}, expected at most {MAX_STEPS}"))
    if request.steps not in (None, len(given)):
        found.append(Violation("steps", f"is {request.steps}, expected none beside {len(given)} timesteps"))
    if request.sigma_schedule != SigmaSchedule.BASE:
        found.append(Violation("sigma_schedule", f"is {request.sigma_schedule}, expected none beside timesteps"))
    return found


def _drawn_over(request: GenerationRequest, job: Job, brought: Brought, base: BaseFacts) -> list[Violation]:
    """What is wrong with the image, the mask and what belongs to them."""
    found = [
        *brought.violations,
        _range("strength", _either(job.sampling.strength, 1.0), 0, 1),
        _range("mask_blur", _either(request.mask_blur, 0.0), 0, images.MAX_BLUR),
        _alone("strength", request.strength, "image", request.image),
        _alone("mask", request.mask, "image", request.image),
        _alone("mask_blur", request.mask_blur, "mask", request.mask),
    ]
    if base.inpainting:
        missing = f"is missing, expected since the base {base.name} is made for inpainting: it takes image and mask"
        found += [Violation(field, missing) for field in ("image", "mask") if getattr(request, field) is None]
    return [violation for violation in found if violation is not None]


def _alone(field: str, value: object, needed: str, other: object) -> Violation | None:
    if value is None or other is not None:
        return None
    return Violation(field, f"is given without {needed}, expected both")


def _size(field: str, value: int, left_open: bool, base: BaseFacts) -> Violation | None:
    step = base.size_multiple
    if base.min_side <= value <= base.max_side and value % step == 0:
        return None
    whose = " as that of image" if left_open else ""
    return Violation(field, f"is {value}{whose}, expected a multiple of {step} from {base.min_side} to {base.max_side}")


def _length(field: str, text: str) -> Violation | None:
    if len(text) <= MAX_PROMPT:
        return None
    return Violation(field, f"has {len(text)} characters, expected at most {MAX_PROMPT}")


def _refuse_twice(field: str, blend: Sequence[Weighted]) -> None:
    seen: dict[str, int] = {}
    for index, weighted in enumerate(blend):
        first = seen.setdefault(weighted.version.digest, index)
        if first != index:
            raise InvalidRequest(
                (
                    Violation(
                        f"{field}.entries[{index}].adapter",
                        f"is the same version as {field}.entries[{first}]; expected every version once",
                    ),
                )
            )
