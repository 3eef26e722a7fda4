from loramux.v1 import adapter_pb2 as _adapter_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Sampler(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAMPLER_UNSPECIFIED: _ClassVar[Sampler]
    SAMPLER_DDIM: _ClassVar[Sampler]
    SAMPLER_PNDM: _ClassVar[Sampler]
    SAMPLER_EULER: _ClassVar[Sampler]
    SAMPLER_EULER_ANCESTRAL: _ClassVar[Sampler]
    SAMPLER_DPMPP_2M: _ClassVar[Sampler]
    SAMPLER_HEUN: _ClassVar[Sampler]
    SAMPLER_DPMPP_2M_SDE: _ClassVar[Sampler]
    SAMPLER_DPMPP_SDE: _ClassVar[Sampler]
    SAMPLER_UNIPC: _ClassVar[Sampler]
    SAMPLER_LCM: _ClassVar[Sampler]

class SigmaSchedule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIGMA_SCHEDULE_UNSPECIFIED: _ClassVar[SigmaSchedule]
    SIGMA_SCHEDULE_KARRAS: _ClassVar[SigmaSchedule]
    SIGMA_SCHEDULE_EXPONENTIAL: _ClassVar[SigmaSchedule]
    SIGMA_SCHEDULE_BETA: _ClassVar[SigmaSchedule]

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_JPEG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_WEBP: _ClassVar[ImageFormat]
    IMAGE_FORMAT_LATENTS: _ClassVar[ImageFormat]

class PromptSyntax(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROMPT_SYNTAX_UNSPECIFIED: _ClassVar[PromptSyntax]
    PROMPT_SYNTAX_WEIGHTED: _ClassVar[PromptSyntax]
    PROMPT_SYNTAX_PLAIN: _ClassVar[PromptSyntax]

class LongPrompt(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LONG_PROMPT_UNSPECIFIED: _ClassVar[LongPrompt]
    LONG_PROMPT_CHUNKS: _ClassVar[LongPrompt]
    LONG_PROMPT_CUT: _ClassVar[LongPrompt]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_BATCH: _ClassVar[Priority]
SAMPLER_UNSPECIFIED: Sampler
SAMPLER_DDIM: Sampler
SAMPLER_PNDM: Sampler
SAMPLER_EULER: Sampler
SAMPLER_EULER_ANCESTRAL: Sampler
SAMPLER_DPMPP_2M: Sampler
SAMPLER_HEUN: Sampler
SAMPLER_DPMPP_2M_SDE: Sampler
SAMPLER_DPMPP_SDE: Sampler
SAMPLER_UNIPC: Sampler
SAMPLER_LCM: Sampler
SIGMA_SCHEDULE_UNSPECIFIED: SigmaSchedule
SIGMA_SCHEDULE_KARRAS: SigmaSchedule
SIGMA_SCHEDULE_EXPONENTIAL: SigmaSchedule
SIGMA_SCHEDULE_BETA: SigmaSchedule
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat
IMAGE_FORMAT_JPEG: ImageFormat
IMAGE_FORMAT_WEBP: ImageFormat
IMAGE_FORMAT_LATENTS: ImageFormat
PROMPT_SYNTAX_UNSPECIFIED: PromptSyntax
PROMPT_SYNTAX_WEIGHTED: PromptSyntax
PROMPT_SYNTAX_PLAIN: PromptSyntax
LONG_PROMPT_UNSPECIFIED: LongPrompt
LONG_PROMPT_CHUNKS: LongPrompt
LONG_PROMPT_CUT: LongPrompt
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_NORMAL: Priority
PRIORITY_BATCH: Priority

class PartWeights(_message.Message):
    __slots__ = ("unet", "text_encoder", "blocks", "text_encoder_2")
    class BlocksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    UNET_FIELD_NUMBER: _ClassVar[int]
    TEXT_ENCODER_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TEXT_ENCODER_2_FIELD_NUMBER: _ClassVar[int]
    unet: float
    text_encoder: float
    blocks: _containers.ScalarMap[str, float]
    text_encoder_2: float
    def __init__(self, unet: _Optional[float] = ..., text_encoder: _Optional[float] = ..., blocks: _Optional[_Mapping[str, float]] = ..., text_encoder_2: _Optional[float] = ...) -> None: ...

class SchedulePoint(_message.Message):
    __slots__ = ("progress", "factor")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    progress: float
    factor: float
    def __init__(self, progress: _Optional[float] = ..., factor: _Optional[float] = ...) -> None: ...

class BlendEntry(_message.Message):
    __slots__ = ("adapter", "weight", "part_weights", "schedule")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PART_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    weight: float
    part_weights: PartWeights
    schedule: _containers.RepeatedCompositeFieldContainer[SchedulePoint]
    def __init__(self, adapter: _Optional[str] = ..., weight: _Optional[float] = ..., part_weights: _Optional[_Union[PartWeights, _Mapping]] = ..., schedule: _Optional[_Iterable[_Union[SchedulePoint, _Mapping]]] = ...) -> None: ...

class Blend(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[BlendEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[BlendEntry, _Mapping]]] = ...) -> None: ...

class SizeConditioning(_message.Message):
    __slots__ = ("original_width", "original_height", "crop_left", "crop_top", "target_width", "target_height")
    ORIGINAL_WIDTH_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    CROP_LEFT_FIELD_NUMBER: _ClassVar[int]
    CROP_TOP_FIELD_NUMBER: _ClassVar[int]
    TARGET_WIDTH_FIELD_NUMBER: _ClassVar[int]
    TARGET_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    original_width: int
    original_height: int
    crop_left: int
    crop_top: int
    target_width: int
    target_height: int
    def __init__(self, original_width: _Optional[int] = ..., original_height: _Optional[int] = ..., crop_left: _Optional[int] = ..., crop_top: _Optional[int] = ..., target_width: _Optional[int] = ..., target_height: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "negative_prompt", "blend", "prompt_syntax", "long_prompt", "clip_skip", "negative_blend", "sampler", "steps", "guidance_scale", "seed", "num_images", "sigma_schedule", "guidance_rescale", "timesteps", "width", "height", "size_conditioning", "negative_size_conditioning", "image_format", "quality", "omit_parameters", "preview_every", "image", "strength", "mask", "mask_blur", "priority", "request_id")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    BLEND_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SYNTAX_FIELD_NUMBER: _ClassVar[int]
    LONG_PROMPT_FIELD_NUMBER: _ClassVar[int]
    CLIP_SKIP_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_BLEND_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NUM_IMAGES_FIELD_NUMBER: _ClassVar[int]
    SIGMA_SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_RESCALE_FIELD_NUMBER: _ClassVar[int]
    TIMESTEPS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    SIZE_CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_SIZE_CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    OMIT_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_EVERY_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    MASK_BLUR_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    negative_prompt: str
    blend: Blend
    prompt_syntax: PromptSyntax
    long_prompt: LongPrompt
    clip_skip: int
    negative_blend: Blend
    sampler: Sampler
    steps: int
    guidance_scale: float
    seed: int
    num_images: int
    sigma_schedule: SigmaSchedule
    guidance_rescale: float
    timesteps: _containers.RepeatedScalarFieldContainer[int]
    width: int
    height: int
    size_conditioning: SizeConditioning
    negative_size_conditioning: SizeConditioning
    image_format: ImageFormat
    quality: int
    omit_parameters: bool
    preview_every: int
    image: bytes
    strength: float
    mask: bytes
    mask_blur: float
    priority: Priority
    request_id: str
    def __init__(self, prompt: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., blend: _Optional[_Union[Blend, _Mapping]] = ..., prompt_syntax: _Optional[_Union[PromptSyntax, str]] = ..., long_prompt: _Optional[_Union[LongPrompt, str]] = ..., clip_skip: _Optional[int] = ..., negative_blend: _Optional[_Union[Blend, _Mapping]] = ..., sampler: _Optional[_Union[Sampler, str]] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., seed: _Optional[int] = ..., num_images: _Optional[int] = ..., sigma_schedule: _Optional[_Union[SigmaSchedule, str]] = ..., guidance_rescale: _Optional[float] = ..., timesteps: _Optional[_Iterable[int]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., size_conditioning: _Optional[_Union[SizeConditioning, _Mapping]] = ..., negative_size_conditioning: _Optional[_Union[SizeConditioning, _Mapping]] = ..., image_format: _Optional[_Union[ImageFormat, str]] = ..., quality: _Optional[int] = ..., omit_parameters: _Optional[bool] = ..., preview_every: _Optional[int] = ..., image: _Optional[bytes] = ..., strength: _Optional[float] = ..., mask: _Optional[bytes] = ..., mask_blur: _Optional[float] = ..., priority: _Optional[_Union[Priority, str]] = ..., request_id: _Optional[str] = ...) -> None: ...

class AppliedAdapter(_message.Message):
    __slots__ = ("adapter", "version", "digest", "weight", "part_weights", "schedule", "kind", "trigger", "bundled_triggers")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PART_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    BUNDLED_TRIGGERS_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    version: int
    digest: str
    weight: float
    part_weights: PartWeights
    schedule: _containers.RepeatedCompositeFieldContainer[SchedulePoint]
    kind: _adapter_pb2.AdapterKind
    trigger: str
    bundled_triggers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, adapter: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., weight: _Optional[float] = ..., part_weights: _Optional[_Union[PartWeights, _Mapping]] = ..., schedule: _Optional[_Iterable[_Union[SchedulePoint, _Mapping]]] = ..., kind: _Optional[_Union[_adapter_pb2.AdapterKind, str]] = ..., trigger: _Optional[str] = ..., bundled_triggers: _Optional[_Iterable[str]] = ...) -> None: ...

class Applied(_message.Message):
    __slots__ = ("adapters", "seed", "sampler", "steps", "guidance_scale", "width", "height", "base_digest", "server_version", "sigma_schedule", "guidance_rescale", "timesteps", "prompt_syntax", "long_prompt", "clip_skip", "negative_adapters", "has_negative_blend", "strength", "image_sha256", "mask_sha256", "mask_blur", "size_conditioning", "negative_size_conditioning")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    SIGMA_SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_RESCALE_FIELD_NUMBER: _ClassVar[int]
    TIMESTEPS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SYNTAX_FIELD_NUMBER: _ClassVar[int]
    LONG_PROMPT_FIELD_NUMBER: _ClassVar[int]
    CLIP_SKIP_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    HAS_NEGATIVE_BLEND_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    MASK_SHA256_FIELD_NUMBER: _ClassVar[int]
    MASK_BLUR_FIELD_NUMBER: _ClassVar[int]
    SIZE_CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_SIZE_CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[AppliedAdapter]
    seed: int
    sampler: Sampler
    steps: int
    guidance_scale: float
    width: int
    height: int
    base_digest: str
    server_version: str
    sigma_schedule: SigmaSchedule
    guidance_rescale: float
    timesteps: _containers.RepeatedScalarFieldContainer[int]
    prompt_syntax: PromptSyntax
    long_prompt: LongPrompt
    clip_skip: int
    negative_adapters: _containers.RepeatedCompositeFieldContainer[AppliedAdapter]
    has_negative_blend: bool
    strength: float
    image_sha256: str
    mask_sha256: str
    mask_blur: float
    size_conditioning: SizeConditioning
    negative_size_conditioning: SizeConditioning
    def __init__(self, adapters: _Optional[_Iterable[_Union[AppliedAdapter, _Mapping]]] = ..., seed: _Optional[int] = ..., sampler: _Optional[_Union[Sampler, str]] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., base_digest: _Optional[str] = ..., server_version: _Optional[str] = ..., sigma_schedule: _Optional[_Union[SigmaSchedule, str]] = ..., guidance_rescale: _Optional[float] = ..., timesteps: _Optional[_Iterable[int]] = ..., prompt_syntax: _Optional[_Union[PromptSyntax, str]] = ..., long_prompt: _Optional[_Union[LongPrompt, str]] = ..., clip_skip: _Optional[int] = ..., negative_adapters: _Optional[_Iterable[_Union[AppliedAdapter, _Mapping]]] = ..., has_negative_blend: _Optional[bool] = ..., strength: _Optional[float] = ..., image_sha256: _Optional[str] = ..., mask_sha256: _Optional[str] = ..., mask_blur: _Optional[float] = ..., size_conditioning: _Optional[_Union[SizeConditioning, _Mapping]] = ..., negative_size_conditioning: _Optional[_Union[SizeConditioning, _Mapping]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("index", "seed", "format", "width", "height", "data")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    index: int
    seed: int
    format: ImageFormat
    width: int
    height: int
    data: bytes
    def __init__(self, index: _Optional[int] = ..., seed: _Optional[int] = ..., format: _Optional[_Union[ImageFormat, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_seconds", "denoise_seconds", "decode_seconds", "total_seconds")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DENOISE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    denoise_seconds: float
    decode_seconds: float
    total_seconds: float
    def __init__(self, queue_seconds: _Optional[float] = ..., denoise_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("images", "applied", "timings")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    applied: Applied
    timings: Timings
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., applied: _Optional[_Union[Applied, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class GenerateEvent(_message.Message):
    __slots__ = ("queued", "started", "step", "image", "done", "preview")
    class Queued(_message.Message):
        __slots__ = ("position",)
        POSITION_FIELD_NUMBER: _ClassVar[int]
        position: int
        def __init__(self, position: _Optional[int] = ...) -> None: ...
    class Started(_message.Message):
        __slots__ = ("applied",)
        APPLIED_FIELD_NUMBER: _ClassVar[int]
        applied: Applied
        def __init__(self, applied: _Optional[_Union[Applied, _Mapping]] = ...) -> None: ...
    class Step(_message.Message):
        __slots__ = ("image_index", "step", "total")
        IMAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        TOTAL_FIELD_NUMBER: _ClassVar[int]
        image_index: int
        step: int
        total: int
        def __init__(self, image_index: _Optional[int] = ..., step: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...
    class Preview(_message.Message):
        __slots__ = ("image_index", "step", "jpeg")
        IMAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        JPEG_FIELD_NUMBER: _ClassVar[int]
        image_index: int
        step: int
        jpeg: bytes
        def __init__(self, image_index: _Optional[int] = ..., step: _Optional[int] = ..., jpeg: _Optional[bytes] = ...) -> None: ...
    class Done(_message.Message):
        __slots__ = ("timings",)
        TIMINGS_FIELD_NUMBER: _ClassVar[int]
        timings: Timings
        def __init__(self, timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    queued: GenerateEvent.Queued
    started: GenerateEvent.Started
    step: GenerateEvent.Step
    image: Image
    done: GenerateEvent.Done
    preview: GenerateEvent.Preview
    def __init__(self, queued: _Optional[_Union[GenerateEvent.Queued, _Mapping]] = ..., started: _Optional[_Union[GenerateEvent.Started, _Mapping]] = ..., step: _Optional[_Union[GenerateEvent.Step, _Mapping]] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., done: _Optional[_Union[GenerateEvent.Done, _Mapping]] = ..., preview: _Optional[_Union[GenerateEvent.Preview, _Mapping]] = ...) -> None: ...

class ServerInfo(_message.Message):
    __slots__ = ("server_version", "base", "base_digest", "layout", "layout_digest", "device", "samplers", "limits", "defaults", "inpainting", "family", "distilled", "text_widths", "takes_size_conditioning", "sampler_infos", "image_formats", "library_versions")
    class TextWidthsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class LibraryVersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SAMPLERS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    INPAINTING_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    DISTILLED_FIELD_NUMBER: _ClassVar[int]
    TEXT_WIDTHS_FIELD_NUMBER: _ClassVar[int]
    TAKES_SIZE_CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_INFOS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMATS_FIELD_NUMBER: _ClassVar[int]
    LIBRARY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    base: str
    base_digest: str
    layout: str
    layout_digest: str
    device: str
    samplers: _containers.RepeatedScalarFieldContainer[Sampler]
    limits: Limits
    defaults: Defaults
    inpainting: bool
    family: str
    distilled: str
    text_widths: _containers.ScalarMap[str, int]
    takes_size_conditioning: bool
    sampler_infos: _containers.RepeatedCompositeFieldContainer[SamplerInfo]
    image_formats: _containers.RepeatedScalarFieldContainer[ImageFormat]
    library_versions: _containers.ScalarMap[str, str]
    def __init__(self, server_version: _Optional[str] = ..., base: _Optional[str] = ..., base_digest: _Optional[str] = ..., layout: _Optional[str] = ..., layout_digest: _Optional[str] = ..., device: _Optional[str] = ..., samplers: _Optional[_Iterable[_Union[Sampler, str]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., defaults: _Optional[_Union[Defaults, _Mapping]] = ..., inpainting: _Optional[bool] = ..., family: _Optional[str] = ..., distilled: _Optional[str] = ..., text_widths: _Optional[_Mapping[str, int]] = ..., takes_size_conditioning: _Optional[bool] = ..., sampler_infos: _Optional[_Iterable[_Union[SamplerInfo, _Mapping]]] = ..., image_formats: _Optional[_Iterable[_Union[ImageFormat, str]]] = ..., library_versions: _Optional[_Mapping[str, str]] = ...) -> None: ...

class SamplerInfo(_message.Message):
    __slots__ = ("sampler", "sigma_schedules", "takes_timesteps")
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    SIGMA_SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    TAKES_TIMESTEPS_FIELD_NUMBER: _ClassVar[int]
    sampler: Sampler
    sigma_schedules: _containers.RepeatedScalarFieldContainer[SigmaSchedule]
    takes_timesteps: bool
    def __init__(self, sampler: _Optional[_Union[Sampler, str]] = ..., sigma_schedules: _Optional[_Iterable[_Union[SigmaSchedule, str]]] = ..., takes_timesteps: _Optional[bool] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("size_multiple", "max_side", "max_steps", "max_images", "max_blend_entries", "max_blend_rank", "max_upload_bytes", "min_side", "max_image_bytes", "max_image_pixels", "max_weight", "max_guidance_scale", "max_prompt_characters", "max_schedule_points", "max_seed")
    SIZE_MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_BLEND_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    MAX_BLEND_RANK_FIELD_NUMBER: _ClassVar[int]
    MAX_UPLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MIN_SIDE_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_SCHEDULE_POINTS_FIELD_NUMBER: _ClassVar[int]
    MAX_SEED_FIELD_NUMBER: _ClassVar[int]
    size_multiple: int
    max_side: int
    max_steps: int
    max_images: int
    max_blend_entries: int
    max_blend_rank: int
    max_upload_bytes: int
    min_side: int
    max_image_bytes: int
    max_image_pixels: int
    max_weight: float
    max_guidance_scale: float
    max_prompt_characters: int
    max_schedule_points: int
    max_seed: int
    def __init__(self, size_multiple: _Optional[int] = ..., max_side: _Optional[int] = ..., max_steps: _Optional[int] = ..., max_images: _Optional[int] = ..., max_blend_entries: _Optional[int] = ..., max_blend_rank: _Optional[int] = ..., max_upload_bytes: _Optional[int] = ..., min_side: _Optional[int] = ..., max_image_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_weight: _Optional[float] = ..., max_guidance_scale: _Optional[float] = ..., max_prompt_characters: _Optional[int] = ..., max_schedule_points: _Optional[int] = ..., max_seed: _Optional[int] = ...) -> None: ...

class Defaults(_message.Message):
    __slots__ = ("sampler", "steps", "guidance_scale", "width", "height")
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    sampler: Sampler
    steps: int
    guidance_scale: float
    width: int
    height: int
    def __init__(self, sampler: _Optional[_Union[Sampler, str]] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...
