"""What requests must know of the base that is loaded: its size, its limits, and what is drawn with where nobody says.

Takes the engine, the base's layout and the settings; gives facts. It knows no request.
"""

from loramux_server.admission import BaseFacts
from loramux_server.engine.engine import Engine
from loramux_server.engine.pipeline import Base, Distilled, Family
from loramux_server.requests import Sampler
from loramux_server.settings import BUILTIN, Settings
from loramux_store.layout import Layout

_BUILTIN_GUIDANCE = 3.0  # what the built-in base's card was measured with
_GUIDANCE = {Family.SD1: 7.5, Family.SD2: 7.5, Family.SDXL: 5.0}  # as diffusers' pipelines have it, like the next
_DISTILLED_GUIDANCE = {Distilled.LCM: 8.5, Distilled.TURBO: 1.0}  # a turbo model knows no unconditional row
_STEPS, _DISTILLED_STEPS = 20, 4


def base_facts(engine: Engine, layout: Layout, settings: Settings) -> BaseFacts:
    """Of the engine's base, under the name that the store knows its layout by."""
    base = engine.base
    return BaseFacts(
        name=base.name,
        digest=base.digest,
        layout_name=layout.name,
        layout_digest=layout.digest,
        side=base.side,
        size_multiple=base.latent_scale,
        min_side=base.min_side,
        max_side=max(settings.max_side, base.side),
        max_rank=engine.max_rank,
        inpainting=base.inpainting,
        guidance_scale=_BUILTIN_GUIDANCE if settings.base == BUILTIN else _guidance(base),
        steps=_DISTILLED_STEPS if base.distilled else _STEPS,
        sampler=_sampler(base),
        family=base.family,
        distilled=base.distilled,
        guidance_embedded=base.guidance_width is not None,
        text_widths=layout.text_widths,
        size_conditioned=base.unet.config["addition_embed_type"] == "text_time",
    )


def _guidance(base: Base) -> float:
    return _DISTILLED_GUIDANCE[base.distilled] if base.distilled else _GUIDANCE[base.family]


def _sampler(base: Base) -> Sampler:
    """LCM and turbo models were distilled for one sampler; others draw well with any."""
    if base.distilled == Distilled.LCM:
        return Sampler.LCM
    if base.distilled == Distilled.TURBO:
        ancestral = "Ancestral" in base.scheduler_config["_class_name"]
        return Sampler.EULER_ANCESTRAL if ancestral else Sampler.EULER
    return Sampler.DPMPP_2M
