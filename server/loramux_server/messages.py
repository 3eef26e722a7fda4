"""Messages of the generation service to the server's frozen values and back, field by field; nothing else.

Together with the services and `adapter_messages` this is the only place in the server that knows protobuf.
"""

import re
from collections.abc import Mapping, Sized
from dataclasses import asdict, fields
from hashlib import sha256
from typing import Any, TypeVar

from loramux.v1 import generation_pb2
from loramux_server import admission, images
from loramux_server.adapter_messages import KIND_NUMBERS
from loramux_server.admission import BaseFacts
from loramux_server.embeddings import bundled_triggers
from loramux_server.errors import InvalidRequest, Violation
from loramux_server.requests import (
    QUALITY,
    AskedSizes,
    BlendEntry,
    Done,
    GenerationRequest,
    ImageFormat,
    ImageReady,
    Job,
    LongPrompt,
    Output,
    PartWeights,
    Preview,
    Priority,
    PromptSyntax,
    Queued,
    Sampler,
    SamplerFacts,
    ServerFacts,
    SigmaSchedule,
    SizeConditioning,
    Started,
    Stepped,
    TextMode,
    Timings,
    Told,
    Weighted,
)

T = TypeVar("T")

SAMPLERS = {
    generation_pb2.SAMPLER_DDIM: Sampler.DDIM,
    generation_pb2.SAMPLER_PNDM: Sampler.PNDM,
    generation_pb2.SAMPLER_EULER: Sampler.EULER,
    generation_pb2.SAMPLER_EULER_ANCESTRAL: Sampler.EULER_ANCESTRAL,
    generation_pb2.SAMPLER_DPMPP_2M: Sampler.DPMPP_2M,
    generation_pb2.SAMPLER_HEUN: Sampler.HEUN,
    generation_pb2.SAMPLER_DPMPP_2M_SDE: Sampler.DPMPP_2M_SDE,
    generation_pb2.SAMPLER_DPMPP_SDE: Sampler.DPMPP_SDE,
    generation_pb2.SAMPLER_UNIPC: Sampler.UNIPC,
    generation_pb2.SAMPLER_LCM: Sampler.LCM,
}
_SIGMA_SCHEDULES = {
    generation_pb2.SIGMA_SCHEDULE_UNSPECIFIED: SigmaSchedule.BASE,
    generation_pb2.SIGMA_SCHEDULE_KARRAS: SigmaSchedule.KARRAS,
    generation_pb2.SIGMA_SCHEDULE_EXPONENTIAL: SigmaSchedule.EXPONENTIAL,
    generation_pb2.SIGMA_SCHEDULE_BETA: SigmaSchedule.BETA,
}
_SYNTAXES = {
    generation_pb2.PROMPT_SYNTAX_UNSPECIFIED: PromptSyntax.WEIGHTED,
    generation_pb2.PROMPT_SYNTAX_WEIGHTED: PromptSyntax.WEIGHTED,
    generation_pb2.PROMPT_SYNTAX_PLAIN: PromptSyntax.PLAIN,
}
_LONG_PROMPTS = {
    generation_pb2.LONG_PROMPT_UNSPECIFIED: LongPrompt.CHUNKS,
    generation_pb2.LONG_PROMPT_CHUNKS: LongPrompt.CHUNKS,
    generation_pb2.LONG_PROMPT_CUT: LongPrompt.CUT,
}
_SYNTAX_NUMBERS = {syntax: number for number, syntax in _SYNTAXES.items()}
_LONG_PROMPT_NUMBERS = {long: number for number, long in _LONG_PROMPTS.items()}
_SIGMA_NUMBERS = {schedule: number for number, schedule in _SIGMA_SCHEDULES.items()}
_SAMPLER_NUMBERS = {sampler: number for number, sampler in SAMPLERS.items()}
_FORMATS = {
    generation_pb2.IMAGE_FORMAT_UNSPECIFIED: ImageFormat.PNG,
    generation_pb2.IMAGE_FORMAT_PNG: ImageFormat.PNG,
    generation_pb2.IMAGE_FORMAT_JPEG: ImageFormat.JPEG,
    generation_pb2.IMAGE_FORMAT_WEBP: ImageFormat.WEBP,
    generation_pb2.IMAGE_FORMAT_LATENTS: ImageFormat.LATENTS,
}
_PRIORITIES = {
    generation_pb2.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    generation_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    generation_pb2.PRIORITY_NORMAL: Priority.NORMAL,
    generation_pb2.PRIORITY_BATCH: Priority.BATCH,
}
_FORMAT_NUMBERS = {format: number for number, format in _FORMATS.items()}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id(message: generation_pb2.GenerateRequest) -> str:
    """Empty where there is none.

    Raises:
        InvalidRequest: for one of another form.
    """
    if message.request_id and not _REQUEST_ID.fullmatch(message.request_id):
        expected = "expected 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', best a random UUID"
        raise InvalidRequest((Violation("request_id", f"is {message.request_id!r}, {expected}"),))
    return message.request_id


def digest(message: generation_pb2.GenerateRequest) -> bytes:
    """Of all that a request says. Where it brings images this takes long."""
    return sha256(message.SerializeToString(deterministic=True)).digest()


def generation_request(message: generation_pb2.GenerateRequest) -> GenerationRequest:
    """The request, with None for fields that were left open.

    Raises:
        InvalidRequest: for an enum number this server does not know, and where there is more of something than any
            request has: a message may hold millions, each of which becomes a value.
    """
    _few("timesteps", message.timesteps, admission.MAX_STEPS)
    sampler = None
    if message.sampler != generation_pb2.SAMPLER_UNSPECIFIED:
        sampler = _known("sampler", message.sampler, SAMPLERS)
    return GenerationRequest(
        prompt=message.prompt,
        negative_prompt=message.negative_prompt,
        text_mode=TextMode(
            _known("prompt_syntax", message.prompt_syntax, _SYNTAXES),
            _known("long_prompt", message.long_prompt, _LONG_PROMPTS),
            message.clip_skip,
        ),
        blend=_blend("blend", message.blend),
        negative_blend=_blend("negative_blend", message.negative_blend) if message.HasField("negative_blend") else None,
        sampler=sampler,
        sigma_schedule=_known("sigma_schedule", message.sigma_schedule, _SIGMA_SCHEDULES),
        steps=message.steps if message.HasField("steps") else None,
        timesteps=tuple(message.timesteps),
        guidance_scale=message.guidance_scale if message.HasField("guidance_scale") else None,
        guidance_rescale=message.guidance_rescale if message.HasField("guidance_rescale") else None,
        seed=message.seed if message.HasField("seed") else None,
        num_images=message.num_images if message.HasField("num_images") else None,
        width=message.width if message.HasField("width") else None,
        height=message.height if message.HasField("height") else None,
        output=Output(
            format=_known("image_format", message.image_format, _FORMATS),
            quality=message.quality if message.HasField("quality") else QUALITY,
            parameters=not message.omit_parameters,
            preview_every=message.preview_every,
        ),
        image=message.image if message.HasField("image") else None,
        strength=message.strength if message.HasField("strength") else None,
        mask=message.mask if message.HasField("mask") else None,
        mask_blur=message.mask_blur if message.HasField("mask_blur") else None,
        priority=_known("priority", message.priority, _PRIORITIES),
        sizes=_asked_sizes(message, "size_conditioning"),
        negative_sizes=_asked_sizes(message, "negative_size_conditioning"),
    )


def _asked_sizes(message: generation_pb2.GenerateRequest, field: str) -> AskedSizes | None:
    if not message.HasField(field):  # pyright: ignore[reportArgumentType]
        return None
    sizes: generation_pb2.SizeConditioning = getattr(message, field)
    names = [each.name for each in fields(AskedSizes)]
    return AskedSizes(**{name: getattr(sizes, name) for name in names if sizes.HasField(name)})  # pyright: ignore[reportArgumentType]


def _blend(field: str, message: generation_pb2.Blend) -> tuple[BlendEntry, ...]:
    _few(f"{field}.entries", message.entries, admission.MAX_ENTRIES)
    for index, entry in enumerate(message.entries):
        where = f"{field}.entries[{index}]"
        _few(f"{where}.schedule", entry.schedule, admission.MAX_POINTS)
        _few(f"{where}.part_weights.blocks", entry.part_weights.blocks, admission.MAX_BLOCKS)
    return tuple(
        BlendEntry(
            entry.adapter,
            entry.weight if entry.HasField("weight") else None,
            _parts(entry.part_weights),
            tuple((point.progress, point.factor) for point in entry.schedule),
        )
        for entry in message.entries
    )


def _few(field: str, values: Sized, most: int) -> None:
    if len(values) > most:
        raise InvalidRequest((Violation(field, f"is {len(values)}, expected 0 to {most}"),))


def _parts(message: generation_pb2.PartWeights) -> PartWeights:
    return PartWeights(
        unet=message.unet if message.HasField("unet") else 1.0,
        text_encoder=message.text_encoder if message.HasField("text_encoder") else 1.0,
        text_encoder_2=message.text_encoder_2 if message.HasField("text_encoder_2") else 1.0,
        blocks=tuple(sorted(message.blocks.items())),
    )


def applied(job: Job, base: BaseFacts, server_version: str) -> generation_pb2.Applied:
    """Everything the job's pictures depend on."""
    return generation_pb2.Applied(
        adapters=map(_applied_adapter, job.blend),
        negative_adapters=map(_applied_adapter, job.negative_blend or ()),
        has_negative_blend=job.negative_blend is not None,
        seed=job.seed,
        sampler=_SAMPLER_NUMBERS[job.sampling.sampler],
        steps=job.sampling.steps,
        sigma_schedule=_SIGMA_NUMBERS[job.sampling.sigma_schedule],
        timesteps=job.sampling.timesteps,
        guidance_scale=job.sampling.guidance_scale,
        guidance_rescale=job.sampling.guidance_rescale,
        prompt_syntax=_SYNTAX_NUMBERS[job.text_mode.syntax],
        long_prompt=_LONG_PROMPT_NUMBERS[job.text_mode.long_prompt],
        clip_skip=job.text_mode.clip_skip,
        width=job.width,
        height=job.height,
        base_digest=base.digest,
        server_version=server_version,
        strength=job.sampling.strength,
        image_sha256=job.source.image_digest if job.source else "",
        mask_sha256=job.source.mask_digest if job.source else "",
        mask_blur=job.source.mask_blur if job.source else 0.0,
        size_conditioning=_sizes(job.sizes),
        negative_size_conditioning=_sizes(job.negative_sizes),
    )


def _sizes(sizes: SizeConditioning | None) -> generation_pb2.SizeConditioning | None:
    return None if sizes is None else generation_pb2.SizeConditioning(**asdict(sizes))


def _applied_adapter(weighted: Weighted) -> generation_pb2.AppliedAdapter:
    parts = weighted.parts
    return generation_pb2.AppliedAdapter(
        adapter=weighted.version.adapter,
        version=weighted.version.number,
        digest=weighted.version.digest,
        weight=weighted.weight,
        part_weights=generation_pb2.PartWeights(
            unet=parts.unet,
            text_encoder=parts.text_encoder,
            text_encoder_2=parts.text_encoder_2,
            blocks=dict(parts.blocks),
        ),
        schedule=[generation_pb2.SchedulePoint(progress=at, factor=factor) for at, factor in weighted.schedule],
        kind=KIND_NUMBERS[weighted.version.kind],
        trigger=weighted.version.embedding.trigger if weighted.version.embedding else "",
        bundled_triggers=bundled_triggers(weighted),
    )


def event(happened: Told, base: BaseFacts, server_version: str) -> generation_pb2.GenerateEvent:
    """One event of a stream."""
    kinds = generation_pb2.GenerateEvent
    match happened:
        case Queued(position):
            return kinds(queued=kinds.Queued(position=position))
        case Started(job):
            return kinds(started=kinds.Started(applied=applied(job, base, server_version)))
        case Stepped(index, step, total):
            return kinds(step=kinds.Step(image_index=index, step=step, total=total))
        case Preview(index, step, jpeg):
            return kinds(preview=kinds.Preview(image_index=index, step=step, jpeg=jpeg))
        case ImageReady():
            return kinds(image=image(happened))
        case Done(times):
            return kinds(done=kinds.Done(timings=timings(times)))


def image(ready: ImageReady) -> generation_pb2.Image:
    """A finished picture."""
    return generation_pb2.Image(
        index=ready.index,
        seed=ready.seed,
        format=_FORMAT_NUMBERS[ready.format],
        width=ready.width,
        height=ready.height,
        data=ready.data,
    )


def timings(times: Timings) -> generation_pb2.Timings:
    """Seconds by phase."""
    return generation_pb2.Timings(
        queue_seconds=times.queue,
        denoise_seconds=times.denoise,
        decode_seconds=times.decode,
        total_seconds=times.total,
    )


def server_info(base: BaseFacts, server: ServerFacts) -> generation_pb2.ServerInfo:
    """What this server is and can do."""
    return generation_pb2.ServerInfo(
        server_version=server.version,
        base=base.name,
        base_digest=base.digest,
        layout=base.layout_name,
        layout_digest=base.layout_digest,
        device=server.device,
        family=base.family,
        distilled=base.distilled,
        samplers=[_SAMPLER_NUMBERS[each.sampler] for each in server.samplers],
        sampler_infos=map(_sampler_info, server.samplers),
        image_formats=sorted(_FORMAT_NUMBERS.values()),
        library_versions=dict(server.libraries),
        takes_size_conditioning=base.size_conditioned,
        limits=generation_pb2.Limits(
            size_multiple=base.size_multiple,
            min_side=base.min_side,
            max_side=base.max_side,
            max_steps=admission.MAX_STEPS,
            max_images=admission.MAX_IMAGES,
            max_blend_entries=admission.MAX_ENTRIES,
            max_blend_rank=base.max_rank,
            max_upload_bytes=server.max_upload,
            max_image_bytes=images.MAX_BYTES,
            max_image_pixels=images.MAX_PIXELS,
            max_weight=admission.MAX_WEIGHT,
            max_guidance_scale=admission.MAX_GUIDANCE,
            max_prompt_characters=admission.MAX_PROMPT,
            max_schedule_points=admission.MAX_POINTS,
            max_seed=admission.MAX_SEED - admission.MAX_IMAGES,
        ),
        defaults=generation_pb2.Defaults(
            sampler=_SAMPLER_NUMBERS[base.sampler],
            steps=base.steps,
            guidance_scale=base.guidance_scale,
            width=base.side,
            height=base.side,
        ),
        inpainting=base.inpainting,
        text_widths=base.text_widths,
    )


def _sampler_info(facts: SamplerFacts) -> generation_pb2.SamplerInfo:
    return generation_pb2.SamplerInfo(
        sampler=_SAMPLER_NUMBERS[facts.sampler],
        sigma_schedules=[_SIGMA_NUMBERS[schedule] for schedule in facts.sigma_schedules],
        takes_timesteps=facts.takes_timesteps,
    )


def _known(field: str, value: int, known: Mapping[Any, T]) -> T:
    """The value of an enum's number.

    Raises:
        InvalidRequest: for a number this server does not know.
    """
    if value not in known:
        raise _unknown(field, value, sorted(known))
    return known[value]


def _unknown(field: str, value: int, known: object) -> InvalidRequest:
    return InvalidRequest((Violation(field, f"is {value}, expected one of {known}"),))
