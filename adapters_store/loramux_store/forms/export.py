"""From the store to a file that others read.

Takes a store, a reference, a form and a place; gives the files written. Exact: the canonical factors in fp32, with an
alpha that gives the same scale. Knows no server.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

from loramux_store.forms.container import write_file, write_text
from loramux_store.forms.factors import Factors, read_factors
from loramux_store.forms.kohya import kohya_tensors
from loramux_store.forms.peft import diffusers_file, peft_folders
from loramux_store.forms.vectors import Bundled, bundled_tensors, embedding_tensors, read_vectors
from loramux_store.layout import Layout, known_layout
from loramux_store.store import Store

__all__ = ["FORMS", "Form", "export", "write_adapter"]

Form = Literal["kohya", "diffusers", "peft"]
FORMS: tuple[Form, ...] = get_args(Form)
_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1/lora",
    "sd2": "stable-diffusion-v2-512/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
}


def export(store: Store, ref: str, form: Form, target: Path) -> tuple[Path, ...]:
    """Write a version: kohya and diffusers to the file `target`, PEFT to a folder of that name.

    Raises:
        Inexpressible: the form cannot say what the adapter does.
        FileExistsError: what is there is never replaced.
        NotFound, DataLoss: as of the store.
    """
    version = store.resolve(ref)
    compiled = store.compiled(version)
    source = {"loramux.source": f"{version.adapter}@{version.number} {version.digest}"}
    if version.embedding is not None:
        (found,) = read_vectors(compiled, version.embeddings)
        write_file(target, embedding_tensors(found, form), source)
        return (target,)
    layout, bundled = store.layout(version.layout_digest), read_vectors(compiled, version.bundled)
    return write_adapter(read_factors(compiled, layout), bundled, layout, form, target, source)


def write_adapter(
    modules: Iterable[Factors],
    bundled: Iterable[Bundled],
    layout: Layout,
    form: Form,
    target: Path,
    metadata: Mapping[str, str],
) -> tuple[Path, ...]:
    """Write factors and the embeddings that go with them in a form; metadata: what else the file says of itself. Raises
    as export does."""
    vectors = bundled_tensors(bundled, form)
    said = {"format": "pt", **_architecture(layout), **metadata}
    if form == "peft":
        return _write_folders(modules, target, said)
    if form == "diffusers":
        tensors, configs = diffusers_file(modules)
        said |= configs
    else:
        tensors = kohya_tensors(modules, layout) | vectors
    write_file(target, tensors, said)
    return (target,)


def _write_folders(modules: Iterable[Factors], target: Path, said: Mapping[str, str]) -> tuple[Path, ...]:
    """PEFT loads one model at a time, from a folder."""
    folders = peft_folders(modules)
    if target.exists():
        raise FileExistsError(f"{target} is there already; nothing is replaced")
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    draft.mkdir()
    try:
        for component, (tensors, config) in folders.items():
            (draft / component).mkdir()
            write_file(draft / component / "adapter_model.safetensors", tensors, said)
            write_text(draft / component / "adapter_config.json", config)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return tuple(sorted(path for path in target.rglob("*") if path.is_file()))


def _architecture(layout: Layout) -> dict[str, str]:
    """What tells SD1 from SD2 where shapes do not."""
    for name, architecture in _ARCHITECTURES.items():
        if layout.digest == known_layout(name).digest:
            return {"modelspec.architecture": architecture}
    return {}
