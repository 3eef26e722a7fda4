"""Bases from folders and from Hugging Face's cache; and what is refused, part by part."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from loramux_server.app import BUILTIN_FOLDER
from loramux_server.engine.load_base import find_base, load_base
from loramux_server.errors import BadBase
from loramux_server.requests import GenerationRequest, Sampler

CPU = torch.device("cpu")
Change = Callable[[dict[str, torch.Tensor]], object]
FAMILIES = {"tiny_base": "sd1", "tiny_sd2": "sd2", "tiny_sdxl": "sdxl"}
ASKED = GenerationRequest(
    "a red apple", negative_prompt="a dog", sampler=Sampler.DDIM, steps=3, guidance_scale=4.0, seed=7
)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda base: Path(shutil.copytree(base, tmp_path / "base"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def weights(part: Path) -> Path:
    (file,) = part.glob("*.safetensors")
    return file


def drop(part: Path, name: str) -> None:
    file = weights(part)
    save_file({key: tensor for key, tensor in load_file(file).items() if key != name}, file, {"format": "pt"})


# folders


@pytest.mark.parametrize("base,family", [*FAMILIES.items(), ("tiny_lcm", "sd1")])
def test_a_folder_says_what_it_is(base: str, family: str, make_server: Any, request: pytest.FixtureRequest) -> None:
    server = make_server(request.getfixturevalue(base))
    facts = server.admission.base
    assert (facts.family, facts.distilled) == (family, "lcm" if base == "tiny_lcm" else "")
    guidance = {"tiny_sdxl": 5.0, "tiny_lcm": 8.5}.get(base, 7.5)
    few = (4, Sampler.LCM) if base == "tiny_lcm" else (20, Sampler.DPMPP_2M)
    assert (facts.guidance_scale, facts.steps, facts.sampler, facts.side) == (guidance, *few, 32)
    assert len(facts.text_widths) == (2 if family == "sdxl" else 1)


@pytest.mark.parametrize(
    "kind,sampler", [("EulerDiscrete", Sampler.EULER), ("EulerAncestralDiscrete", Sampler.EULER_ANCESTRAL)]
)
def test_a_turbo_base_is_told_by_its_scheduler(
    kind: str, sampler: Sampler, copy: Any, make_server: Any, tiny_sdxl: Path
) -> None:
    folder = copy(tiny_sdxl)
    edit(folder / "scheduler/scheduler_config.json", _class_name=f"{kind}Scheduler", timestep_spacing="trailing")
    facts = make_server(folder).admission.base
    assert (facts.distilled, facts.guidance_scale, facts.steps, facts.sampler) == ("turbo", 1.0, 4, sampler)


def test_half_precision_weights_are_taken_where_there_are_no_others(copy: Any, tiny_sdxl: Path) -> None:
    folder, want = copy(tiny_sdxl), load_base(tiny_sdxl, "tiny", CPU)
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    base = load_base(folder, "tiny", CPU)
    pairs = zip(base.models.values(), want.models.values(), strict=True)
    assert all(torch.equal(a, b) for m, n in pairs for a, b in zip(m.parameters(), n.parameters(), strict=True))
    assert base.digest != want.digest
    assert {p.dtype for model in (*base.models.values(), base.vae) for p in model.parameters()} == {torch.float32}


def test_the_digest_is_of_contents(copy: Any, tiny_base: Path) -> None:
    folder, digest = copy(tiny_base), load_base(tiny_base, "tiny", CPU).digest
    assert load_base(folder, "other", CPU).digest == digest
    edit(folder / "scheduler/scheduler_config.json", steps_offset=0)
    assert load_base(folder, "tiny", CPU).digest != digest


def test_weights_may_be_in_several_files(copy: Any, tiny_base: Path) -> None:
    folder = copy(tiny_base)
    weights(folder / "unet").unlink()
    UNet2DConditionModel.from_pretrained(tiny_base / "unet").save_pretrained(folder / "unet", max_shard_size="200KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) >= 2
    one, other = (dict(load_base(each, "tiny", CPU).unet.named_parameters()) for each in (folder, tiny_base))
    assert all(torch.equal(tensor, one[name]) for name, tensor in other.items())


PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(part: str, copy: Any, tiny_sdxl: Path) -> None:
    folder = copy(tiny_sdxl)
    shutil.rmtree(folder / part)
    with pytest.raises(BadBase, match=rf"lacks {part}; expected unet, vae, text_encoder, "):
        load_base(folder, "tiny", CPU)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_weights_that_are_missing_damaged_or_pickled_are_named(part: str, copy: Any, tiny_sdxl: Path) -> None:
    folder = copy(tiny_sdxl)
    file = weights(folder / part)
    name = min(load_file(file), key=lambda key: (not key.endswith("bias"), key))
    drop(folder / part, name)
    with pytest.raises(BadBase, match=f": {part} lacks the weights .*{name.split('.')[-2]}"):
        load_base(folder, "tiny", CPU)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BadBase, match=f": {part} could not be loaded: "):
        load_base(folder, "tiny", CPU)
    file.unlink()
    with pytest.raises(BadBase, match=f": {part} has no safetensors weights$"):
        load_base(folder, "tiny", CPU)
    pickled = file.with_suffix(".bin")
    pickled.write_bytes(b"\x80\x04\x95")
    with pytest.raises(BadBase, match=f": {part} has no safetensors weights; {pickled.name} is pickled, and nothing"):
        load_base(folder, "tiny", CPU)


CHANGES: list[tuple[str, dict[str, Any] | None, str]] = [
    ("unet/config.json", {"in_channels": 9}, "unet could not be loaded: "),
    ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "unet is a UNet3DConditionModel, expected a UNet2D"),
    ("unet/config.json", {"addition_embed_type": "image"}, "unet has added embeddings of type image, expected none or"),
    ("text_encoder/config.json", {"hidden_size": 64}, "text_encoder could not be loaded: "),
    ("scheduler/scheduler_config.json", None, "has no scheduler/scheduler_config.json"),
    ("model_index.json", None, "has no model_index.json; expected a folder in diffusers layout"),
    ("unet/config.json", None, "has no unet/config.json"),
    ("tokenizer/vocab.json", None, "tokenizer lacks vocab.json or merges.txt"),
]


@pytest.mark.parametrize("name,change,said", CHANGES)
def test_what_does_not_belong_together_is_named(
    name: str, change: dict[str, Any] | None, said: str, copy: Any, tiny_sdxl: Path
) -> None:
    folder = copy(tiny_sdxl)
    (folder / "tokenizer/tokenizer.json").unlink(missing_ok=True)
    if not (folder / "tokenizer/vocab.json").exists():
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(BUILTIN_FOLDER / "base/tokenizer" / file, folder / "tokenizer" / file)
    if change is None:
        (folder / name).unlink()
    else:
        edit(folder / name, **change)
    with pytest.raises(BadBase, match=said):
        load_base(folder, "tiny", CPU)


def test_parts_of_different_bases_are_refused(copy: Any, tiny_sdxl: Path, tiny_sd2: Path, tiny_base: Path) -> None:
    folder = copy(tiny_base)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
        shutil.copytree(tiny_sd2 / part, folder / part)
    with pytest.raises(BadBase, match="unet reads text of width 32, the text encoders give 40; expected the same"):
        load_base(folder, "tiny", CPU)


def test_a_unet_that_reads_more_or_other_numbers_is_refused(copy: Any, tiny_sdxl: Path, tiny_base: Path) -> None:
    folder = copy(tiny_sdxl)
    config = json.loads((folder / "unet/config.json").read_text())
    refiner = UNet2DConditionModel.from_config(config | {"projection_class_embeddings_input_dim": 24 + 5 * 8})
    refiner.save_pretrained(folder / "unet")
    with pytest.raises(BadBase, match=r"unet is given 64 numbers beside the text, expected 72 \(the refiner"):
        load_base(folder, "tiny", CPU)
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_config(config | {"in_channels": 9}).save_pretrained(folder / "unet")
    with pytest.raises(BadBase, match="unet has 9 input channels, expected 4"):
        load_base(folder, "tiny", CPU)
    shutil.copytree(tiny_sdxl / "unet", folder / "unet", dirs_exist_ok=True)
    vae = json.loads((folder / "vae/config.json").read_text())
    AutoencoderKL.from_config(vae | {"latent_channels": 16}).save_pretrained(folder / "vae")
    with pytest.raises(BadBase, match="vae has 16 latent channels, expected 4"):
        load_base(folder, "tiny", CPU)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(copy: Any, tiny_base: Path) -> None:
    folder = copy(tiny_base)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<one-more>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    with pytest.raises(BadBase, match="text_encoder has 8514 token embeddings, its tokenizer 8515 tokens"):
        load_base(folder, "tiny", CPU)


# Hugging Face's cache


def in_cache(base: Path, cache: Path) -> Path:
    """As huggingface_hub lays a model out: a snapshot of links to blobs, and a ref to it."""
    model = cache / "models--someone--tiny.model"
    snapshot, blobs = model / "snapshots" / ("a" * 40), model / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in base.rglob("*") if path.is_file())):
        shutil.copy(file, blobs / str(number))
        link = snapshot / file.relative_to(base)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    (model / "refs").mkdir()
    (model / "refs/main").write_text("a" * 40)
    return snapshot


def test_a_hub_id_is_looked_up_in_the_cache_only(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = in_cache(tiny_sdxl, tmp_path)
    source, name = find_base("someone/tiny.model")
    assert (source.resolve(), name) == (snapshot.resolve(), "someone/tiny.model")
    assert load_base(source, name, CPU).digest == load_base(tiny_sdxl, "tiny", CPU).digest
    shutil.rmtree(snapshot / "vae")
    with pytest.raises(BadBase, match="lacks vae"):
        load_base(*find_base("someone/tiny.model"), CPU)
    with pytest.raises(BadBase, match=r"base nobody/nothing is no folder.*has no such model; nothing is downloaded"):
        find_base("nobody/nothing")
    for text in ("nothing", "/no/such/folder", "a/b/c", "../no-such-folder"):
        with pytest.raises(BadBase, match="is no folder and no file"):
            find_base(text)


def test_the_cache_is_where_hf_home_says(tiny_sdxl: Path, tmp_path: Path) -> None:
    snapshot = in_cache(tiny_sdxl, tmp_path / "hub")
    code = "from loramux_server.engine.load_base import find_base; print(find_base('someone/tiny.model')[0])"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "HF_HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert Path(run.stdout.strip()).resolve() == snapshot.resolve(), run.stderr
