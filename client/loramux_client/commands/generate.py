"""`loramux generate`.

Takes: a prompt and options. Gives: picture files, and a line that says what was applied. Does not
know how the server is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loramux_client import terminal
from loramux_client.commands.server import Server, connect
from loramux_client.patience import RETRIES
from loramux_client.pictures import (
    Applied,
    AppliedAdapter,
    Asking,
    Done,
    Event,
    ImageFormat,
    ImageReady,
    Preview,
    Priority,
    Queued,
    Sampler,
    SigmaSchedule,
    Sizes,
    Started,
    Step,
    Use,
)

_FORMATS: dict[str, ImageFormat] = {
    ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".safetensors": "latents"
}  # fmt: skip
"""What a file's name asks for."""


def _known_suffix(_: type[Any], output: Path) -> None:
    if output.suffix.lower() not in _FORMATS:
        raise ValueError(f"{output} ends in none of {', '.join(_FORMATS)}")


def _uses(_: type[Any], tokens: Sequence[Token]) -> list[Use]:
    return [Use.parse(token.value) for token in tokens]


def _pair(_: type[Any], tokens: Sequence[Token]) -> tuple[int, int]:
    """Two numbers of 1024x768 or 0,0."""
    first, mark, second = re.sub("[x,]", " ", tokens[0].value, count=1).partition(" ")
    if not (mark and first.isdecimal() and second.isdecimal()):
        raise ValueError(f"{tokens[0].value!r} is not of the form 1024x768 or 0,0")
    return int(first), int(second)


def _told(what: str, metavar: str = "WIDTHxHEIGHT") -> Parameter:
    return Parameter(converter=_pair, n_tokens=1, accepts_keys=False, negative="", metavar=metavar, help=what)


Pair = tuple[int, int] | None


def generate(
    prompt: Annotated[str, Parameter(help="What the picture shows.")],
    /,
    *,
    adapter: Annotated[
        list[Use] | None,
        Parameter(
            name=["--adapter", "-a"],
            converter=_uses,
            n_tokens=1,
            accepts_keys=False,
            negative="",
            metavar="NAME@VERSION=WEIGHT",
            help="An adapter of the blend, once for each; version and weight may be left out.",
        ),
    ] = None,
    negative: Annotated[str | None, Parameter(help="What it must not show.")] = None,
    plain: Annotated[bool, Parameter(negative="", help="Brackets in prompts are text, not weights.")] = False,
    clip_skip: Annotated[int | None, Parameter(help="Layers of the text encoder left out at its end.")] = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: Annotated[int | None, Parameter(help="Of the first picture; others count up.")] = None,
    sampler: Sampler | None = None,
    sigmas: Annotated[
        SigmaSchedule | None, Parameter(help="Spread of noise levels, where the sampler takes it.")
    ] = None,
    rescale: Annotated[float | None, Parameter(help="Guidance rescale, 0 to 1.")] = None,
    num_images: Annotated[int, Parameter(name=["--num-images", "-n"])] = 1,
    width: int | None = None,
    height: int | None = None,
    original_size: Annotated[Pair, _told("What SDXL is told: size of the picture before resizing.")] = None,
    crop: Annotated[Pair, _told("What SDXL is told: what was cut off at its left and top.", "LEFT,TOP")] = None,
    target_size: Annotated[Pair, _told("What SDXL is told: size of the picture after cropping.")] = None,
    negative_original_size: Annotated[Pair, _told("The same for the unconditional row.")] = None,
    negative_crop: Annotated[Pair, _told("The same for the unconditional row.", "LEFT,TOP")] = None,
    negative_target_size: Annotated[Pair, _told("The same for the unconditional row.")] = None,
    image: Annotated[Path | None, Parameter(help="A picture to start from: .png, .jpg or .webp.")] = None,
    mask: Annotated[Path | None, Parameter(help="Where the image is redrawn: a picture that is white there.")] = None,
    strength: Annotated[float | None, Parameter(help="How far from the image it may go, 0 to 1.")] = None,
    mask_blur: Annotated[float | None, Parameter(help="Radius of a blur of the mask, in its pixels.")] = None,
    output: Annotated[
        Path,
        Parameter(
            name=["--output", "-o"],
            validator=_known_suffix,
            help="File, .png, .jpg, .webp or .safetensors (latents); several go to FILE-0.png, FILE-1.png...",
        ),
    ] = Path("loramux.png"),
    quality: Annotated[int | None, Parameter(help="Of .jpg and .webp, 1 to 100.")] = None,
    no_parameters: Annotated[bool, Parameter(negative="", help="Leave out of the file what it was made with.")] = False,
    priority: Annotated[
        Priority | None, Parameter(help="Part of the machine beside other requests: 4, 1 (normal) or a quarter.")
    ] = None,
    retries: Annotated[
        int, Parameter(negative="", help="How often to ask again where the server says when; 0: not at all.")
    ] = RETRIES,
    server: Server = None,
) -> None:
    """Draw a picture with a blend of adapters. What is not said, the server decides."""
    asked: dict[str, Any] = {
        "adapters": adapter,
        "negative_prompt": negative,
        "prompt_syntax": "plain" if plain else None,
        "clip_skip": clip_skip,
        "steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "sampler": sampler,
        "sigma_schedule": sigmas,
        "guidance_rescale": rescale,
        "num_images": num_images,
        "width": width,
        "height": height,
        "size_conditioning": _sizes(original_size, crop, target_size),
        "negative_size_conditioning": _sizes(negative_original_size, negative_crop, negative_target_size),
        "image": image,
        "mask": mask,
        "strength": strength,
        "mask_blur": mask_blur,
        "image_format": _FORMATS[output.suffix.lower()],
        "quality": quality,
        "omit_parameters": no_parameters or None,
        "priority": priority,
    }
    asking = Asking(**{name: value for name, value in asked.items() if value is not None})  # pyright: ignore[reportArgumentType]
    output.parent.mkdir(parents=True, exist_ok=True)
    with connect(server, retries=retries) as client, closing(client.stream(prompt, **asking)) as events:
        applied = _draw(events, num_images, output)
    if applied is not None:
        terminal.say(applied_line(applied))


def _sizes(*pairs: Pair) -> Sizes | None:
    """What SDXL is told, where anything is: size before resizing, what was cut off, size after cropping."""
    return Sizes(*(number for pair in pairs for number in pair or (None, None))) if any(pairs) else None


def _draw(events: Iterator[Event], count: int, output: Path) -> Applied | None:
    """Saves pictures as they come, with a progress bar for each; what was applied."""
    applied = None
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with terminal.progress(*columns, TimeElapsedColumn()) as bars:
        for event in events:
            match event:
                case Started():
                    applied = event.applied
                case ImageReady(image):
                    terminal.say(f"wrote {image.save(numbered(output, image.index, count))}")
                case _:
                    pass
            _show(bars, event, count)
    return applied


def _show(bars: Progress, event: Event, count: int) -> None:
    match event:
        case Queued(position):
            for index in range(count):
                bars.add_task(f"picture {index}: queued, {position} before", total=None)
        case Step(index, step, total) if index < len(bars.tasks):
            bars.update(bars.task_ids[index], description=f"picture {index}", completed=step, total=total)
        case ImageReady() | Done() | Started() | Step() | Preview():
            pass


def numbered(output: Path, index: int, count: int) -> Path:
    """The file of one picture of several."""
    return output if count == 1 else output.with_name(f"{output.stem}-{index}{output.suffix}")


def _over(applied: Applied) -> list[str]:
    """What it was drawn over, if anything."""
    if applied.strength is None or applied.image_sha256 is None:
        return []
    over = [f"over {terminal.short(applied.image_sha256)} at strength {applied.strength:g}"]
    if applied.mask_sha256:
        over.append(f"mask {terminal.short(applied.mask_sha256)} blurred by {applied.mask_blur:g}")
    return over


def _said(adapter: AppliedAdapter) -> str:
    triggers = (adapter.trigger,) if adapter.trigger else adapter.bundled_triggers
    at = f" at {', '.join(map(repr, triggers))}" if triggers else ""
    return f"{adapter.adapter}@{adapter.version}={adapter.weight:g} ({terminal.short(adapter.digest)}){at}"


def applied_line(applied: Applied) -> str:
    """What was applied, on a line."""
    blend = [_said(adapter) for adapter in applied.adapters]
    facts = [
        " + ".join(blend) or "no adapters",
        f"seed {applied.seed}",
        f"{applied.sampler}{' ' + applied.sigma_schedule if applied.sigma_schedule else ''}, {applied.steps} steps",
        f"guidance {applied.guidance_scale:g}",
        f"{applied.width}x{applied.height}",
        *_over(applied),
        f"base {terminal.short(applied.base_digest)}",
    ]
    if applied.size_conditioning is not None:
        sizes = applied.size_conditioning
        told = f"{sizes.original_width}x{sizes.original_height}", f"{sizes.target_width}x{sizes.target_height}"
        facts.insert(-1, f"told {told[0]} cut at {sizes.crop_left},{sizes.crop_top} to {told[1]}")
    return f"applied {', '.join(facts)}"
