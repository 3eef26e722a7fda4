"""Pictures and server facts, to protobuf and back: this side's door for GenerationService.

Takes: plain values to ask with, messages to read. Gives: messages to send, plain values. Does not
know channels or calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Unpack, cast

from google.protobuf.message import Message

from loramux.v1 import adapter_pb2
from loramux.v1 import generation_pb2 as pb
from loramux_client import pictures
from loramux_client.errors import InvalidArgument, Violation
from loramux_client.image_source import ImageSource, image_bytes
from loramux_client.server_info import Defaults, Limits, Sampler, ServerInfo

SAMPLERS: dict[str, pb.Sampler] = {
    "ddim": pb.SAMPLER_DDIM,
    "pndm": pb.SAMPLER_PNDM,
    "euler": pb.SAMPLER_EULER,
    "euler-a": pb.SAMPLER_EULER_ANCESTRAL,
    "dpmpp-2m": pb.SAMPLER_DPMPP_2M,
    "heun": pb.SAMPLER_HEUN,
    "dpmpp-2m-sde": pb.SAMPLER_DPMPP_2M_SDE,
    "dpmpp-sde": pb.SAMPLER_DPMPP_SDE,
    "unipc": pb.SAMPLER_UNIPC,
    "lcm": pb.SAMPLER_LCM,
}
SIGMA_SCHEDULES: dict[str, pb.SigmaSchedule] = {
    "karras": pb.SIGMA_SCHEDULE_KARRAS,
    "exponential": pb.SIGMA_SCHEDULE_EXPONENTIAL,
    "beta": pb.SIGMA_SCHEDULE_BETA,
}
PROMPT_SYNTAXES: dict[str, pb.PromptSyntax] = {
    "weighted": pb.PROMPT_SYNTAX_WEIGHTED,
    "plain": pb.PROMPT_SYNTAX_PLAIN,
}
LONG_PROMPTS: dict[str, pb.LongPrompt] = {"chunks": pb.LONG_PROMPT_CHUNKS, "cut": pb.LONG_PROMPT_CUT}
_KINDS: dict[int, str] = {adapter_pb2.ADAPTER_KIND_LORA: "lora", adapter_pb2.ADAPTER_KIND_EMBEDDING: "embedding"}
FORMATS: dict[str, pb.ImageFormat] = {
    "png": pb.IMAGE_FORMAT_PNG,
    "jpeg": pb.IMAGE_FORMAT_JPEG,
    "webp": pb.IMAGE_FORMAT_WEBP,
    "latents": pb.IMAGE_FORMAT_LATENTS,
}
PRIORITIES: dict[str, pb.Priority] = {
    "interactive": pb.PRIORITY_INTERACTIVE,
    "normal": pb.PRIORITY_NORMAL,
    "batch": pb.PRIORITY_BATCH,
}
_ENUMS: dict[str, Mapping[str, int]] = {
    "sampler": SAMPLERS,
    "sigma_schedule": SIGMA_SCHEDULES,
    "prompt_syntax": PROMPT_SYNTAXES,
    "long_prompt": LONG_PROMPTS,
    "image_format": FORMATS,
    "priority": PRIORITIES,
}
_SAMPLER_NAMES: dict[int, str] = {number: name for name, number in SAMPLERS.items()}
_SYNTAX_NAMES: dict[int, str] = {number: name for name, number in PROMPT_SYNTAXES.items()}
_LONG_PROMPT_NAMES: dict[int, str] = {number: name for name, number in LONG_PROMPTS.items()}
_SIGMA_NAMES: dict[int, str] = {number: name for name, number in SIGMA_SCHEDULES.items()}
_FORMAT_NAMES: dict[int, str] = {number: name for name, number in FORMATS.items()}


def set_field(message: Message, field: str, value: object, where: str = "") -> None:
    """Sets a scalar; one that cannot even be sent is InvalidArgument, like the server's."""
    try:
        setattr(message, field, value)
    except (TypeError, ValueError) as wrong:
        path = where + field
        raise InvalidArgument(
            f"{path} cannot be {value!r}: {wrong}",
            reason="UNSENDABLE",
            violations=[Violation(path, str(wrong))],
        ) from None


def uses_of(blend: pictures.Blend) -> Iterator[pictures.Use]:
    """The entries of a blend, whichever way it was written."""
    if isinstance(blend, str):
        raise TypeError(f"adapters must be a mapping or a sequence, not the string {blend!r}")
    if isinstance(blend, Mapping):
        yield from (pictures.Use(name, weight) for name, weight in blend.items())
    else:
        yield from (pictures.Use(one) if isinstance(one, str) else one for one in blend)


def generate_request(prompt: str, **asking: Unpack[pictures.Asking]) -> pb.GenerateRequest:
    """The message that asks for pictures; what is not said stays unset."""
    request = pb.GenerateRequest()
    rest: dict[str, object] = {"prompt": prompt, **asking}
    for name, field in (("adapters", "blend"), ("negative_adapters", "negative_blend")):
        if (blend := rest.pop(name, None)) is not None:
            _set_blend(getattr(request, field), field, cast("pictures.Blend", blend))
    for field in ("image", "mask"):
        if (source := rest.pop(field, None)) is not None:
            set_field(request, field, image_bytes(field, cast("ImageSource", source)))
    for field in ("size_conditioning", "negative_size_conditioning"):
        if (sizes := rest.pop(field, None)) is not None:
            _set_sizes(getattr(request, field), field, cast("pictures.Sizes", sizes))
    for field, numbers in _ENUMS.items():
        if name := rest.pop(field, None):
            set_field(request, field, _number(field, str(name), numbers))
    _set_timesteps(request, asking.get("timesteps", ()))
    rest.pop("timesteps", None)
    for field, value in rest.items():
        if value is not None:
            set_field(request, field, value)
    return request


def _set_blend(message: pb.Blend, field: str, blend: pictures.Blend) -> None:
    message.SetInParent()  # an empty one says something too
    for number, use in enumerate(uses_of(blend)):
        entry, where = message.entries.add(), f"{field}.entries[{number}]."
        set_field(entry, "adapter", use.adapter, where)
        if use.weight is not None:
            set_field(entry, "weight", use.weight, where)
        _set_parts(entry, use, where)
        for at, factor in use.schedule:
            point = entry.schedule.add()
            set_field(point, "progress", at, f"{where}schedule.")
            set_field(point, "factor", factor, f"{where}schedule.")


def _set_sizes(message: pb.SizeConditioning, field: str, sizes: pictures.Sizes) -> None:
    message.SetInParent()  # negative ones of the picture's own size say something too
    for name, value in asdict(sizes).items():
        if value is not None:
            set_field(message, name, value, f"{field}.")


def _set_parts(entry: pb.BlendEntry, use: pictures.Use, where: str) -> None:
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if (factor := getattr(use, part)) is not None:
            set_field(entry.part_weights, part, factor, f"{where}part_weights.")
    for block, factor in use.blocks.items():
        try:
            entry.part_weights.blocks[block] = factor
        except (TypeError, ValueError) as wrong:
            path = f"{where}part_weights.blocks"
            raise InvalidArgument(
                f"{path} cannot hold {block!r}: {factor!r}: {wrong}",
                reason="UNSENDABLE",
                violations=[Violation(path, str(wrong))],
            ) from None


def _number(field: str, name: str, numbers: Mapping[str, int]) -> int:
    if name in numbers:
        return numbers[name]
    expected = f"expected one of {', '.join(numbers)}"
    raise InvalidArgument(
        f"{field} {name!r} is not known; {expected}",
        reason="UNSENDABLE",
        violations=[Violation(field, expected)],
    )


def _set_timesteps(request: pb.GenerateRequest, timesteps: Sequence[int]) -> None:
    try:
        request.timesteps.extend(timesteps)
    except (TypeError, ValueError) as wrong:
        raise InvalidArgument(
            f"timesteps cannot be {timesteps!r}: {wrong}",
            reason="UNSENDABLE",
            violations=[Violation("timesteps", str(wrong))],
        ) from None


def read_sampler(number: int) -> str:
    """The sampler's name; a newer server's unknown one keeps its number."""
    return _SAMPLER_NAMES.get(number, f"unknown-{number}")


def read_applied(message: pb.Applied) -> pictures.Applied:
    """What was applied."""
    return pictures.Applied(
        adapters=tuple(map(_read_adapter, message.adapters)),
        negative_adapters=tuple(map(_read_adapter, message.negative_adapters)) if message.has_negative_blend else None,
        seed=message.seed,
        sampler=read_sampler(message.sampler),
        sigma_schedule=_SIGMA_NAMES.get(message.sigma_schedule),
        steps=message.steps,
        timesteps=tuple(message.timesteps),
        guidance_scale=message.guidance_scale,
        guidance_rescale=message.guidance_rescale,
        width=message.width,
        height=message.height,
        prompt_syntax=_SYNTAX_NAMES.get(message.prompt_syntax, f"unknown-{message.prompt_syntax}"),
        long_prompt=_LONG_PROMPT_NAMES.get(message.long_prompt, f"unknown-{message.long_prompt}"),
        clip_skip=message.clip_skip,
        base_digest=message.base_digest,
        server_version=message.server_version,
        strength=message.strength if message.HasField("strength") else None,
        image_sha256=message.image_sha256 or None,
        mask_sha256=message.mask_sha256 or None,
        mask_blur=message.mask_blur,
        size_conditioning=_read_sizes(message, "size_conditioning"),
        negative_size_conditioning=_read_sizes(message, "negative_size_conditioning"),
    )


def _read_sizes(message: pb.Applied, field: str) -> pictures.Sizes | None:
    if not message.HasField(field):  # pyright: ignore[reportArgumentType]
        return None
    return pictures.Sizes(*(getattr(getattr(message, field), each.name) for each in fields(pictures.Sizes)))


def _read_adapter(message: pb.AppliedAdapter) -> pictures.AppliedAdapter:
    parts = message.part_weights
    return pictures.AppliedAdapter(
        message.adapter,
        message.version,
        message.digest,
        message.weight,
        unet=parts.unet if parts.HasField("unet") else 1.0,
        text_encoder=parts.text_encoder if parts.HasField("text_encoder") else 1.0,
        blocks=dict(parts.blocks),
        schedule=tuple((point.progress, point.factor) for point in message.schedule),
        text_encoder_2=parts.text_encoder_2 if parts.HasField("text_encoder_2") else 1.0,
        kind=read_kind(message.kind),
        trigger=message.trigger,
        bundled_triggers=tuple(message.bundled_triggers),
    )


def read_kind(number: int) -> str:
    """What an adapter is made of."""
    return _KINDS.get(number, f"unknown-{number}")


def read_image(message: pb.Image) -> pictures.Image:
    """A finished picture."""
    return pictures.Image(
        index=message.index,
        seed=message.seed,
        format=_FORMAT_NAMES.get(message.format, f"unknown-{message.format}"),
        width=message.width,
        height=message.height,
        data=message.data,
    )


def read_timings(message: pb.Timings) -> pictures.Timings:
    """Where the time went."""
    return pictures.Timings(
        message.queue_seconds,
        message.denoise_seconds,
        message.decode_seconds,
        message.total_seconds,
    )


def read_generation(message: pb.GenerateResponse) -> pictures.Generation:
    """All pictures of a request."""
    return pictures.Generation(
        images=tuple(read_image(image) for image in message.images),
        applied=read_applied(message.applied),
        timings=read_timings(message.timings),
    )


def read_event(message: pb.GenerateEvent) -> pictures.Event | None:
    """What happened; None where a newer server tells something we have no word for."""
    match message.WhichOneof("event"):
        case "queued":
            return pictures.Queued(message.queued.position)
        case "started":
            return pictures.Started(read_applied(message.started.applied))
        case "step":
            step = message.step
            return pictures.Step(step.image_index, step.step, step.total)
        case "preview":
            preview = message.preview
            return pictures.Preview(preview.image_index, preview.step, preview.jpeg)
        case "image":
            return pictures.ImageReady(read_image(message.image))
        case "done":
            return pictures.Done(read_timings(message.done.timings))
        case _:
            return None


def read_server_info(message: pb.ServerInfo) -> ServerInfo:
    """What a server is and can do."""
    limits, defaults = message.limits, message.defaults
    return ServerInfo(
        server_version=message.server_version,
        base=message.base,
        base_digest=message.base_digest,
        layout=message.layout,
        layout_digest=message.layout_digest,
        device=message.device,
        family=message.family,
        distilled=message.distilled,
        text_widths=dict(sorted(message.text_widths.items())),
        samplers=_read_samplers(message),
        limits=Limits(
            size_multiple=limits.size_multiple,
            min_side=limits.min_side,
            max_side=limits.max_side,
            max_steps=limits.max_steps,
            max_images=limits.max_images,
            max_blend_entries=limits.max_blend_entries,
            max_blend_rank=limits.max_blend_rank,
            max_upload_bytes=limits.max_upload_bytes,
            max_image_bytes=limits.max_image_bytes,
            max_image_pixels=limits.max_image_pixels,
            max_weight=limits.max_weight,
            max_guidance_scale=limits.max_guidance_scale,
            max_prompt_characters=limits.max_prompt_characters,
            max_schedule_points=limits.max_schedule_points,
            max_seed=limits.max_seed,
        ),
        defaults=Defaults(
            sampler=read_sampler(defaults.sampler),
            steps=defaults.steps,
            guidance_scale=defaults.guidance_scale,
            width=defaults.width,
            height=defaults.height,
        ),
        inpainting=message.inpainting,
        takes_size_conditioning=message.takes_size_conditioning,
        image_formats=tuple(_FORMAT_NAMES.get(number, f"unknown-{number}") for number in message.image_formats),
        library_versions=dict(message.library_versions),
    )


def _read_samplers(message: pb.ServerInfo) -> tuple[Sampler, ...]:
    """Samplers in the server's order; of one that says no more, only the name."""
    infos = {info.sampler: info for info in message.sampler_infos}
    return tuple(_read_sampler_info(infos.get(number, pb.SamplerInfo(sampler=number))) for number in message.samplers)


def _read_sampler_info(info: pb.SamplerInfo) -> Sampler:
    schedules = [number for number in info.sigma_schedules if number != pb.SIGMA_SCHEDULE_UNSPECIFIED]
    names = tuple(_SIGMA_NAMES.get(number, f"unknown-{number}") for number in schedules)
    return Sampler(read_sampler(info.sampler), names, info.takes_timesteps)
