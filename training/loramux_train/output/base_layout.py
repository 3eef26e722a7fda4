"""The layout of a base that is held in memory: what adapters trained on it must fit.

Takes its models; gives a Layout, the same as a server's that serves this base. Knows no files.
"""

from collections.abc import Mapping

from torch import nn

from loramux_store.layout import Layout, ModuleSpec, known_layouts

__all__ = ["canonical_path", "layout_of"]

_KINDS = {nn.Linear: "linear", nn.Conv2d: "conv2d"}
# the guidance embedding of distilled UNets: no adapter names it
_NOT_ADAPTED = frozenset({"unet.time_embedding.cond_proj"})


def layout_of(models: Mapping[str, nn.Module], name: str) -> Layout:
    """Of {unet, text_encoder, text_encoder_2: model}, which may have factors of PEFT in them; under the known name
    where it is that of SD1, SD2 or SDXL."""
    modules: dict[str, ModuleSpec] = {}
    for component, model in models.items():
        for inner, layer in model.named_modules():
            path = canonical_path(component, inner.removesuffix(".base_layer"))
            if type(layer) in _KINDS and ".lora_" not in inner and path not in _NOT_ADAPTED:
                modules[path] = ModuleSpec(_KINDS[type(layer)], tuple(layer.weight.shape))
    layout = Layout(name, modules)
    return next((known for known in known_layouts() if known.digest == layout.digest), layout)


def canonical_path(component: str, inner: str) -> str:
    """The path that adapter files and layouts use: transformers 5 builds CLIP without its `text_model` level."""
    bare = component.startswith("text_encoder") and not inner.startswith(("text_model.", "text_projection"))
    return f"{component}.text_model.{inner}" if bare else f"{component}.{inner}"
