"""What is in a file: modules with their tensors, before any layout is considered.

Takes tensors by name; gives Contents, or Refused for kinds and families not accepted, unknown keys and
incomplete modules. Knows no layouts and reads no tensor values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from loramux_store.errors import Refused
from loramux_store.formats.foreign import kind_refused, refuse_kinds, refuse_other_objects
from loramux_store.formats.kinds import alpha_rank, check_module, kind_of
from loramux_store.formats.leaf import Key, split_key
from loramux_store.formats.naming import strip_wrappers
from loramux_store.header import TensorEntry

__all__ = ["Contents", "RawModule", "read_contents"]

_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_SCALARS = ("alpha", "scale")


@dataclass(frozen=True, slots=True)
class RawModule:
    """One module's tensors by role (see leaf.py); kind: lora, loha, lokr, full, norm or bias."""

    stem: str
    family: str
    kind: str
    tensors: Mapping[str, TensorEntry]

    @property
    def rank(self) -> int | None:
        """What alpha is divided by; None where nothing is low-rank."""
        return alpha_rank(self.kind, self.tensors)


@dataclass(frozen=True, slots=True)
class Contents:
    """The modules of a file, sorted: the order of keys in the file makes no difference."""

    modules: tuple[RawModule, ...]
    ignored: tuple[tuple[str, str], ...]
    family: str


def read_contents(tensors: Mapping[str, TensorEntry], beside: str = "") -> Contents:
    """Name every tensor, or refuse the file. beside: what it is said to hold other than deltas."""
    names = sorted(tensors)
    ignored = [(name, why) for name in names if (why := _ignorable(name))]
    passed = {name for name, _ in ignored}
    split = {name: split_key(name) for name in names if name not in passed}
    keys = [key for key in split.values() if key]
    unknown = [name for name, key in split.items() if key is None]
    refuse_kinds(keys, tensors)
    refuse_other_objects(tensors, unknown, anything_known=bool(keys))
    if unknown and beside:
        raise kind_refused(beside, unknown[0])
    if unknown:
        _refuse_unknown(unknown, anything_known=bool(keys))
    if not keys:
        raise Refused(
            "family_unknown",
            "the file holds nothing but counters of a text encoder",
            {"key": names[0]},
        )
    _check_infix(keys)
    modules = [_module(stem, group, tensors) for stem, group in sorted(_group(keys).items())]
    family = "+".join(sorted({module.family for module in modules}))
    return Contents(tuple(modules), tuple(ignored), family)


def _ignorable(name: str) -> str:
    if name.endswith(("position_ids", "position_ids.weight")):
        return "a counter of the text encoder, no weight"
    return ""


def _refuse_unknown(unknown: list[str], anything_known: bool) -> None:
    listed = ", ".join(repr(name[:120]) for name in unknown[:5])
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    raise Refused(
        "unknown_keys" if anything_known else "family_unknown",
        f"no known adapter format has {listed}{more}",
        {"keys": listed, "key": unknown[0], "count": str(len(unknown))},
    )


def _check_infix(keys: Iterable[Key]) -> None:
    """PEFT's files hold one adapter; only its LoRA factors must all bear the name or all not: the leaves of its LoHa
    and LoKr are also LyCORIS' own, which has no such names."""
    first: dict[str, str] = {}
    for key in keys:
        if key.infix or key.family == "peft":
            first.setdefault(key.infix, key.name)
    infixes = sorted(first)
    if len(infixes) > 1:
        raise Refused(
            "multiple_adapters",
            f"the file holds several PEFT adapters: {', '.join(map(repr, infixes[:5]))}",
            {"names": ", ".join(infixes[:5]), "key": first[infixes[-1]]},
        )


def _group(keys: Iterable[Key]) -> dict[str, dict[str, Key]]:
    groups: dict[str, dict[str, Key]] = {}
    for key in keys:
        group = groups.setdefault(strip_wrappers(key.stem), {})
        other = group.setdefault(key.role, key)
        if other is not key:
            raise Refused(
                "duplicate_module",
                f"{key.name!r} and {other.name!r} are the same part of one module",
                {"key": key.name, "other": other.name},
            )
    return groups


def _module(stem: str, group: Mapping[str, Key], entries: Mapping[str, TensorEntry]) -> RawModule:
    tensors = {role: entries[key.name] for role, key in group.items()}
    names = {role: key.name for role, key in group.items()}
    kind = kind_of(stem, names, {role: entry.shape for role, entry in tensors.items()})
    for role, entry in tensors.items():
        if role not in _SCALARS:
            _check_dtype(stem, entry)
    check_module(stem, kind, tensors)
    # a bias beside factors does not make them a full difference
    family = min({key.family for key in group.values()} - {"", "full"}, default="full")
    return RawModule(stem, family, kind, tensors)


def _check_dtype(stem: str, entry: TensorEntry) -> None:
    if entry.dtype not in _FLOATS:
        raise Refused(
            "unsupported_dtype",
            f"{entry.name!r} has dtype {entry.dtype}, expected one of {', '.join(sorted(_FLOATS))}",
            {"module": stem, "key": entry.name, "dtype": entry.dtype},
        )
