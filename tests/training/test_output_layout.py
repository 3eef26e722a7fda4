"""The trainer and the server agree on what an adapter for a base must fit."""

from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from tiny_pipeline import layout_of as layout_of_pipeline
from tiny_pipeline import tiny_pipeline
from transformers import CLIPTextModel

from loramux_server.engine.base_layout import read_layout
from loramux_train.output.base_layout import layout_of

BASE = Path(__file__).parents[2] / "server/loramux_server/builtin/base"


@pytest.fixture
def models() -> dict[str, Any]:
    return {
        "unet": UNet2DConditionModel.from_pretrained(BASE / "unet"),
        "text_encoder": CLIPTextModel.from_pretrained(BASE / "text_encoder"),
    }


def test_the_same_layout_as_a_servers(models: dict[str, Any]) -> None:
    ours = layout_of(models, "builtin")
    assert len(ours.modules) > 100 and ours == read_layout(BASE, "builtin")


def test_factors_in_the_models_change_no_layout(models: dict[str, Any]) -> None:
    before = layout_of(models, "builtin")
    for model, targets in ((models["unet"], ["to_q", "conv1"]), (models["text_encoder"], ["q_proj", "fc1"])):
        inject_adapter_in_model(LoraConfig(r=2, target_modules=targets, use_dora=True), model)
    assert layout_of(models, "builtin") == before


def test_the_same_layout_as_the_tests_write_down() -> None:
    pipeline = tiny_pipeline()
    found = layout_of({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}, "tiny")
    assert found == layout_of_pipeline(pipeline)
