"""Sample pictures are what diffusers draws, the sheet shows them, and the training does not notice."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from loramux_train.output.sample_sheet import SampleSheet
from loramux_train.output.sampling import BaseParts, SampleSettings, draw_samples, without_adapter

BASE = Path(__file__).parents[2] / "server/loramux_server/builtin/base"
SETTINGS = SampleSettings(("a fox", "a red apple"), 64, 64, seed=5, steps=2, guidance=3.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Plenty for models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pipeline() -> Any:
    return StableDiffusionPipeline.from_pretrained(BASE, safety_checker=None, dtype=torch.float32)


def parts_of(pipeline: Any) -> BaseParts:
    two = hasattr(pipeline, "text_encoder_2")
    return BaseParts(
        pipeline.unet,
        pipeline.vae,
        (pipeline.text_encoder, pipeline.text_encoder_2) if two else (pipeline.text_encoder,),
        (pipeline.tokenizer, pipeline.tokenizer_2) if two else (pipeline.tokenizer,),
        {**pipeline.scheduler.config, "_class_name": type(pipeline.scheduler).__name__},
    )


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def same(one: list[Image.Image], other: list[Image.Image]) -> bool:
    return all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(one, other, strict=True))


def with_factors(pipeline: Any, dropout: float = 0.0) -> list[torch.nn.Parameter]:
    torch.manual_seed(1)
    for model, targets in ((pipeline.unet, ["to_q", "to_v", "conv1"]), (pipeline.text_encoder, ["q_proj"])):
        model.requires_grad_(False)
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, lora_dropout=dropout)
        inject_adapter_in_model(config, model)
    return [p for model in (pipeline.unet, pipeline.text_encoder) for p in model.parameters() if p.requires_grad]


def peers(pipeline: Any, settings: SampleSettings) -> list[Image.Image]:
    pipeline.set_progress_bar_config(disable=True)
    return [
        pipeline(
            prompt,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            width=settings.width,
            height=settings.height,
            generator=torch.Generator().manual_seed(settings.seed + at),
        ).images[0]
        for at, prompt in enumerate(settings.prompts)
    ]


def test_pictures_are_those_of_diffusers_on_the_built_in_base(pipeline: Any) -> None:
    """v-prediction."""
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    ours = draw_samples(parts_of(pipeline), SETTINGS)
    assert same(ours, peers(pipeline, SETTINGS)) and not same(ours[:1], ours[1:])


def test_pictures_are_those_of_diffusers_on_sdxl() -> None:
    pipeline = tiny_sdxl()
    settings = replace(SETTINGS, width=32, height=32)
    assert same(draw_samples(parts_of(pipeline), settings), peers(pipeline, settings))


def tiny_sdxl() -> Any:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=16, bos_token_id=len(tokenizer) - 2, eos_token_id=len(tokenizer) - 1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    encoders = CLIPTextModel(text), CLIPTextModelWithProjection(text)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    scheduler = StableDiffusionPipeline.from_pretrained(BASE, safety_checker=None).scheduler
    return StableDiffusionXLPipeline(
        vae.eval(), *(e.eval() for e in encoders), tokenizer, tokenizer, unet.eval(), scheduler, add_watermarker=False
    )


def test_with_and_without_the_adapter(pipeline: Any) -> None:
    settings = replace(SETTINGS, prompts=("a fox",), steps=1)
    base = draw_samples(parts_of(pipeline), settings)
    with_factors(pipeline)
    parts = parts_of(pipeline)
    taught = draw_samples(parts, settings)
    with without_adapter(parts.models()):
        assert same(draw_samples(parts, settings), base)
    assert not same(taught, base) and same(draw_samples(parts, settings), taught)


def losses(pipeline: Any, between: Callable[[int], object]) -> list[float]:
    """Three steps of a training; the VAE stays in evaluation mode."""
    trained = with_factors(pipeline, dropout=0.5)
    pipeline.unet.train()
    pipeline.text_encoder.train()
    pipeline.vae.eval()
    optimiser = torch.optim.AdamW(trained, 1e-3)
    found: list[float] = []
    torch.manual_seed(2)
    for step in range(3):
        ids = pipeline.tokenizer("a fox", padding="max_length", return_tensors="pt")["input_ids"]
        predicted = pipeline.unet(torch.randn(1, 4, 16, 16), torch.randint(1000, (1,)), pipeline.text_encoder(ids)[0])
        loss = predicted.sample.square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        found.append(loss.item())
        between(step)
    return found


def test_the_training_does_not_notice(pipeline: Any) -> None:
    """Losses are the same to the bit with and without samples, noise and dropout from the global generator."""
    other = StableDiffusionPipeline.from_pretrained(BASE, safety_checker=None, dtype=torch.float32)
    drawn: list[list[Image.Image]] = []

    def sample(_step: int) -> None:
        parts = parts_of(other)
        before = [[module.training for module in model.modules()] for model in parts.models()]
        drawn.append(draw_samples(parts, replace(SETTINGS, prompts=("a fox",))))
        assert [[module.training for module in model.modules()] for model in parts.models()] == before

    assert losses(pipeline, lambda _step: None) == losses(other, sample)
    assert len(drawn) == 3 and not same(drawn[0], drawn[2])


def test_nothing_stays_changed_where_drawing_fails(pipeline: Any) -> None:
    parts = parts_of(pipeline)
    parts.unet.train()
    torch.manual_seed(4)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="divisible by 8"):
        draw_samples(parts, replace(SETTINGS, width=65))
    assert parts.unet.training and not parts.vae.training
    assert torch.equal(torch.get_rng_state(), state)


# -- the sheet --------------------------------------------------------------------------------------------------------


def picture(colour: str, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_a_sheet_grows_row_by_row(tmp_path: Path) -> None:
    sheet = SampleSheet(tmp_path / "samples.png", ["a fox", "an owl"])
    heights: list[int] = []
    for step, colour in ((0, "red"), (10, "lime")):
        sheet.add(step, [picture(colour), picture("blue")])
        with Image.open(sheet.path) as image:
            heights.append(image.height)
            columns = np.asarray(image.convert("RGB"))
    assert heights[1] - heights[0] == 48 + 4
    counts = {
        tuple(rgb): n for rgb, n in zip(*np.unique(columns.reshape(-1, 3), axis=0, return_counts=True), strict=True)
    }
    assert (counts[255, 0, 0], counts[0, 255, 0], counts[0, 0, 255]) == (64 * 48, 64 * 48, 2 * 64 * 48)
    reds, blues = (np.argwhere((columns == rgb).all(-1)) for rgb in ((255, 0, 0), (0, 0, 255)))
    assert reds[:, 1].max() < blues[:, 1].min() and reds[:, 0].min() == blues[:, 0].min()
    assert (columns[: reds[:, 0].min()] < 128).any() and (columns[:, : reds[:, 1].min()] < 128).any()  # labels
    assert [path.name for path in tmp_path.iterdir()] == ["samples.png"]


def test_a_resumed_run_goes_on_with_its_sheet(tmp_path: Path) -> None:
    """Steps that are done again replace what came of them before."""
    path, labels = tmp_path / "samples.png", ["a fox"]
    first = SampleSheet(path, labels)
    for step, colour in ((0, "red"), (10, "lime"), (20, "blue")):
        first.add(step, [picture(colour)])
    again = SampleSheet(path, labels)
    assert [(row.step, row.images[0].getpixel((9, 9))) for row in again.rows] == [
        (0, (255, 0, 0)),
        (10, (0, 255, 0)),
        (20, (0, 0, 255)),
    ]
    again.add(10, [picture("black")])
    assert [row.step for row in SampleSheet(path, labels).rows] == [0, 10]
    whole = SampleSheet(tmp_path / "unbroken.png", labels)
    whole.add(0, [picture("red")])
    whole.add(10, [picture("black")])
    assert whole.path.read_bytes() == path.read_bytes()


def test_another_runs_sheet_or_no_sheet_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "samples.png"
    SampleSheet(path, ["a fox"]).add(0, [picture("red")])
    assert SampleSheet(path, ["an owl"]).rows == () and SampleSheet(path, ["a fox", "an owl"]).rows == ()
    picture("red").save(path)
    assert SampleSheet(path, ["a fox"]).rows == ()
    path.write_bytes(b"no picture")
    assert SampleSheet(path, ["a fox"]).rows == ()


def test_large_pictures_are_shown_smaller_and_wrong_ones_refused(tmp_path: Path) -> None:
    sheet = SampleSheet(tmp_path / "samples.png", ["x " * 400, "\u732b\n<b>"])
    sheet.add(0, [picture("red", (1024, 768))] * 2)
    assert sheet.rows[0].images[0].size == (512, 384)
    before = sheet.path.read_bytes()
    with pytest.raises(ValueError, match="step 5: got 1 pictures, expected 2"):
        sheet.add(5, [picture("red")])
    with pytest.raises(ValueError, match="one size"):
        sheet.add(5, [picture("red")] * 2)
    assert sheet.path.read_bytes() == before and len(sheet.rows) == 1
