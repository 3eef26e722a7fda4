"""Every name a layout's modules go by in adapter files.

Takes a Layout; gives a NameTable that turns a stem into a module path. A kohya stem has lost its
dots, so it is looked up among the layout's own names, never taken apart. Knows no tensors.
"""

from __future__ import annotations

from functools import lru_cache

from loramux_store.formats.sgm import sgm_paths
from loramux_store.layout import Layout

__all__ = ["NameTable", "name_table", "spellings", "strip_wrappers"]

_WRAPPERS = ("base_model.model.", "model.")
_FLAT = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lycoris_")
_FIRST_OF_TWO = "lora_te1_"
"""kohya numbers the encoders only where there are two; diffusers' converter writes a 1 in any case."""
_OMI = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""Text encoders in the names of the Open Model Initiative, which OneTrainer also writes."""


def strip_wrappers(stem: str) -> str:
    """The stem without what trainers wrap around the model, each at most once."""
    for wrapper in _WRAPPERS:
        stem = stem.removeprefix(wrapper)
    if stem.startswith(_FLAT):  # some write a dot into names that have none
        return stem.replace(".", "_").rstrip("_")
    return stem.replace(".processor.", ".")


class NameTable:
    """Names to module paths, for one layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._two_encoders = "text_encoder_2" in layout.components
        self._full: dict[str, str | None] = {}
        self._bare: dict[str, dict[str, str | None]] = {name: {} for name in layout.components}
        sgm = sgm_paths(path.removeprefix("unet.") for path in layout.targets if path.startswith("unet."))
        for path in layout.targets:
            component, _, tail = path.partition(".")
            for name in spellings(tail):
                _add(self._full, f"{component}.{name}", path)
                _add(self._bare[component], name, path)
            if component == "unet":
                self._add_unet(tail, sgm.get(tail), path)
            else:
                self._add_text_encoder(component, tail, path)

    def path(self, stem: str, bare: str | None) -> str | None:
        """The module of a stem; bare: the component that stems without a prefix belong to."""
        return self._full.get(stem) or (self._bare[bare].get(stem) if bare else None)

    def borrows(self, stem: str) -> bool:
        """Whether the name is kohya's for the first of two text encoders, of which the layout has one."""
        return stem.startswith(_FIRST_OF_TWO) and not self._two_encoders

    def _add_unet(self, tail: str, sgm: str | None, path: str) -> None:
        for name in filter(None, (tail, sgm)):
            flat = name.replace(".", "_")
            _add(self._full, f"lora_unet_{flat}", path)
            _add(self._full, f"lycoris_{flat}", path)
        if sgm:
            _add(self._full, f"diffusion_model.{sgm}", path)
            _add(self._full, f"unet.{sgm}", path)  # OMI

    def _add_text_encoder(self, component: str, tail: str, path: str) -> None:
        prefixes = ("lora_te2_",) if component == "text_encoder_2" else (_FIRST_OF_TWO,)
        if not self._two_encoders:
            prefixes = ("lora_te_", *prefixes)
        for name in spellings(tail):
            for prefix in prefixes:
                _add(self._full, prefix + name.replace(".", "_"), path)
            _add(self._full, f"{_OMI[component]}.{name}", path)
            for encoder in (_OMI[component],) if self._two_encoders else (_OMI[component], "clip_h"):
                _add(self._full, f"text_encoders.{encoder}.transformer.{name}", path)  # ComfyUI


def spellings(tail: str) -> tuple[str, ...]:
    """A path inside its component: transformers 5 builds CLIP without its text_model wrapper."""
    short = tail.removeprefix("text_model.")
    return (tail,) if short == tail else (tail, short)


def _add(table: dict[str, str | None], name: str, path: str) -> None:
    # a name of two modules names neither
    table[name] = path if table.get(name, path) == path else None


@lru_cache(maxsize=32)
def name_table(layout: Layout) -> NameTable:
    """The table of a layout, built once."""
    return NameTable(layout)
