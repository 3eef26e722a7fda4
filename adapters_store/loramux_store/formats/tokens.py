"""Vectors of textual inversions in a file: which tensor is which text encoder's, and of which token.

Takes tensors by name; gives Found, or Refused. Knows no layouts and no tensor values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from loramux_store.common_words import is_common
from loramux_store.errors import Refused
from loramux_store.header import TensorEntry
from loramux_store.record import Embedding

__all__ = [
    "BUNDLE",
    "ENCODERS",
    "IN_BRACKETS",
    "MAX_VECTORS",
    "OF_A1111",
    "Found",
    "PlannedEmbedding",
    "by_bundle",
    "one_token",
    "unknown",
    "warned_of",
]

MAX_VECTORS = 75
"""Tokens of a chunk of CLIP's text encoders."""

BUNDLE = "bundle_emb."
OF_A1111 = "string_to_param."
IN_BRACKETS = re.compile(r"<.+>\Z")
ENCODERS = {
    "emb_params": "text_encoder",
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
    "t5": "t5",
}
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_BUNDLED = re.compile(
    r"bundle_emb\.(?P<token>.+)\.(?P<key>emb_params|clip_[lg]|text_encoders_[01]|t5|string_to_param\..+)\Z"
)


@dataclass(frozen=True, slots=True)
class Found:
    """The tensors by text encoder, the token that the file gives them (or none), and the form of the file.

    others: names of the tensors of the file's other tokens, with the token.
    """

    tensors: Mapping[str, TensorEntry]
    token: str
    family: str
    others: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, tensors: Mapping[str, TensorEntry], trigger: str | None) -> Found:
        """Every tensor of one token by its text encoder: of the only one, or of the one that is the trigger."""
        tokens: dict[str, list[tuple[str, str, TensorEntry]]] = {}
        for key, entry in sorted(tensors.items()):
            _check_shape(entry)
            family, encoder, said = _part(key, alone=len(tensors) == 1)
            tokens.setdefault(said, []).append((family, encoder, entry))
        token = one_token({token: group[0][2].name for token, group in tokens.items()}, trigger)
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
        return cls(parts, token, "+".join(sorted(families)), tuple(others))

    @property
    def key(self) -> str:
        """The name of a tensor of it, for errors."""
        return next(iter(self.tensors.values())).name

    @property
    def widths(self) -> dict[str, int]:
        """Of its vectors, by text encoder."""
        return {encoder: entry.shape[-1] for encoder, entry in sorted(self.tensors.items())}

    @property
    def shown(self) -> str:
        """Its tensors with their shapes."""
        return ", ".join(f"{entry.name!r} {list(entry.shape)}" for entry in self.tensors.values())

    def vectors(self) -> int:
        """How many there are, the same in every text encoder. Raises Refused."""
        counts = {encoder: _count(entry) for encoder, entry in self.tensors.items()}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{self.tensors[encoder].name!r} holds {count}" for encoder, count in counts.items())
            raise Refused(
                "ti_len_mismatch",
                f"the text encoders get different numbers of vectors: {said}",
                {"key": self.key, "got": said},
            )
        encoder, count = next(iter(counts.items()))
        if count > MAX_VECTORS:
            raise Refused(
                "ti_too_many_vectors",
                f"{self.tensors[encoder].name!r} holds {count} vectors, a prompt's chunk has {MAX_VECTORS} tokens",
                {"key": self.tensors[encoder].name, "got": str(count), "limit": str(MAX_VECTORS)},
            )
        return count


@dataclass(frozen=True, slots=True)
class PlannedEmbedding:
    """An embedding of the compiled file, with its tensors in the file: [n, width] or [width], by text encoder."""

    embedding: Embedding
    tensors: Mapping[str, TensorEntry]


def warned_of(embeddings: Iterable[Embedding]) -> tuple[str, ...]:
    """What is unwise about their triggers."""
    common = [each.trigger for each in embeddings if is_common(each.trigger)]
    if not common:
        return ()
    said = ", ".join(map(repr, common[:5]))
    return (f"trigger_common_word: prompts have {said} anyway, and each means the embedding where a blend lists it",)


def by_bundle(tensors: Mapping[str, TensorEntry]) -> dict[str, dict[str, TensorEntry]]:
    """Bundled tensors by token, and by what their names say behind it. A token may contain dots: the key ends it."""
    tokens: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in sorted(tensors.items()):
        match = _BUNDLED.match(name)
        if match is None:
            raise unknown(name)
        tokens.setdefault(match["token"], {})[match["key"]] = entry
    return tokens


def one_token(keys: Mapping[str, str], trigger: str | None) -> str:
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


def unknown(key: str) -> Refused:
    """The refusal of a name that no embedding's tensor has."""
    return Refused("unknown_keys", f"no known form of embedding has {key[:120]!r}", {"key": key[:120], "count": "1"})


def _part(key: str, *, alone: bool) -> tuple[str, str, str]:
    """(form of the file, text encoder, token) that a key stands for."""
    if key in ENCODERS:
        return ("emb_params" if key == "emb_params" else "clip"), ENCODERS[key], ""
    if key.startswith(OF_A1111):
        return "string_to_param", "text_encoder", key.removeprefix(OF_A1111)
    if alone or IN_BRACKETS.match(key):
        return "diffusers", "text_encoder", key
    raise unknown(key)


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


def _count(entry: TensorEntry) -> int:
    return entry.shape[0] if len(entry.shape) == 2 else 1
