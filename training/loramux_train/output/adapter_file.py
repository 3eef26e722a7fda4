"""Adapter files of trained factors, in the forms that people's tools read.

Takes what was trained, the base's layout and the run's facts; gives files that are whole or not there. Which names and
configurations a form has is the store's to know. Knows no training.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from loramux_store.errors import Inexpressible
from loramux_store.forms.container import data_of, header_of
from loramux_store.forms.export import FORMS, Form
from loramux_store.forms.factors import Factors
from loramux_store.forms.kohya import kohya_tensors
from loramux_store.forms.peft import diffusers_file, peft_folders
from loramux_store.layout import Layout, ModuleSpec
from loramux_train.outline import TEXT_ENCODERS
from loramux_train.output.atomic import sync_folder, write_whole
from loramux_train.output.errors import Unsayable
from loramux_train.output.facts import Progress, RunFacts
from loramux_train.output.metadata import metadata_of
from loramux_train.output.trained import TrainedModule, factors_of

__all__ = ["FORMS", "PRECISIONS", "Form", "Planned", "Precision", "Saved", "check_form", "save_adapter"]

Precision = Literal["fp16", "bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_TEXT_ATTENTION = (".q_proj", ".k_proj", ".v_proj", ".out_proj")
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Planned:
    """A module that is going to be trained: its path in the layout, its rank, whether it gets magnitudes (DoRA), and
    what B A is multiplied by."""

    path: str
    rank: int
    dora: bool = False
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Saved:
    """What was written. path: the file, or PEFT's folder; files: all of them."""

    path: Path
    files: tuple[Path, ...]


def check_form(form: Form, planned: Iterable[Planned], layout: Layout) -> tuple[str, ...]:
    """Whether the form will be able to say it, asked before anything is trained; sentences on what diffusers will not
    read of it.

    Raises:
        Unsayable: names the module and what of it, and a form that can.
    """
    chosen = list(planned)
    _contents([_empty(module, layout) for module in chosen], layout, form)
    return tuple(_lost_on_diffusers(chosen)) if form == "kohya" else ()


def _lost_on_diffusers(planned: Sequence[Planned]) -> Iterator[str]:
    """What diffusers 0.42.1 makes of kohya's form otherwise than we mean it; it reads its own form as it is meant."""
    lost = "in kohya's form, and draws otherwise than samples show; LoRAMux and web interfaces do read them, and "
    lost += "output.form diffusers is read by all but web interfaces"
    if any(module.dora for module in planned):
        yield f"diffusers does not read DoRA's magnitudes {lost}"
    if len({round(module.scale * module.rank, 6) for module in planned}) > 1:
        yield f"diffusers does not read alphas that differ from layer to layer {lost}"
    for part in TEXT_ENCODERS:
        attention = [m.path for m in planned if m.path.startswith(f"{part}.") and m.path.endswith(_TEXT_ATTENTION)]
        if attention and not any(path.endswith(".out_proj") for path in attention):
            yield f"diffusers does not read the attention's layers of {part} without any out_proj {lost}"


def save_adapter(
    modules: Iterable[TrainedModule],
    layout: Layout,
    facts: RunFacts,
    progress: Progress,
    form: Form,
    precision: Precision,
    target: Path,
) -> Saved:
    """Write to the file `target`, in PEFT's form to a folder of that name; what is there is replaced at the end.

    Raises:
        NothingLearnt: factors that are not finite, or all without effect.
        Unsayable: what the form or the precision cannot say; a module that the base does not have.
        OSError: as of the disk. Nothing is written, or replaced, in any of these cases.
    """
    metadata = metadata_of(facts, progress, layout, form)
    contents = _contents(factors_of(modules, layout), layout, form)
    files: dict[str, tuple[bytes | memoryview, ...]] = {}
    for name, content in contents.items():
        tensors = _rounded(content.tensors, precision)
        files[name] = _pieces(tensors, {**metadata, **content.metadata})
        if content.config:
            config = json.loads(content.config) | {"base_model_name_or_path": facts.base.name}
            text = json.dumps(config, indent=2, sort_keys=True) + "\n"
            files[str(Path(name).with_name("adapter_config.json"))] = (text.encode(),)
    if form == "peft":
        return Saved(target, _write_folder(target, files))
    write_whole(target, files[""])
    return Saved(target, (target,))


@dataclass(frozen=True, slots=True)
class _Content:
    """Of one file: fp32 tensors, what its metadata says of them, and the text of the configuration beside it."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    config: str = ""


def _contents(modules: list[Factors], layout: Layout, form: Form) -> dict[str, _Content]:
    """By the name in the folder; "" where there is one file only."""
    try:
        if form == "kohya":
            return {"": _Content(kohya_tensors(modules, layout), {})}
        if form == "diffusers":
            _check_text_encoders(modules)
            return {"": _Content(*diffusers_file(modules))}
        folders = peft_folders(modules)
    except Inexpressible as error:
        hint = "" if "kohya's form can" in error.message or form == "kohya" else "; kohya's form can say it"
        raise Unsayable(f"{error.message}{hint}") from None
    return {f"{part}/adapter_model.safetensors": _Content(t, {}, config) for part, (t, config) in folders.items()}


def _check_text_encoders(modules: list[Factors]) -> None:
    """diffusers 0.42.1 knows what form a text encoder's factors have by those of its attention alone."""
    for part in {module.path.partition(".")[0] for module in modules} - {"unet"}:
        paths = [module.path for module in modules if module.path.startswith(f"{part}.")]
        if not any(path.endswith(_TEXT_ATTENTION) for path in paths):
            raise Unsayable(
                f"diffusers cannot read {paths[0]}: it loads factors of {part} only where some of its attention's are "
                "among them; train those too, or save as kohya or peft"
            )


def _empty(module: Planned, layout: Layout) -> Factors:
    """Factors of the right shapes without memory of their own: the forms' own rules decide."""
    spec = layout.modules.get(module.path)
    if spec is None:
        raise Unsayable(f"{module.path}: the base {layout.name} has no such module")
    zero = torch.zeros(())
    shapes = {"a": (module.rank, _inputs(spec)), "b": (module.rank, spec.shape[0])}
    parts = {name: zero.expand(shape) for name, shape in shapes.items()}
    if module.dora:
        parts["m"] = zero.expand(spec.shape[0])
    return Factors(module.path, spec, parts, 1.0, "output" if module.dora else "")


def _inputs(spec: ModuleSpec) -> int:
    return torch.Size(spec.shape[1:]).numel()


def _rounded(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """In the precision asked for; alphas stay in fp32, where every one is exact."""
    dtype = _DTYPES[precision]
    found = {name: t if name.endswith(".alpha") else t.to(dtype).contiguous() for name, t in tensors.items()}
    for name, tensor in found.items():
        if not tensor.isfinite().all():
            raise Unsayable(f"{name}: its largest number does not fit {precision}; save as bf16 or fp32")
    return found


def _pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes | memoryview, ...]:
    """With the hash of all that follows the header, as modelspec defines it and as web UIs name LoRAs by."""
    data = tuple(data_of(tensors))
    digest = hashlib.sha256()
    for piece in data:
        digest.update(piece)
    hashes = {"modelspec.hash_sha256": f"0x{digest.hexdigest()}", "sshs_model_hash": digest.hexdigest()}
    return (header_of(tensors, {**metadata, **hashes}), *data)


def _write_folder(target: Path, files: Mapping[str, Iterable[bytes | memoryview]]) -> tuple[Path, ...]:
    """All beside, then exchanged: who looks finds the old folder or the new one, for an instant none."""
    draft, old = (target.with_name(f".{target.name}.{os.getpid()}.{what}") for what in ("part", "old"))
    try:
        for name, pieces in files.items():
            write_whole(draft / name, pieces)
        _exchange(draft, target, old)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return tuple(sorted(target / name for name in files))


def _exchange(draft: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    try:
        draft.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
