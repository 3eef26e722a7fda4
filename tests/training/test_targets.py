"""Which layers a preset means, on the UNets that people have (shapes only, on the meta device)."""

from typing import Any

import pytest
import tiny_training as tiny
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from loramux_train import plan
from loramux_train.adapter_settings import AdapterSettings, Ranks
from loramux_train.errors import BadSetting
from loramux_train.target_settings import TargetSettings
from loramux_train.targets import article_blocks, select

_SD: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "sd1": {**_SD, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {**_SD, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.fixture(scope="module")
def unets() -> dict[str, nn.Module]:
    with torch.device("meta"):
        return {name: UNet2DConditionModel(**config) for name, config in _CONFIGS.items()}


def _paths(unet: nn.Module, **settings: Any) -> list[str]:
    return [target.path for target in select({"unet": unet}, TargetSettings(**settings))]


def _blocks(paths: list[str]) -> set[str]:
    return {path.split(".")[0] if path.startswith("mid") else ".".join(path.split(".")[:2]) for path in paths}


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("sd1", ["down_blocks.2", "mid_block", "up_blocks.1", "up_blocks.3"]),
        ("sd2", ["down_blocks.2", "mid_block", "up_blocks.1", "up_blocks.3"]),
        ("sdxl", ["down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1"]),
    ],
)
def test_article_is_the_bottleneck_its_neighbours_and_the_decoders_highest_resolution(
    unets: dict[str, nn.Module], name: str, blocks: list[str]
) -> None:
    assert list(article_blocks(unets[name])) == blocks
    assert _blocks(_paths(unets[name], blocks="article")) == set(blocks)


# In SD 1 and 2 there are 16 transformers of one block (6 down, 1 middle, 9 up), in SDXL 70 blocks in 11 transformers
# (2x2 + 2x10 down, 10 middle, 3x10 + 3x2 up). A block has two attentions.
@pytest.mark.parametrize(
    ("name", "transformers", "blocks", "convolutions"), [("sd1", 16, 16, 50), ("sd2", 16, 16, 50), ("sdxl", 11, 70, 38)]
)
def test_presets_have_the_layers_they_say(
    unets: dict[str, nn.Module], name: str, transformers: int, blocks: int, convolutions: int
) -> None:
    unet = unets[name]
    counts = {preset: len(_paths(unet, modules=preset)) for preset in ("attn-qkv", "attn", "attn-ff", "locon")}
    forward = 2 * blocks + 2 * transformers
    assert counts == {
        "attn-qkv": 6 * blocks,
        "attn": 8 * blocks,
        "attn-ff": 8 * blocks + forward,
        "locon": 8 * blocks + forward + convolutions,
    }


def test_locon_adds_exactly_the_3x3_convolutions_inside_blocks(unets: dict[str, nn.Module]) -> None:
    unet = unets["sd1"]
    added = set(_paths(unet, modules="locon")) - set(_paths(unet, modules="attn-ff"))
    inner = {
        path
        for path, module in unet.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and path not in ("conv_in", "conv_out")
    }
    assert added == inner


@pytest.mark.parametrize("attention", ["self", "cross"])
def test_one_attention_alone(unets: dict[str, nn.Module], attention: str) -> None:
    own = {"self": ".attn1.", "cross": ".attn2."}[attention]
    paths = _paths(unets["sd1"], modules="attn", attention=attention)
    assert len(paths) == 16 * 4
    assert all(own in path for path in paths)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ("mid", {"mid_block"}),
        ("up", {"up_blocks.1", "up_blocks.2", "up_blocks.3"}),
        ("down", {"down_blocks.0", "down_blocks.1", "down_blocks.2"}),
        ("up_blocks.1, mid_block", {"up_blocks.1", "mid_block"}),
        (r"re:^(up|down)_blocks\.2\.", {"up_blocks.2", "down_blocks.2"}),
    ],
)
def test_blocks_by_name_list_and_expression(unets: dict[str, nn.Module], blocks: str, expected: set[str]) -> None:
    assert _blocks(_paths(unets["sd1"], blocks=blocks)) == expected


def test_a_list_names_whole_modules(unets: dict[str, nn.Module]) -> None:
    """attentions.1 is no beginning of attentions.10."""
    paths = _paths(unets["sdxl"], blocks="mid_block.attentions.0.transformer_blocks.1")
    assert len(paths) == 6


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"blocks": "up_block.1"}, "up_block.1.*did you mean up_blocks.1"),
        ({"blocks": "re:("}, "no regular expression"),
        ({"blocks": "down_blocks.3"}, "no layer of the unet.*down_blocks.0, down_blocks.1, down_blocks.2, mid_block"),
    ],
)
def test_blocks_that_cannot_be_are_told(unets: dict[str, nn.Module], settings: dict[str, str], said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        _paths(unets["sd1"], **settings)


def test_text_encoders_join_when_asked() -> None:
    parts = tiny.base(two=True).parts()
    chosen = select(parts, TargetSettings(text_encoder=True))
    assert {target.part for target in chosen} == {"unet", "text_encoder", "text_encoder_2"}
    assert sum(target.part == "text_encoder_2" for target in chosen) == 2 * 3
    assert {target.part for target in select(parts, TargetSettings())} == {"unet"}


def test_the_plan_counts_what_published_adapters_have(unets: dict[str, nn.Module]) -> None:
    """A rank 4 adapter of SD 1.5's attentions, as diffusers trains it, has 797,184 parameters."""
    made = plan.make({"unet": unets["sd1"]}, TargetSettings(modules="attn"), AdapterSettings(rank=4), "adamw", 4)
    assert made.parameters == 797_184
    held = sum(parameter.numel() for parameter in unets["sd1"].parameters())
    assert made.memory == held * 4 + 797_184 * 16
    assert "128 layers, 797,184 parameters" in made.text()


def test_ranks_by_name_and_group(unets: dict[str, nn.Module]) -> None:
    adapter = AdapterSettings(rank="large", ranks=Ranks(cross_attention=2, convolution=8))
    made = plan.make({"unet": unets["sd1"]}, TargetSettings(modules="locon"), adapter, "adamw", 4)
    ranks = {layer.group: (layer.rank, layer.scale) for layer in made.layers}
    assert ranks == {
        "self_attention": (16, 1.0),
        "cross_attention": (2, 1.0),
        "feed_forward": (16, 1.0),
        "convolution": (8, 1.0),
    }


def test_a_rank_that_no_layer_can_have_is_refused() -> None:
    with pytest.raises(BadSetting, match=r"rank 33 of .* is more than unet\..* can have"):
        plan.make(tiny.base().parts(), TargetSettings(blocks="mid"), AdapterSettings(rank=33), "adamw", 4)
