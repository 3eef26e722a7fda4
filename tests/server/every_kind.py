"""Adapters of every kind for a tiny base, published to a server, with what each changes in float64.

Takes a server; gives a Shelf. The adapters: kinds (LoRA, LoHa, LoKr, full differences and biases on all sorts of
layers), dora-output and dora-input (over LoRA, LoHa and LoKr), norms.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import adapter_kinds as kinds
import torch
from dense_reference import Change, Dense, module_of
from safetensors.torch import save_file
from torch import Tensor

from loramux_store.record import InterpretOptions, Published, UploadSpec

CONV = (".conv1", ".conv2", "downsamplers.0.conv")
MORE = {
    "loha of a core": kinds.loha_tucker(2, 0.5),
    "loha of a higher rank": kinds.loha(6, 0.5),
    "lokr of a core": kinds.lokr((4, 4), None, 2, 0.5, tucker=True),
}
Shapes = Mapping[str, tuple[int, ...]]


class Shelf:
    """Adapters written for a base, and what each changes."""

    def __init__(self, server: Any, base: Path, folder: Path) -> None:
        self.server, self.base, self.folder = server, base, folder
        self.shapes: Shapes = {path: spec.shape for path, spec in server.app.engine.layout.modules.items()}
        self.changes: dict[str, dict[str, Change]] = {}
        self.reports: dict[str, Published] = {}

    def put(self, name: str, makes: Mapping[str, kinds.Make]) -> None:
        """makes: by module path."""
        generator = torch.Generator().manual_seed(len(self.changes))
        samples = {path: make(self.shapes[path], generator) for path, make in makes.items()}
        tensors: dict[str, Tensor] = {}
        changes: dict[str, Change] = {}
        for path, sample in samples.items():
            tensors |= kinds.stem_tensors(path, sample)
            changes[f"{path}.weight"] = partial(kinds.change, sample)
            if sample.bias is not None:
                changes[f"{path}.bias"] = partial(_constant, sample.bias)
        self.put_tensors(name, tensors, changes)

    def put_tensors(
        self, name: str, tensors: Mapping[str, Tensor], changes: dict[str, Change], config: str | None = None
    ) -> None:
        file = self.folder / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
        layout = self.server.app.engine.layout.digest
        spec = UploadSpec(name, layout=layout, options=InterpretOptions(peft_config=config))
        self.reports[name] = self.server.app.store.publish(file, spec)
        self.changes[name] = changes

    def spread(self, makes: Mapping[str, kinds.Make], *sorts: str) -> dict[str, kinds.Make]:
        """Each on a layer of its own of every sort, as long as there are any."""
        chosen: dict[str, kinds.Make] = {}
        for sort in sorts:
            free = [path for path, shape in self.shapes.items() if path.endswith(sort) and _divides(shape)]
            chosen |= zip([path for path in free if path not in chosen], makes.values(), strict=False)
        return chosen

    def dense(self) -> Dense:
        return Dense(self.base, self.changes)


def _constant(delta: Tensor, _: Tensor) -> Tensor:
    return delta


def _divides(shape: tuple[int, ...]) -> bool:
    return all(width % 8 == 0 for width in shape[:2])


def fill(shelf: Shelf) -> None:
    """One adapter for each way of being applied; all act on UNet and text encoder."""
    turned = dict(reversed(kinds.KINDS.items()))
    shelf.put(
        "kinds",
        shelf.spread(kinds.KINDS, ".to_q", ".fc1", "ff.net.0.proj", "proj_in")
        | shelf.spread(turned, ".to_k", ".q_proj", ".time_emb_proj", ".to_out.0")
        | shelf.spread({**MORE, **turned}, *CONV),
    )
    inner = {name: kinds.KINDS[name] for name in ("lora with a bias", "loha", "lokr whole", "loha of high rank")}
    for axis, other in (("output", ""), ("input", "output")):
        makes = {name: kinds.decomposed(make, axis) for name, make in inner.items()}
        chosen = shelf.spread(makes, ".to_q", ".to_v", ".conv1", ".conv2", "proj_in", ".fc1")
        if other:  # one adapter may mix axes
            chosen |= shelf.spread({"loha": kinds.decomposed(kinds.KINDS["loha"], other)}, ".to_out.0", ".fc2")
        shelf.put(f"dora-{axis}", chosen)
    norms = ("down_blocks.0.resnets.0.norm1", "mid_block.attentions.0.norm", "conv_norm_out")
    norms = (*norms, "up_blocks.1.attentions.0.transformer_blocks.0.norm2", "up_blocks.0.resnets.1.norm2")
    texts = ("encoder.layers.0.layer_norm1", "final_layer_norm")
    tensors: dict[str, Tensor] = {}
    changes: dict[str, Change] = {}
    for prefix, names in (("unet", norms), ("text_encoder.text_model", texts)):
        for name in names:
            path = f"{prefix}.{name}"
            model = shelf.server.app.engine.base.models[prefix.partition(".")[0]]
            width = module_of(model, path.partition(".")[2]).weight.shape
            stem = path.replace("text_encoder", "lora_te").replace("unet", "lora_unet").replace(".", "_")
            for leaf, kind in (("w_norm", "weight"), ("b_norm", "bias")):
                tensors[f"{stem}.{leaf}"] = torch.randn(width) * 0.3
                changes[f"{path}.{kind}"] = partial(_constant, tensors[f"{stem}.{leaf}"].double())
    shelf.put_tensors("norms", tensors, changes)
