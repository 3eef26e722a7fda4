"""The kinds of deltas: which tensors make one up, and what its shapes say by themselves.

Takes the roles of one module's tensors; gives its kind, the rank that alpha is divided by, and the sides of a
Kronecker product, or Refused: a factor that is missing, kinds that do not go together, ranks that differ. Knows no
layouts and no tensor values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from loramux_store.errors import Refused
from loramux_store.header import TensorEntry

__all__ = ["MAX_RANK", "Side", "alpha_rank", "check_module", "kind_of", "kronecker_sides"]

MAX_RANK = 4096

Tensors = Mapping[str, TensorEntry]

_ROLES: dict[str, frozenset[str]] = {
    "lora": frozenset(("down", "up", "mid")),
    "loha": frozenset(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
    "lokr": frozenset(
        ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    ),
    "full": frozenset(("diff",)),
    "norm": frozenset(("w_norm", "b_norm")),
}  # fmt: skip
# What each kind cannot be without, as alternatives: the first that has begun must be whole.
_NEEDED: dict[str, tuple[tuple[tuple[str, ...], ...], ...]] = {
    "lora": ((("down", "up"),),),
    "loha": ((("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),),
    "lokr": ((("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")), (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))),
}
_DIMENSIONS: dict[str, tuple[int, ...]] = {
    "mid": (4,),
    "hada_t1": (4,),
    "hada_t2": (4,),
    "lokr_t2": (4,),
    "lokr_w1": (2,),
    "lokr_w1_a": (2,),
    "lokr_w1_b": (2,),
    "lokr_w2_a": (2,),
    **dict.fromkeys(("w_norm", "b_norm", "diff_b", "up_bias"), (1,)),
    **dict.fromkeys(("dora_scale", "magnitude"), (1, 2, 4)),
}
_SCALARS = ("alpha", "scale")


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a Kronecker product as a matrix; rank: of its stored factors, None where it is stored whole."""

    rows: int
    columns: int
    rank: int | None

    @property
    def width(self) -> int:
        """Rows that it needs between two factors, of which one may be the unit matrix."""
        whole = min(self.rows, self.columns)
        return whole if self.rank is None else min(self.rank, whole)


def kind_of(stem: str, roles: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """lora, loha, lokr, full, norm or bias; roles: role to the tensor's name."""
    kinds = {kind: sorted(known & roles.keys()) for kind, known in _ROLES.items() if known & roles.keys()}
    if len(kinds) > 1:
        first, second = (roles[found[0]] for found in list(kinds.values())[:2])
        raise Refused(
            "mixed_kinds",
            f"{stem!r} is of two kinds at once: {first!r} and {second!r}",
            {"module": stem, "key": second, "other": first, "kinds": ", ".join(kinds)},
        )
    if kinds:
        kind = next(iter(kinds))
        # a full difference of a normalisation is the same as w_norm and b_norm
        return "norm" if kind == "full" and len(shapes["diff"]) == 1 else kind
    if "diff_b" in roles:
        return "bias"
    shown = next(iter(roles.values()))
    raise Refused(
        "incomplete_pair",
        f"{stem!r} has {shown!r} but no factors",
        {"module": stem, "missing": "down", "key": shown},
    )


def check_module(stem: str, kind: str, tensors: Tensors) -> None:
    """Refuse a module of which a factor is missing, or whose factors do not belong together."""
    for alternatives in _NEEDED.get(kind, ()):
        _check_whole(stem, alternatives, tensors)
    if kind == "loha" and ("hada_t1" in tensors) != ("hada_t2" in tensors):
        raise _incomplete(stem, "hada_t2" if "hada_t1" in tensors else "hada_t1", tensors)
    if "lokr_t2" in tensors and "lokr_w2_a" not in tensors:
        raise _incomplete(stem, "lokr_w2_a", tensors)
    for role, entry in tensors.items():
        if role not in _SCALARS:
            _check_dimensions(stem, role, entry)
    for left, left_axis, right, right_axis in _chains(kind, tensors):
        _check_rank(stem, tensors[left], left_axis, tensors[right], right_axis)


def alpha_rank(kind: str, tensors: Tensors) -> int | None:
    """What alpha is divided by; None where nothing is low-rank."""
    for role in {"lora": ("down",), "loha": ("hada_w1_b",), "lokr": ("lokr_w1_b", "lokr_w2_b")}.get(kind, ()):
        if role in tensors:
            return tensors[role].shape[0]
    return None


def kronecker_sides(tensors: Tensors) -> tuple[Side, Side]:
    """The two sides of a LoKr; the second has the kernel in its columns. The shapes carry the factorisation."""
    if "lokr_w1" in tensors:
        rows, columns = tensors["lokr_w1"].shape
        first = Side(rows, columns, None)
    else:
        first = Side(tensors["lokr_w1_a"].shape[0], tensors["lokr_w1_b"].shape[1], tensors["lokr_w1_b"].shape[0])
    if "lokr_w2" in tensors:
        shape = tensors["lokr_w2"].shape
        return first, Side(shape[0], prod(shape[1:]), None)
    a, b = tensors["lokr_w2_a"].shape, tensors["lokr_w2_b"].shape
    if "lokr_t2" in tensors:
        return first, Side(a[1], prod(b[1:]) * prod(tensors["lokr_t2"].shape[2:]), a[0])
    return first, Side(a[0], prod(b[1:]), b[0])


def _check_whole(stem: str, alternatives: Collection[tuple[str, ...]], tensors: Tensors) -> None:
    begun = [roles for roles in alternatives if any(role in tensors for role in roles)]
    if len(begun) > 1:
        one, other = (next(role for role in roles if role in tensors) for roles in begun[:2])
        raise Refused(
            "mixed_kinds",
            f"{stem!r} has {tensors[one].name!r} both whole and in factors, {tensors[other].name!r}",
            {"module": stem, "key": tensors[one].name, "other": tensors[other].name, "kinds": "whole, factored"},
        )
    for role in begun[0] if begun else next(iter(alternatives)):
        if role not in tensors:
            raise _incomplete(stem, role, tensors)


def _incomplete(stem: str, role: str, tensors: Tensors) -> Refused:
    shown = next(iter(tensors.values())).name
    return Refused(
        "incomplete_pair",
        f"{stem!r} has {shown!r} but no {role} factor",
        {"module": stem, "missing": role, "key": shown},
    )


def _check_dimensions(stem: str, role: str, entry: TensorEntry) -> None:
    expected = _DIMENSIONS.get(role, (1, 2, 4) if role == "diff" else (2, 4))
    if len(entry.shape) not in expected:
        raise Refused(
            "shape_mismatch",
            f"{entry.name!r} has shape {list(entry.shape)}, expected {' or '.join(map(str, expected))} dimensions",
            {
                "module": stem,
                "key": entry.name,
                "got": str(list(entry.shape)),
                "expected": ", ".join(f"{count}-D" for count in expected),
            },
        )


def _chains(kind: str, tensors: Tensors) -> Iterator[tuple[str, int, str, int]]:
    """(factor, axis, factor, axis) that one rank runs along."""
    if kind == "lora":
        yield "up", 1, "down", 0
        if "mid" in tensors:
            yield "mid", 0, "down", 0
            yield "mid", 1, "down", 0
    if kind == "loha":
        for side in "12":
            yield from _pair(f"hada_w{side}", f"hada_t{side}", tensors)
    if kind == "lokr":
        for side in "12":
            if f"lokr_w{side}_a" in tensors:
                yield from _pair(f"lokr_w{side}", f"lokr_t{side}", tensors)


def _pair(name: str, core: str, tensors: Tensors) -> Iterator[tuple[str, int, str, int]]:
    """Beside a core (Tucker), the first factor lies transposed."""
    if core in tensors:
        yield f"{name}_a", 0, core, 0
        yield core, 1, f"{name}_b", 0
    else:
        yield f"{name}_a", 1, f"{name}_b", 0


def _check_rank(stem: str, left: TensorEntry, left_axis: int, right: TensorEntry, right_axis: int) -> None:
    one, other = left.shape[left_axis], right.shape[right_axis]
    if one != other or one < 1:
        raise Refused(
            "rank_mismatch",
            f"{stem!r}: {right.name!r} {list(right.shape)} has rank {other}, "
            f"{left.name!r} {list(left.shape)} has rank {one}",
            {"module": stem, "key": left.name, "expected": str(other), "got": str(one)},
        )
    if one > MAX_RANK:
        raise Refused(
            "rank_too_large",
            f"{stem!r} has rank {one}, allowed are {MAX_RANK}",
            {"module": stem, "key": right.name, "got": str(one), "limit": str(MAX_RANK)},
        )
