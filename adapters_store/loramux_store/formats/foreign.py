"""Files that are something else: other model families, kinds not accepted, no adapter at all.

Takes tensor names and shapes; gives a Refused that says what the file is, or None. Knows no
layouts: what is left is tried against those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from loramux_store.errors import Refused
from loramux_store.formats.leaf import Key
from loramux_store.header import TensorEntry

__all__ = ["kind_refused", "refuse_families", "refuse_kinds", "refuse_other_objects"]

_Sign = tuple[str, tuple[str, ...], re.Pattern[str] | None]
"""(what a file is, words, pattern): a name of it has one of the words, and the pattern somewhere; without words it
begins with the pattern. Words are found fast: patterns tried at every letter of 16 MiB of names took 0.8 s."""


def _begins(what: str, pattern: str) -> _Sign:
    return what, (), re.compile(pattern)


def _holds(what: str, *words: str, pattern: str | None = None) -> _Sign:
    return what, words, None if pattern is None else re.compile(pattern)


# what trainers write before a transformer's first name; names of UNets never go on as those below do
_ROOT = r"(base_model\.model\.)?(model\.)?(diffusion_model\.|transformer\.|lora_unet_|lycoris_)?"
# first match decides; a Flux file of diffusers names has words of both families
_FAMILIES = (
    _begins("cascade", r"lora_prior_(unet|te)_"),
    # its blocks are called as Flux's are, where the dots are left in or inside an MLP otherwise
    _holds(
        "hunyuan_video",
        "double_blocks",
        pattern=r"double_blocks\.\d+\.(img|txt)_attn_(qkv|proj)|double_blocks[._]\d+[._](img|txt)_mlp[._]fc[12]",
    ),
    _holds("hunyuan_video", "individual_token_refiner"),
    _holds("flux", "double_blocks", "single_blocks", "single_transformer_blocks"),
    _holds("sd3", "joint_blocks", "context_embedder", "add_q_proj"),
    _begins(
        "wan", rf"{_ROOT}blocks[._]\d+[._]((self|cross)_attn[._](q|k|v|o|k_img|v_img|norm_[qk])|ffn[._][02])(\.|\Z)"
    ),
    # Z-Image, Lumina, Hunyuan-DiT, Qwen, LTX, PixArt and others, whose names are those of several
    _holds("dit", "joint_transformer_blocks"),
    _begins(
        "dit",
        rf"lora_transformer_|transformer\.(?!resblocks\.)|lora_te3_|text_encoder_3\.|"
        rf"(lora_te\d?_|text_encoder(_2)?\.)encoder[._]block[._]\d|"
        rf"{_ROOT}(transformer_blocks[._]\d|layers[._]\d+[._]attention[._]|blocks[._]\d+[._]attn[12][._])",
    ),
)
_WHOLE = (
    _begins("control_lora", r"lora_controlnet\Z"),
    _begins("lllite", r"lllite_unet_"),
    _begins(
        "controlnet",
        r"control_model\.|controlnet_(cond_embedding|down_blocks|mid_block)\.|(zero_convs|input_hint_block)\.\d",
    ),
    _begins("ip_adapter", r"(ip_adapter|image_proj(_model)?)\."),
    _holds("ip_adapter", "to_k_ip", "to_v_ip", pattern=r"\.to_[kv]_ip(\.|\Z)"),
    _begins("t2i_adapter", r"(adapter\.)?body\.\d+\.(in_conv|block[12]|resnets\.\d+\.block[12])\."),
    _holds("custom_diffusion", "custom_diffusion", pattern=r"(\.|_)custom_diffusion(\.|\Z)"),
    _begins("positional_lora", r"(unet|text_encoder):\d+:(up|down)\Z"),
    _begins("oft", r"oft_unet_"),
    _begins("hypernetwork", r"\d+\.\d+\.linear\.\d+\.(weight|bias)\Z"),
    _begins(
        "full_checkpoint",
        r"(model\.diffusion_model\..+|cond_stage_model\..+|conditioner\.embedders\..+|"
        r"(unet\.)?((down_blocks|up_blocks|mid_block)\..+|conv_in|time_embedding\..+)|"
        r"(text_encoder\.)?((text_model\.)?(encoder\.layers\.\d+\.(self_attn|mlp|layer_norm\d)\b.*|final_layer_norm)|"
        r"encoder\.(block\.\d+\.layer\.\d+\..+|final_layer_norm)))\.(weight|bias)\Z",
    ),
    _begins(
        "vae",
        r"(first_stage_model\..+|(post_)?quant_conv|(encoder|decoder)\.(conv_(in|out|norm_out)|norm_out|"
        r"(down|mid|up)(_blocks?)?\..+|layers\.\d+(\.conv\.\d+)?))\.(weight|bias)\Z",
    ),
)
# PEFT calls the tensors of its other adapters by their kinds, in one of the last parts of a name
_OF_PEFT = re.compile(
    r"(p?vera|hra|randlora|gralora|hira|delora|fourierft|waveft|tinylora|ln_tuning|psoft|lily|unilora|deft|osf|"
    r"supertuning|beft|peanut|road|shira|miss|c3a|vblora)_[A-Za-z]"
)
_LAST_PARTS = 4
_NAMED_BY_STEM = ("lllite", "control_lora", "oft", "controlnet", "ip_adapter", "t2i_adapter", "custom_diffusion")
_MESSAGES = {
    "lllite": "a ControlNet-LLLite, which is no LoRA",
    "control_lora": "a control-LoRA, which is no LoRA",
    "controlnet": "a ControlNet, which is no LoRA",
    "ip_adapter": "an IP-Adapter (FaceID, InstantID), which is no LoRA",
    "t2i_adapter": "a T2I-Adapter, which is no LoRA",
    "custom_diffusion": "a Custom Diffusion file, whose layers stand in place of the base's",
    "positional_lora": "a cloneofsimo LoRA: it does not store module names",
    "full_checkpoint": "a whole model, not an adapter",
    "vae": "a VAE, not an adapter",
    "hypernetwork": "a hypernetwork, not a LoRA",
    "modules_to_save": "whole layers in place of the base's, which PEFT's modules_to_save adds",
    "bias_all": "the base's biases as trained, which PEFT's bias=all adds",
    "bias_lora_only": "the base's biases as trained, which PEFT's bias=lora_only adds",
    "set_weight": "weights that overwrite the base's",
    "ia3": "an IA3 adapter, whose delta depends on the base",
    "adalora": "an AdaLoRA of PEFT, with singular values beside its factors",
    "kasa": "a KaSA adapter of PEFT, with singular values beside its factors",
    "glora": "a GLoRA, whose delta depends on the base",
    "oft": "an OFT adapter, which turns the base's weights",
    "boft": "a BOFT adapter, which turns the base's weights",
}


def refuse_families(names: Iterable[str]) -> None:
    """Raise for a file made for another model family."""
    listed = list(names)
    for family, words, pattern in _FAMILIES:
        if name := _first(words, pattern, listed):
            raise Refused(
                f"unsupported_family:{family}",
                f"{name!r} belongs to a {family} model; accepted are SD1, SD2 and SDXL",
                {"key": name, "family": family},
            )


def refuse_other_objects(tensors: Mapping[str, TensorEntry], unknown: Iterable[str], *, anything_known: bool) -> None:
    """Raise for a file that is no LoRA at all; unknown: names of no adapter format.

    A weight or a bias among factors does not make a file a whole model: it is one more unknown key.
    """
    unsorted = list(unknown)
    for kind, words, pattern in _WHOLE:
        names = tensors if kind in _NAMED_BY_STEM else () if anything_known else unsorted
        if name := _first(words, pattern, names):
            raise kind_refused(kind, name)
    for name in unsorted:
        for part in name.rsplit(".", _LAST_PARTS)[1:]:
            if found := _OF_PEFT.match(part):
                raise kind_refused(found[1], name)


def refuse_kinds(keys: Iterable[Key], tensors: Mapping[str, TensorEntry]) -> None:
    """Raise for the first tensor of a kind that is not accepted."""
    for key in keys:
        if key.role:
            continue
        kind = key.kind
        if kind == "oft" and len(tensors[key.name].shape) == 4:
            kind = "boft"
        raise kind_refused(kind, key.name)


def kind_refused(kind: str, name: str) -> Refused:
    """The refusal of a tensor of a kind that is not accepted."""
    what = _MESSAGES.get(kind, f"an adapter of the kind {kind}")
    return Refused(
        f"unsupported_kind:{kind}",
        f"{name!r} is part of {what}; it is not accepted",
        {"key": name, "kind": kind},
    )


def _first(words: tuple[str, ...], pattern: re.Pattern[str] | None, names: Iterable[str]) -> str | None:
    if words:
        names = (name for name in names if any(word in name for word in words))
        return next((name for name in names if pattern is None or pattern.search(name)), None)
    return next((name for name in names if pattern and pattern.match(name)), None)
