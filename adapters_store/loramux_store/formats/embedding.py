"""Textual inversions: what a file is that holds nothing else, and what its trigger is.

Takes a Container, the options, the name it is published under and the layouts; gives a Plan without modules, None for a
file that is no embedding, or Refused. An embedding fits every layout whose text encoders have its widths: nothing else
of the layout matters to it. Knows no tensor values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from loramux_store.errors import InvalidArgument, Refused
from loramux_store.formats.leaf import split_key
from loramux_store.formats.plan import Plan
from loramux_store.formats.tokens import (
    BUNDLE,
    ENCODERS,
    IN_BRACKETS,
    OF_A1111,
    Found,
    PlannedEmbedding,
    by_bundle,
    one_token,
    warned_of,
)
from loramux_store.header import Container, TensorEntry
from loramux_store.layout import Layout
from loramux_store.names import MAX_TRIGGER, trigger_fault
from loramux_store.record import AcceptReport, Embedding, InterpretOptions

__all__ = ["plan_embedding"]

# A tensor by itself is named by its token, which may be any word, but not by a place in a model or by what it is.
_OF_A_MODEL = re.compile(
    r"(lora_|lycoris_|oft_|lllite_|base_model\.|model\.|diffusion_model\.|control_model\.|unet[._]|transformer[._]|"
    r"text_encoder|text_model\.|vision_model\.|cond_stage_model\.|conditioner\.|first_stage_model\.|clip_[lg]\.|"
    r"encoder\.|decoder\.|(down|up|input|output|double|single|joint)_blocks[._]|mid(dle)?_block[._]|blocks\.|layers\.|"
    r"ip_adapter\.|image_proj\.|adapter\.)|"
    r"(.*\.)?(weight|bias)\Z|(negative_)?(pooled_)?prompt_embeds\Z|encoder_hidden_states\Z"
)


def plan_embedding(
    container: Container,
    options: InterpretOptions,
    name: str,
    layouts: Iterable[Layout],
    wanted: Layout | None = None,
) -> Plan | None:
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
    vectors = found.vectors()
    layout, others = _fitting(found, known, wanted)
    usable = found.token if trigger_fault(found.token) is None else ""
    embedding = Embedding(options.trigger or usable or name, vectors, found.widths)
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
        warnings=(*_warnings(found, options, embedding.trigger), *warned_of([embedding])),
        embedding=embedding,
    )
    return Plan(container, layout, (), (PlannedEmbedding(embedding, found.tensors),), report)


def _find(tensors: Mapping[str, TensorEntry], widths: set[int], trigger: str | None) -> Found | None:
    if all(name.startswith(BUNDLE) for name in tensors):
        return _unbundled(tensors, trigger)
    names = list(tensors)
    if any(split_key(name) for name in names):
        return None
    known = [name for name in names if (name in ENCODERS and name != "t5") or name.startswith(OF_A1111)]
    if known or all(IN_BRACKETS.match(name) for name in names):
        return Found.of(tensors, trigger)
    only = next(iter(tensors.values()))
    plain = len(names) == 1 and not _OF_A_MODEL.match(only.name)
    if plain and len(only.shape) in (1, 2) and only.shape[-1] in widths:
        return Found.of(tensors, None)
    return None


def _unbundled(tensors: Mapping[str, TensorEntry], trigger: str | None) -> Found:
    """One embedding of a file of bundled ones."""
    tokens = by_bundle(tensors)
    token = one_token({token: next(iter(inside.values())).name for token, inside in tokens.items()}, trigger)
    found = Found.of(tokens[token], None)
    others = [(entry.name, other) for other in tokens if other != token for entry in tokens[other].values()]
    return Found(found.tensors, token, "bundle", tuple(others))


def _fitting(found: Found, layouts: Sequence[Layout], wanted: Layout | None) -> tuple[Layout, list[str]]:
    """The layout to file it under, and the names of others with the same widths."""
    fitting = [layout for layout in layouts if layout.text_widths == found.widths]
    names = list(dict.fromkeys(layout.name for layout in fitting))
    if wanted is not None and wanted.text_widths == found.widths:
        return wanted, [name for name in names if name != wanted.name]
    if wanted is not None and fitting:
        got = ", ".join(names)
        raise Refused(
            "family_mismatch",
            f"the vectors are for {got}, not for {wanted.name}: {found.shown}, expected {_said(wanted)}",
            {"expected": wanted.name, "got": got, "key": found.key},
        )
    if not fitting:
        known = "; ".join(
            dict.fromkeys(_said(layout) for layout in ([wanted] if wanted else layouts) if layout.text_widths)
        )
        raise Refused(
            "ti_bad_width",
            f"no text encoders have these widths: {found.shown}, expected {known}",
            {"key": found.key, "got": found.shown, "expected": known},
        )
    return fitting[0], [name for name in names if name != fitting[0].name]


def _said(layout: Layout) -> str:
    return f"{' + '.join(map(str, layout.text_widths.values()))} ({layout.name})"


def _warnings(found: Found, options: InterpretOptions, trigger: str) -> tuple[str, ...]:
    if found.others:
        return (f"ignored: {len(found.others)} tensors, among them {found.others[0][0]}",)
    if options.trigger is not None or found.token in ("", "*", trigger):
        return ()
    rule = f"up to {MAX_TRIGGER} characters"
    return (f"trigger: the file's token {found.token[:40]!r} is no usable trigger ({rule}); it is {trigger!r}",)
