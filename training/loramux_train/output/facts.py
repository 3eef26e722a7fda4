"""What a run says of itself: everything that a file's metadata and a report tell.

Takes nothing; gives frozen values that the trainer fills in from its configuration, its base and its data. Knows no
file formats and no tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

__all__ = ["About", "BaseFacts", "DataFacts", "NetworkFacts", "OptimiserFacts", "PictureFolder", "Progress", "RunFacts"]


@dataclass(frozen=True, slots=True)
class About:
    """What people read. name: of the file and on the shelf; trigger: the words that bring it out in a prompt;
    thumbnail: a small picture as a data URI."""

    name: str
    title: str = ""
    author: str = ""
    description: str = ""
    licence: str = ""
    trigger: str = ""
    usage_hint: str = ""
    tags: tuple[str, ...] = ()
    thumbnail: str = ""


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What the adapter was trained on.

    digest: hex sha256 of the base, as a server tells it: of its file, or over the files of its folder. family: whose
    architecture it has, at whatever size.
    """

    name: str
    digest: str
    family: Literal["sd1", "sd2", "sdxl"]
    prediction: Literal["epsilon", "v"]


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """rank, alpha: of linear layers and 1x1 convolutions; conv_rank, conv_alpha: of 3x3 ones, None where they are not
    trained (LoCon). dropout: of the factors' input."""

    rank: int
    alpha: float
    conv_rank: int | None = None
    conv_alpha: float | None = None
    dora: bool = False
    rslora: bool = False
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class OptimiserFacts:
    """Rates are the highest of their schedules, None for a part that is not trained; batch: pictures a micro-step;
    warmup: steps."""

    name: str
    unet_rate: float | None
    text_rate: float | None
    scheduler: str
    warmup: int
    max_steps: int
    batch: int
    accumulation: int = 1
    max_grad_norm: float = 0.0
    min_snr_gamma: float | None = None
    noise_offset: float = 0.0
    prior_loss_weight: float = 1.0
    caption_dropout: float = 0.0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """name: last part of its path alone; tags: how often each is in the captions; prior: pictures of the class, not of
    the subject."""

    name: str
    pictures: int
    repeats: int = 1
    tags: Mapping[str, int] = field(default_factory=dict[str, int])
    prior: bool = False


@dataclass(frozen=True, slots=True)
class DataFacts:
    """resolution: (width, height) in pixels; buckets: pictures by (width, height); bucketed: whether pictures keep
    their shapes, as far as these allow."""

    folders: tuple[PictureFolder, ...]
    resolution: tuple[int, int]
    buckets: Mapping[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    batches_an_epoch: int = 0
    latents_cached: bool = False
    bucketed: bool = False


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run. session: an id of its own; software: such as `loramux 0.1.0`."""

    about: About
    base: BaseFacts
    network: NetworkFacts
    optimiser: OptimiserFacts
    data: DataFacts
    session: str
    started: datetime
    software: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it had come when a file was written, and when that was."""

    step: int
    epoch: int
    at: datetime
