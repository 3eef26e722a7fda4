"""What a run writes, the store and diffusers read as the change that was trained; bases are read from files too."""

from pathlib import Path
from typing import Any

import pytest
import tiny_training as tiny
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from trained_factors import PROGRESS, facts

from loramux_store import InterpretOptions
from loramux_store.layout import known_layout, known_layouts
from loramux_store.verdict import judge
from loramux_train import base, base_file, plan
from loramux_train.adapter_settings import AdapterSettings, Ranks
from loramux_train.errors import BadBase
from loramux_train.injection import inject
from loramux_train.output.adapter_file import Form, save_adapter
from loramux_train.output.base_layout import layout_of
from loramux_train.target_settings import TargetSettings

BUILTIN = Path(__file__).parents[2] / "server/loramux_server/builtin/base"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


_RANKS = AdapterSettings(rank=4, ranks=Ranks(cross_attention=2, convolution=3), alpha=2.0)
_RSLORA = AdapterSettings(rank=4, rslora=True)
_DORA = AdapterSettings(rank=2, dora=True)


# Not DoRA in kohya's naming: diffusers 0.42 takes lengths [outputs, 1], as web interfaces want them, for [outputs].
@pytest.mark.parametrize(
    ("settings", "form"),
    [(_RANKS, "kohya"), (_RANKS, "diffusers"), (_RSLORA, "kohya"), (_RSLORA, "diffusers"), (_DORA, "diffusers")],
)
def test_diffusers_draws_with_a_file_what_the_trained_base_predicts(
    settings: AdapterSettings, form: Form, tmp_path: Path
) -> None:
    """huggingface/diffusers#9291, #14088: alpha lost or ignored, keys that load and do nothing."""
    ours = base.load(base.outline_of(BUILTIN), torch.float32, torch.device("cpu"))
    targets = TargetSettings(modules="locon", text_encoder=not settings.dora)
    injected = inject(ours.parts(), plan.make(ours.parts(), targets, settings, "adamw", 4), settings, seed=0)
    with torch.no_grad():
        for name, value in injected.parameters.items():
            if name.endswith(".B"):
                value.normal_(std=0.05)
            if name.endswith(".m"):
                value.mul_(1.2)
    layout, target = layout_of(ours.parts(), "builtin"), tmp_path / "adapter.safetensors"
    file = save_adapter(injected.modules(), layout, facts(), PROGRESS, form, "fp32", target).path
    pipeline: Any = StableDiffusionPipeline.from_pretrained(BUILTIN, safety_checker=None, dtype=torch.float32)
    plain = _predicted(pipeline.unet, pipeline.text_encoder)
    pipeline.load_lora_weights(file)
    theirs, trained = _predicted(pipeline.unet, pipeline.text_encoder), _predicted(ours.unet, ours.text_encoders[0])
    assert (trained - plain).abs().max() > 0.05
    assert (trained - theirs).abs().max() < 1e-4


def _predicted(unet: Any, encoder: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    unet.eval()
    encoder.eval()
    with torch.no_grad():
        context = encoder(torch.randint(0, 8000, (2, 77), generator=generator))[0]
        return unet(torch.randn(2, 4, 16, 16, generator=generator), torch.tensor([900, 100]), context).sample


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize("dora", [False, True])
def test_the_store_takes_a_file_for_stable_diffusion(form: Form, dora: bool, tmp_path: Path) -> None:
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
        )
    settings = AdapterSettings(rank=1, dora=dora)
    planned = plan.make({"unet": unet}, TargetSettings(modules="locon", blocks="up_blocks.3"), settings, "adamw", 4)
    for layer in planned.layers:  # weights for the layers that get factors, no others
        unet.get_submodule(layer.path).to_empty(device="cpu").weight.data.normal_()
    injected = inject({"unet": unet}, planned, settings, seed=0)
    with torch.no_grad():
        for name, value in injected.parameters.items():
            if name.endswith(".B"):
                value.normal_()
    layout, target = known_layout("sd1"), tmp_path / "adapter.safetensors"
    file = save_adapter(injected.modules(), layout, facts(), PROGRESS, form, "fp16", target).path
    verdict = judge(file, InterpretOptions(), known_layouts())
    assert verdict.verdict == "accepted", verdict.reason
    assert verdict.family == "sd1"


# bases


def _original(unet: Any) -> dict[str, torch.Tensor]:
    """A text encoder and a UNet under the names of the original checkpoints, as far as they tell the family."""
    tensors = {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": torch.zeros(2, 2)}
    return tensors | {"model.diffusion_model.input_blocks.0.0.weight": unet.conv_in.weight.detach().clone()}


def test_a_single_file_tells_its_family_and_its_prediction(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    tensors = _original(tiny.base().unet)
    save_file(tensors, file)
    outline = base.outline_of(file)
    assert (outline.family, outline.scheduler["prediction_type"]) == ("sd1", "epsilon")
    assert base.native_resolution(str(file)) == 512
    save_file(tensors | {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, file)
    scheduler = base.outline_of(file).scheduler
    assert scheduler["prediction_type"] == "v_prediction" and scheduler["rescale_betas_zero_snr"]


def test_the_tokenizer_of_a_single_file_is_clips(tmp_path: Path) -> None:
    made: Any = base_file._tokenizer(base.data_folder(), "!")
    assert made("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "is no folder and no file"),
        ("empty", "has no unet/config.json"),
        ("a.ckpt", r"is no \.safetensors file; nothing is unpickled"),
        ("b.safetensors", "cannot be read"),
    ],
)
def test_bases_that_are_none_are_told(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.ckpt").write_bytes(b"")
    (tmp_path / "b.safetensors").write_bytes(b"no header")
    with pytest.raises(BadBase, match=said):
        base.outline_of(base.find(str(tmp_path / name)))


def test_an_incomplete_folder_names_the_part(tmp_path: Path) -> None:
    folder = tiny.write_base(tmp_path / "base")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BadBase, match="unet cannot be read"):
        base.load(base.outline_of(folder), torch.float32, torch.device("cpu"))
