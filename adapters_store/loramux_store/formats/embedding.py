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
    """The tensors by text encoder, the token that the file gives them (or none), and the form of the file.

    others: names of the tensors of the file's other tokens, with the token.
    """

    tensors: Mapping[str, TensorEntry]
    token: str
    family: str
    others: tuple[tuple[str, str], ...] = ()

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

    Its trigger is the one of the options, else the token that the file names, else the name of the adapter. Of a file
    of several tokens the one that is the trigger of the options is taken.

    Raises:
        Refused: `ti_bad_width`, `family_mismatch`, `ti_len_mismatch`, `ti_too_many_vectors`, `ti_several_tokens`,
            `shape_mismatch`, `unsupported_dtype`, `unknown_keys`, `duplicate_module`.
        InvalidArgument: options that only LoRA files have.
    """
    known = list(layouts)
    widths = {width for layout in known for width in layout.text_widths.values()}
    found = _find(container.tensors, widths, options.trigger)
    if found is None:
        return None
    for field in ("alpha", "peft_config"):
        if (value := getattr(options, field)) is not None:
            raise InvalidArgument(f"options.{field}", value, "none: the file is an embedding")
    vectors = _vectors(found)
    layout, others = _fitting(found, known, wanted)
    usable = found.token if trigger_fault(found.token) is None else ""
    embedding = Embedding(options.trigger or usable or name, vectors, dict(sorted(found.widths.items())))
    said = " and ".join(f"{width} in {encoder}" for encoder, width in embedding.widths.items())
    evidence = [f"the vectors have the width of {layout.name}: {said}"]
    if others:
        evidence.append(f"its text encoders have the widths of {', '.join(others)} too: it fits every such base")
    report = AcceptReport(
        layout_name=layout.name,
        layout_digest=layout.digest,
        evidence=tuple(evidence),
        family=found.family,
        matched=(),
        ignored=tuple((key, f"vectors of the token {token!r}, another embedding") for key, token in found.others),
        warnings=_warnings(found, options, embedding.trigger),
        embedding=embedding,
    )
    return EmbeddingPlan(container, layout, found.tensors, embedding, report)


def _find(tensors: Mapping[str, TensorEntry], widths: set[int], trigger: str | None) -> _Found | None:
    if all(name.startswith(_BUNDLE) for name in tensors):
        return _unbundled(tensors, trigger)
    names = list(tensors)
    if any(split_key(name) for name in names):
        return None
    known = [name for name in names if (name in _ENCODERS and name != "t5") or name.startswith(_OF_A1111)]
    if known or all(_IN_BRACKETS.match(name) for name in names):
        return _sorted_out(tensors, trigger)
    only = next(iter(tensors.values()))
    plain = len(names) == 1 and not only.name.endswith((".weight", ".bias"))
    if plain and len(only.shape) in (1, 2) and only.shape[-1] in widths:
        return _sorted_out(tensors, None)
    return None


def _unbundled(tensors: Mapping[str, TensorEntry], trigger: str | None) -> _Found:
    """One embedding of a file of bundled ones. The trigger may contain dots: the key is what ends the name."""
    tokens: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in sorted(tensors.items()):
        match = _BUNDLED.match(name)
        if match is None:
            raise _unknown(name)
        tokens.setdefault(match["token"], {})[match["key"]] = entry
    token = _one_token({token: next(iter(inside.values())).name for token, inside in tokens.items()}, trigger)
    found = _sorted_out(tokens[token], None)
    others = [(entry.name, other) for other in tokens if other != token for entry in tokens[other].values()]
    return _Found(found.tensors, token, "bundle", tuple(others))


def _sorted_out(tensors: Mapping[str, TensorEntry], trigger: str | None) -> _Found:
    """Every tensor of one token by its text encoder."""
    tokens: dict[str, list[tuple[str, str, TensorEntry]]] = {}
    for key, entry in sorted(tensors.items()):
        _check_shape(entry)
        family, encoder, said = _part(key, alone=len(tensors) == 1)
        tokens.setdefault(said, []).append((family, encoder, entry))
    token = _one_token({token: group[0][2].name for token, group in tokens.items()}, trigger)
    parts: dict[str, TensorEntry] = {}
    for _, encoder, entry in tokens[token]:
        if encoder in parts:
            raise Refused(
                "duplicate_module",
                f"{parts[encoder].name!r} and {entry.name!r} are both vectors of {encoder}",
                {"key": entry.name, "other": parts[encoder].name, "module": encoder},
            )
        parts[encoder] = entry
    families = {family for family, _, _ in tokens[token]}
    others = [(entry.name, other) for other in tokens if other != token for _, _, entry in tokens[other]]
    return _Found(parts, token, "+".join(sorted(families)), tuple(others))


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


def _one_token(keys: Mapping[str, str], trigger: str | None) -> str:
    """The only token, or the one that is the trigger. keys: of every token the name of a tensor."""
    if trigger is not None and trigger in keys:
        return trigger
    if len(keys) > 1:
        listed = ", ".join(repr(token or key) for token, key in list(keys.items())[:5])
        raise Refused(
            "ti_several_tokens",
            f"the file holds vectors of several tokens, {listed}: push it once for each, with the token as the trigger",
            {"tokens": listed, "key": list(keys.values())[1]},
        )
    return next(iter(keys))


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
    if found.others:
        return (f"ignored: {len(found.others)} tensors, among them {found.others[0][0]}",)
    if options.trigger is not None or found.token in ("", "*", trigger):
        return ()
    rule = f"up to {MAX_TRIGGER} characters"
    return (f"trigger: the file's token {found.token[:40]!r} is no usable trigger ({rule}); it is {trigger!r}",)


def _unknown(key: str) -> Refused:
    return Refused("unknown_keys", f"no known form of embedding has {key[:120]!r}", {"key": key[:120], "count": "1"})
