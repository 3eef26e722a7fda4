"""The generated module tables equal those of the real models, built without weights."""

import json

import pytest
import torch
from adapter_files import TOY_SDXL
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from loramux_store import Layout, ModuleSpec, known_layout
from loramux_store.errors import InvalidArgument
from loramux_store.layout import KNOWN_NAMES

_SD1_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
_SD2_UNET = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
_SDXL_UNET = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def _clip(width: int, inner: int, layers: int, heads: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projection,
    )


_CLIP_L = _clip(768, 3072, 12, 12, 768)
_MODELS = {
    "sd1": (_SD1_UNET, [(CLIPTextModel, _CLIP_L)]),
    "sd2": (_SD2_UNET, [(CLIPTextModel, _clip(1024, 4096, 23, 16, 512))]),
    "sdxl": (
        _SDXL_UNET,
        [
            (CLIPTextModel, _CLIP_L),
            (CLIPTextModelWithProjection, _clip(1280, 5120, 32, 20, 1280)),
        ],
    ),
}


_WEIGHTS = {torch.nn.Linear: "linear", torch.nn.Conv2d: "conv2d"}
_NORMS = {torch.nn.GroupNorm: "norm", torch.nn.LayerNorm: "norm"}


def _rows(component: str, model: torch.nn.Module, kinds: dict = _WEIGHTS) -> dict[str, ModuleSpec]:
    rows: dict[str, ModuleSpec] = {}
    for path, module in model.named_modules():
        if kind := kinds.get(type(module)):
            # transformers 5 builds CLIPTextModel without the text_model that files name
            bare = component.startswith("text") and not path.startswith("text_")
            name = f"{component}.{'text_model.' if bare else ''}{path}"
            rows[name] = ModuleSpec(kind, tuple(module.weight.shape))
    return rows


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_known_layout_is_that_of_the_real_model(name: str) -> None:
    unet, encoders = _MODELS[name]
    with torch.device("meta"):
        models: dict[str, torch.nn.Module] = {"unet": UNet2DConditionModel(**unet)}
        for component, (kind, config) in zip(("text_encoder", "text_encoder_2"), encoders, strict=False):
            models[component] = kind(config)
    for kinds, ours in ((_WEIGHTS, known_layout(name).modules), (_NORMS, known_layout(name).norms)):
        expected = {
            p: spec for component, model in models.items() for p, spec in _rows(component, model, kinds).items()
        }
        assert dict(ours) == expected


def test_digest_is_of_sorted_content_and_not_of_the_name() -> None:
    rows = list(TOY_SDXL.modules.items())
    assert Layout("other", dict(rows[::-1])).digest == TOY_SDXL.digest
    assert Layout("toy_sdxl", dict(rows[1:])).digest != TOY_SDXL.digest
    changed = dict(rows) | {rows[0][0]: ModuleSpec("linear", (1, 1))}
    assert Layout("toy_sdxl", changed).digest != TOY_SDXL.digest


def test_digests_of_known_layouts_never_change() -> None:
    """Compiled files and versions are kept under them."""
    assert {name: known_layout(name).digest[:16] for name in KNOWN_NAMES} == {
        "sd1": "4ec8996ee8501e50",
        "sd2": "e565d2e4077aadf5",
        "sdxl": "803f3877ad807f08",
        "builtin": "68053eb5b659bf01",
    }


def test_json_round_trip() -> None:
    again = Layout.from_json(TOY_SDXL.to_json())
    assert again == TOY_SDXL
    assert again.digest == TOY_SDXL.digest
    assert json.loads(TOY_SDXL.to_json())["name"] == "toy_sdxl"


@pytest.mark.parametrize(
    ("path", "kind", "shape"),
    [
        ("vae.conv_in", "linear", (2, 2)),
        ("unet.x", "linear", (2, 2, 1, 1)),
        ("unet.x", "conv2d", (2, 2)),
        ("unet.x", "linear", (0, 2)),
        ("unet.x", "embedding", (2, 2)),
    ],
)
def test_impossible_modules_are_refused(path: str, kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument):
        Layout("bad", {path: ModuleSpec(kind, shape)})  # type: ignore[arg-type]
