"""Textual inversions: which tensor is which text encoder's vectors, and what their trigger is.

Takes a Container, the options, the name it is published under and the layouts; gives an EmbeddingPlan, None for a file
that is no embedding, or Refused. An embedding fits every layout whose text encoders have its widths: nothing else of
the layout matters to it. Knows no tensor values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loramux_store.errors import InvalidArgument, Refused
from loramux_store.formats.leaf import split_key
from loramux_store.header import Container, TensorEntry
from loramux_store.layout import Layout
from loramux_store.names import MAX_TRIGGER, trigger_fault
from loramux_store.record import AcceptReport, Embedding, InterpretOptions

__all__ = ["MAX_VECTORS", "EmbeddingPlan", "plan_embedding"]

MAX_VECTORS = 75
"""Tokens of a chunk of CLIP's text encoders."""

_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_BUNDLE = "bundle_emb."
_BUNDLED = re.compile(
    r"bundle_emb\.(?P<token>.+)\.(?P<key>emb_params|clip_[lg]|text_encoders_[01]|t5|string_to_param\..+)\Z"
)
_ENCODERS = {
    "emb_params": "text_encoder",
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
    "t5": "t5",
}
_OF_A1111 = "string_to_param."
_IN_BRACKETS = re.compile(r"<.+>\Z")


@dataclass(frozen=True, slots=True)
class EmbeddingPlan:
    """What becomes the compiled file, and what is reported. tensors: [n, width] or [width], by text encoder."""

    container: Container
    layout: Layout
    tensors: Mapping[str, TensorEntry]
    embedding: Embedding
    report: AcceptReport


@dataclass(frozen=True, slots=True)
class _Found:
    """The tensors by text encoder, the token that the file gives them (or none), and the form of the file."""

    tensors: Mapping[str, TensorEntry]
    token: str
    family: str

    @property
    def widths(self) -> dict[str, int]:
        return {encoder: entry.shape[-1] for encoder, entry in self.tensors.items()}


def plan_embedding(
    container: Container,
    options: InterpretOptions,
    name: str,
    layouts: Iterable[Layout],
    wanted: Layout | None = None,
) -> EmbeddingPlan | None:
    """The plan, where the file is an embedding.

    Its trigger is the one of the options, else the token that the file names, else the name of the adapter.

    Raises:
        Refused: `ti_bad_width`, `family_mismatch`, `ti_len_mismatch`, `ti_too_many_vectors`, `ti_several_tokens`,
            `shape_mismatch`, `unsupported_dtype`, `unknown_keys`, `duplicate_module`.
        InvalidArgument: options that only LoRA files have.
    """
    known = list(layouts)
    found = _find(container.tensors, {width for layout in known for width in layout.text_widths.values()})
    if found is None:
        return None
    for field in ("alpha", "peft_config"):
        if (value := getattr(options, field)) is not None:
            raise InvalidArgument(f"options.{field}", value, "none: the file is an embedding")
    vectors = _vectors(found)
    layout, others = _fitting(found, known, wanted)
    usable = found.token if trigger_fault(found.token) is None else ""
    embedding = Embedding(options.trigger or usable or name, vectors, dict(sorted(found.widths.items())))
    widths = " and ".join(f"{width} in {encoder}" for encoder, width in embedding.widths.items())
    evidence = [f"the vectors have the width of {layout.name}: {widths}"]
    if others:
        evidence.append(f"its text encoders have the widths of {', '.join(others)} too: it fits every such base")
    report = AcceptReport(
        layout_name=layout.name,
        layout_digest=layout.digest,
        evidence=tuple(evidence),
        family=found.family,
        matched=(),
        ignored=(),
        warnings=_warnings(found, options, embedding.trigger),
        embedding=embedding,
    )
    return EmbeddingPlan(container, layout, found.tensors, embedding, report)


def _find(tensors: Mapping[str, TensorEntry], widths: set[int]) -> _Found | None:
    if all(name.startswith(_BUNDLE) for name in tensors):
        return _unbundled(tensors)
    names = list(tensors)
    if any(split_key(name) for name in names):
        return None
    known = [name for name in names if (name in _ENCODERS and name != "t5") or name.startswith(_OF_A1111)]
    if known or all(_IN_BRACKETS.match(name) for name in names):
        return _sorted_out(tensors, "")
    only = next(iter(tensors.values()))
    plain = len(names) == 1 and not only.name.endswith((".weight", ".bias"))
    if plain and len(only.shape) in (1, 2) and only.shape[-1] in widths:
        return _sorted_out(tensors, "")
    return None


def _unbundled(tensors: Mapping[str, TensorEntry]) -> _Found:
    """The one embedding of a file of bundled ones. The trigger may contain dots: the key is what ends the name."""
    inside: dict[str, TensorEntry] = {}
    tokens: dict[str, str] = {}
    for name, entry in sorted(tensors.items()):
        match = _BUNDLED.match(name)
        if match is None:
            raise _unknown(name)
        tokens.setdefault(match["token"], name)
        inside[match["key"]] = entry
    _check_one_token(tokens)
    return _sorted_out(inside, next(iter(tokens)))


def _sorted_out(tensors: Mapping[str, TensorEntry], token: str) -> _Found:
    """Every tensor by its text encoder. token: what a bundle says it is called."""
    parts: dict[str, TensorEntry] = {}
    tokens: dict[str, str] = {}
    families: set[str] = set()
    for key, entry in sorted(tensors.items()):
        _check_shape(entry)
        family, encoder, said = _part(key, alone=len(tensors) == 1)
        families.add(family)
        tokens[said] = key
        _check_one_token(tokens)
        if encoder in parts:
            raise Refused(
                "duplicate_module",
                f"{parts[encoder].name!r} and {entry.name!r} are both vectors of {encoder}",
                {"key": entry.name, "other": parts[encoder].name, "module": encoder},
            )
        parts[encoder] = entry
    (said,) = tokens
    return _Found(parts, token or said, "bundle" if token else "+".join(sorted(families)))


def _part(key: str, *, alone: bool) -> tuple[str, str, str]:
    """(form of the file, text encoder, token) that a key stands for."""
    if key in _ENCODERS:
        return ("emb_params" if key == "emb_params" else "clip"), _ENCODERS[key], ""
    if key.startswith(_OF_A1111):
        return "string_to_param", "text_encoder", key.removeprefix(_OF_A1111)
    if alone or _IN_BRACKETS.match(key):
        return "diffusers", "text_encoder", key
    raise _unknown(key)


def _check_shape(entry: TensorEntry) -> None:
    if entry.dtype not in _FLOATS:
        raise Refused(
            "unsupported_dtype",
            f"{entry.name!r} has dtype {entry.dtype}, expected one of {', '.join(sorted(_FLOATS))}",
            {"key": entry.name, "dtype": entry.dtype},
        )
    if len(entry.shape) not in (1, 2) or 0 in entry.shape:
        raise Refused(
            "shape_mismatch",
            f"{entry.name!r} has shape {list(entry.shape)}, expected [vectors, width], or [width] of one vector",
            {"key": entry.name, "expected": "[vectors, width]", "got": str(list(entry.shape))},
        )


def _check_one_token(tokens: Mapping[str, str]) -> None:
    if len(tokens) > 1:
        listed = ", ".join(repr(token or key) for token, key in list(tokens.items())[:5])
        raise Refused(
            "ti_several_tokens",
            f"the file holds vectors of several tokens, {listed}: push each in a file of its own",
            {"tokens": listed, "key": list(tokens.values())[1]},
        )


def _vectors(found: _Found) -> int:
    """How many there are, the same in every text encoder."""
    counts = {encoder: _count(entry) for encoder, entry in found.tensors.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{found.tensors[encoder].name!r} holds {count}" for encoder, count in counts.items())
        raise Refused(
            "ti_len_mismatch",
            f"the text encoders get different numbers of vectors: {said}",
            {"key": next(iter(found.tensors.values())).name, "got": said},
        )
    encoder, count = next(iter(counts.items()))
    if count > MAX_VECTORS:
        raise Refused(
            "ti_too_many_vectors",
            f"{found.tensors[encoder].name!r} holds {count} vectors, a prompt's chunk has {MAX_VECTORS} tokens",
            {"key": found.tensors[encoder].name, "got": str(count), "limit": str(MAX_VECTORS)},
        )
    return count


def _count(entry: TensorEntry) -> int:
    return entry.shape[0] if len(entry.shape) == 2 else 1


def _fitting(found: _Found, layouts: Sequence[Layout], wanted: Layout | None) -> tuple[Layout, list[str]]:
    """The layout to file it under, and the names of others with the same widths."""
    fitting = [layout for layout in layouts if layout.text_widths == found.widths]
    names = list(dict.fromkeys(layout.name for layout in fitting))
    if wanted is not None and wanted.text_widths == found.widths:
        return wanted, [name for name in names if name != wanted.name]
    if wanted is not None and fitting:
        got = ", ".join(names)
        raise Refused(
            "family_mismatch",
            f"the vectors are for {got}, not for {wanted.name}: {_shown(found)}, expected {_said(wanted)}",
            {"expected": wanted.name, "got": got, "key": next(iter(found.tensors.values())).name},
        )
    if not fitting:
        known = "; ".join(
            dict.fromkeys(_said(layout) for layout in ([wanted] if wanted else layouts) if layout.text_widths)
        )
        raise Refused(
            "ti_bad_width",
            f"no text encoders have these widths: {_shown(found)}, expected {known}",
            {"key": next(iter(found.tensors.values())).name, "got": _shown(found), "expected": known},
        )
    return fitting[0], [name for name in names if name != fitting[0].name]


def _shown(found: _Found) -> str:
    return ", ".join(f"{entry.name!r} {list(entry.shape)}" for entry in found.tensors.values())


def _said(layout: Layout) -> str:
    return f"{' + '.join(map(str, layout.text_widths.values()))} ({layout.name})"


def _warnings(found: _Found, options: InterpretOptions, trigger: str) -> tuple[str, ...]:
    if options.trigger is not None or found.token in ("", "*", trigger):
        return ()
    rule = f"up to {MAX_TRIGGER} characters"
    return (f"trigger: the file's token {found.token[:40]!r} is no usable trigger ({rule}); it is {trigger!r}",)


def _unknown(key: str) -> Refused:
    return Refused("unknown_keys", f"no known form of embedding has {key[:120]!r}", {"key": key[:120], "count": "1"})
