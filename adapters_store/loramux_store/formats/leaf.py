"""Tensor names, split into the module's stem and what the tensor is to it.

Takes one tensor name; gives a Key (stem, role, family, kind), or None for a name of no known
form. Leaves contain dots, so the longest known suffix is taken. Knows no layouts and no shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Key", "split_key"]


@dataclass(frozen=True, slots=True)
class Key:
    """role: what the tensor is to its module, or "" for a tensor of a kind that is not accepted."""

    name: str
    stem: str
    role: str
    family: str
    kind: str = ""
    infix: str = ""


_ROLES: dict[str, tuple[str, str]] = {
    "lora_down.weight": ("down", "kohya"),
    "lora_up.weight": ("up", "kohya"),
    "lora_mid.weight": ("mid", "kohya"),
    "lora_up.bias": ("up_bias", "kohya"),
    "lora_A.weight": ("down", "peft"),
    "lora_B.weight": ("up", "peft"),
    "lora_B.bias": ("up_bias", "peft"),
    "lora_A": ("down", "peft"),
    "lora_B": ("up", "peft"),
    "lora.down.weight": ("down", "diffusers"),
    "lora.up.weight": ("up", "diffusers"),
    "lora_linear_layer.down.weight": ("down", "diffusers"),
    "lora_linear_layer.up.weight": ("up", "diffusers"),
    "lora.up.bias": ("up_bias", "diffusers"),
    "lora_linear_layer.up.bias": ("up_bias", "diffusers"),
    "alpha": ("alpha", ""),
    "scale": ("scale", ""),
    "dora_scale": ("dora_scale", ""),
    "lora_magnitude_vector": ("magnitude", ""),
    "lora_magnitude_vector.weight": ("magnitude", ""),
    "diff": ("diff", "full"),
    "diff_b": ("diff_b", "full"),
    **{
        name: (name, "lycoris")
        for name in (
            "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a",
            "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "w_norm", "b_norm",
        )
    },
}  # fmt: skip
_KINDS: dict[str, str] = {
    "set_weight": "set_weight",
    "reshape_weight": "set_weight",
    "on_input": "ia3",
    "ia3_l": "ia3",
    "ia3_l.weight": "ia3",
    **dict.fromkeys(("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"), "glora"),
    **dict.fromkeys(("oft_blocks", "oft_diag", "oft_R", "oft_R.weight", "rescale"), "oft"),
    **dict.fromkeys(("boft_R", "boft_s"), "boft"),
    "lora_E": "adalora",
    "lora_diag": "kasa",
    **dict.fromkeys(("lora_embedding_A", "lora_embedding_B"), "lora_embedding"),
}
_INFIXED = {
    "lora_A", "lora_B", "lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B", "lora_E", "lora_diag",
    "oft_R", "boft_R", "boft_s", "ia3_l", *(name for name in _ROLES if name.startswith(("hada_", "lokr_"))),
}  # fmt: skip
_PROJECTIONS = {f"to_{name}_lora": name for name in ("q", "k", "v", "out")}


def split_key(name: str) -> Key | None:
    """What a tensor name says."""
    return _old_attention(name) or _by_suffix(name) or _infixed(name)


def _by_suffix(name: str) -> Key | None:
    parts = name.rsplit(".", 3)
    for count in (3, 2, 1):
        if count >= len(parts):
            continue
        suffix = ".".join(parts[-count:])
        stem = name[: -len(suffix) - 1]
        if suffix in _ROLES:
            role, family = _ROLES[suffix]
            return Key(name, stem, role, family)
        if suffix in _KINDS:
            return Key(name, stem, "", "", _KINDS[suffix])
    return None


def _infixed(name: str) -> Key | None:
    """PEFT with the adapter's name left in: lora_A.default.weight, lora_embedding_A.default."""
    parts = name.rsplit(".", 3)
    tail = 3 if parts[-1] in ("weight", "bias") else 2
    if len(parts) <= tail or parts[-tail] not in _INFIXED:
        return None
    infix = parts[1 - tail]
    plain = ".".join(parts[: 1 - tail] + parts[2 - tail :]) if tail == 3 else name[: -len(infix) - 1]
    key = _by_suffix(plain)
    return key and Key(name, key.stem, key.role, key.family, key.kind, infix)


def _old_attention(name: str) -> Key | None:
    """Diffusers' attention processors: the projection is part of the leaf."""
    stem, *leaf = name.rsplit(".", 3)
    if len(leaf) != 3 or leaf[0] not in _PROJECTIONS or leaf[1] not in ("down", "up") or leaf[2] != "weight":
        return None
    stem, projection = stem.removesuffix(".processor"), _PROJECTIONS[leaf[0]]
    if not stem:
        return None
    if stem.endswith("self_attn"):  # a text encoder
        module = f"{projection}_proj"
    else:
        module = "to_out.0" if projection == "out" else f"to_{projection}"
    return Key(name, f"{stem}.{module}", leaf[1], "diffusers-processor")
