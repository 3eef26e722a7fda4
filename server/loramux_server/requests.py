"""What a request is on its way through the server, and what it hears back: frozen values seen by all.

They know no protobuf, no tensors and no queue.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from loramux_store.record import VersionRecord


class Sampler(StrEnum):
    """Step rules; the values are what people type."""

    DDIM = "ddim"
    PNDM = "pndm"
    EULER = "euler"
    EULER_ANCESTRAL = "euler-a"
    DPMPP_2M = "dpmpp-2m"
    HEUN = "heun"
    DPMPP_2M_SDE = "dpmpp-2m-sde"
    DPMPP_SDE = "dpmpp-sde"
    UNIPC = "unipc"
    LCM = "lcm"


class SigmaSchedule(StrEnum):
    """How noise levels are spread over the steps; BASE is what the base's own configuration says."""

    BASE = "base"
    KARRAS = "karras"
    EXPONENTIAL = "exponential"
    BETA = "beta"


class PromptSyntax(StrEnum):
    """What brackets in a prompt mean."""

    WEIGHTED = "weighted"
    PLAIN = "plain"


class LongPrompt(StrEnum):
    """What becomes of a prompt longer than a chunk."""

    CHUNKS = "chunks"
    CUT = "cut"


class ImageFormat(StrEnum):
    """Encoding of a picture; LATENTS is what there is before it."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    LATENTS = "latents"


class Priority(StrEnum):
    """Who is waiting: a person, a program, or nobody."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"


QUALITY = 90
"""Of JPEG and WebP where none is asked for."""


@dataclass(frozen=True, slots=True)
class Output:
    """How pictures are delivered. quality: of JPEG and WebP; parameters: whether they say what made them.

    preview_every: steps of a picture between previews, 0 for none.
    """

    format: ImageFormat = ImageFormat.PNG
    quality: int = QUALITY
    parameters: bool = True
    preview_every: int = 0


@dataclass(frozen=True, slots=True)
class TextMode:
    """How prompts are read. clip_skip: layers of the text encoder left out at its end."""

    syntax: PromptSyntax = PromptSyntax.WEIGHTED
    long_prompt: LongPrompt = LongPrompt.CHUNKS
    clip_skip: int = 0


SchedulePoint = tuple[float, float]
"""Progress in timesteps, 0 to 1, and the factor of a weight there."""


@dataclass(frozen=True, slots=True)
class PartWeights:
    """Factors of an adapter's weight. blocks: (block of the UNet, factor), each block once."""

    unet: float = 1.0
    text_encoder: float = 1.0
    blocks: tuple[tuple[str, float], ...] = ()
    text_encoder_2: float = 1.0

    def of_text_encoder(self, name: str) -> float:
        """The factor in a text encoder, by its component."""
        return {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}[name]


@dataclass(frozen=True, slots=True)
class BlendEntry:
    """One adapter as asked for: `name` or `name@version`, a weight or none, its factors by part and by progress."""

    adapter: str
    weight: float | None = None
    parts: PartWeights = PartWeights()
    schedule: tuple[SchedulePoint, ...] = ()


@dataclass(frozen=True, slots=True)
class SamplerFacts:
    """What a sampler takes on any base."""

    sampler: Sampler
    sigma_schedules: tuple[SigmaSchedule, ...]
    takes_timesteps: bool


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server is, beside its base. max_upload: bytes; libraries: (package, version) that pictures depend on."""

    version: str
    device: str
    max_upload: int
    samplers: tuple[SamplerFacts, ...]
    libraries: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AskedSizes:
    """What SDXL is to be told of a picture's size, in pixels; None is a field that was left open."""

    original_width: int | None = None
    original_height: int | None = None
    crop_left: int | None = None
    crop_top: int | None = None
    target_width: int | None = None
    target_height: int | None = None


@dataclass(frozen=True, slots=True)
class SizeConditioning:
    """What SDXL is told of a picture's size, in pixels: before resizing, what was cut off, after cropping."""

    original_width: int
    original_height: int
    crop_left: int
    crop_top: int
    target_width: int
    target_height: int

    @property
    def numbers(self) -> tuple[int, ...]:
        """In the order of the UNet's input: every pair with its vertical part first."""
        return (
            self.original_height,
            self.original_width,
            self.crop_top,
            self.crop_left,
            self.target_height,
            self.target_width,
        )


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request as it was sent; None is a field that was left open."""

    prompt: str
    negative_prompt: str = ""
    text_mode: TextMode = TextMode()
    blend: tuple[BlendEntry, ...] = ()
    negative_blend: tuple[BlendEntry, ...] | None = None
    sampler: Sampler | None = None
    sigma_schedule: SigmaSchedule = SigmaSchedule.BASE
    steps: int | None = None
    timesteps: tuple[int, ...] = ()
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    seed: int | None = None
    num_images: int | None = None
    width: int | None = None
    height: int | None = None
    output: Output = Output()
    image: bytes | None = field(default=None, repr=False)
    strength: float | None = None
    mask: bytes | None = field(default=None, repr=False)
    mask_blur: float | None = None
    priority: Priority = Priority.NORMAL
    sizes: AskedSizes | None = None
    negative_sizes: AskedSizes | None = None


@dataclass(frozen=True, slots=True)
class Weighted:
    """One adapter of a resolved blend."""

    version: VersionRecord
    weight: float
    parts: PartWeights = PartWeights()
    schedule: tuple[SchedulePoint, ...] = ()

    def in_text_encoder(self, name: str) -> float:
        """The weight in a text encoder, by its component."""
        return self.weight * self.parts.of_text_encoder(name)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text of a request with the blend that it is read with, and the names of both fields."""

    field: str
    text: str
    blend_field: str
    blend: tuple[Weighted, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How noise becomes a picture. timesteps: where they were given, `steps` is their number.

    strength: share of the steps that are made where a picture starts from an image; None where it does not.
    """

    sampler: Sampler
    steps: int
    sigma_schedule: SigmaSchedule = SigmaSchedule.BASE
    timesteps: tuple[int, ...] = ()
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0
    strength: float | None = None

    @property
    def evaluations(self) -> int:
        """Of the UNet, for one picture."""
        steps = self.steps if self.strength is None else int(self.steps * self.strength)
        match self.sampler:
            case Sampler.PNDM:
                return steps + 1
            case Sampler.HEUN:
                return 2 * steps - 1
            case _:
                return steps


@dataclass(frozen=True, slots=True)
class Source:
    """What a picture is drawn over, in the size of the picture.

    image: RGB, 3 bytes a pixel; mask: a byte a pixel, 1 where it is redrawn, or None: everywhere. The digests are
    hex sha256 of the files as they were sent; mask_blur is what the mask was blurred by.
    """

    image: bytes = field(repr=False)
    image_digest: str
    mask: bytes | None = field(default=None, repr=False)
    mask_digest: str = ""
    mask_blur: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """An admitted request: every field settled, every adapter resolved to an immutable version.

    negative_blend: of the unconditional row, None where it has `blend` too; guidance_embedded: the base takes the
    guidance scale as an input, and there is no unconditional row; sizes: what the base is told of the picture's size,
    in the unconditional row negative_sizes, None where it takes none.
    """

    id: str
    prompt: str
    negative_prompt: str
    text_mode: TextMode
    blend: tuple[Weighted, ...]
    negative_blend: tuple[Weighted, ...] | None
    sampling: Sampling
    seed: int
    num_images: int
    width: int
    height: int
    output: Output
    priority: Priority
    source: Source | None = None
    guidance_embedded: bool = False
    sizes: SizeConditioning | None = None
    negative_sizes: SizeConditioning | None = None

    @property
    def guided(self) -> bool:
        """Whether a picture has an unconditional row beside its conditional one."""
        return self.sampling.guidance_scale > 1 and not self.guidance_embedded


@dataclass(frozen=True, slots=True)
class ImageKey:
    """One picture of one job."""

    job: str
    index: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds on this process's monotonic clock. queue, denoise and decode follow one another and are the total.

    queue: until the first step; it begins with load, until adapters and images are ready and the tick thread comes to
    it, and goes on with encode, of the texts.
    """

    queue: float
    denoise: float
    decode: float
    total: float
    load: float = 0.0
    encode: float = 0.0


@dataclass(frozen=True, slots=True)
class Queued:
    """Taken in behind `position` pictures."""

    position: int


@dataclass(frozen=True, slots=True)
class Started:
    """Adapters are loaded; the first step comes."""

    job: Job


@dataclass(frozen=True, slots=True)
class Stepped:
    """Picture `index` finished `step` of `total` timesteps."""

    index: int
    step: int
    total: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What picture `index` will be, as foreseen at `step`; `jpeg` is a whole small file."""

    index: int
    step: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class ImageReady:
    """Picture `index` is drawn; `data` is the whole file."""

    index: int
    seed: int
    width: int
    height: int
    format: ImageFormat
    data: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """All pictures were told of."""

    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """The job ended with an error."""

    error: Exception


Told = Queued | Started | Stepped | Preview | ImageReady | Done
"""What a client hears; how a job failed is told by its status."""

Event = Told | Failed
Listener = Callable[[Event], None]
"""Hears a job's events in order, from whichever thread; must return at once."""
