"""What a file says of itself is what people's tools and our store read of it."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open
from trained_factors import PROGRESS, facts, trained

from loramux_store import InterpretOptions, Store, UploadSpec, known_layout
from loramux_store.file_notes import notes_of
from loramux_store.layout import KNOWN_NAMES, Layout, ModuleSpec
from loramux_store.verdict import judge
from loramux_train.output.adapter_file import save_adapter
from loramux_train.output.data_uri import data_uri
from loramux_train.output.facts import About, DataFacts, PictureFolder, RunFacts
from loramux_train.output.metadata import metadata_of

TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def said(run: RunFacts, layout: Layout | None = None, form: str = "kohya") -> dict[str, str]:
    return metadata_of(run, PROGRESS, layout or known_layout("sd1"), form)


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_the_store_reads_it_back(tmp_path: Path, form: str) -> None:
    layout = known_layout("sd1")
    file = save_adapter(
        trained(layout, [TO_Q], rank=4),
        layout,
        facts(),
        PROGRESS,
        form,
        "fp16",
        tmp_path / "a.safetensors",  # type: ignore[arg-type]
    ).path
    verdict = judge(file, InterpretOptions(), [known_layout(name) for name in KNOWN_NAMES])
    assert verdict.verdict == "accepted" and verdict.family == "sd1"
    assert not verdict.warnings and not verdict.ignored
    with Store.open(tmp_path / "store") as store:
        version = store.publish(file, UploadSpec("a")).version
        assert version is not None
        assert version.notes.trigger_words == ("zib style",) and version.notes.source == "modelspec.trigger_phrase"
        assert version.notes.licence == "CC0-1.0" and version.notes.base_model == "tiny"
    with safe_open(file, "pt") as opened:
        assert ("lora_adapter_metadata" in opened.metadata()) == (form == "diffusers")


def test_without_a_trigger_the_commonest_tag_is_one() -> None:
    run = facts(about=About("a"))
    notes = notes_of(said(run), ())
    assert notes.trigger_words == ("a zib cat",) and notes.source == "ss_tag_frequency"


def test_metadata_settles_what_shapes_leave_open(tmp_path: Path) -> None:
    """Self-attention alone fits SD1 and SD2."""
    for family, word in (("sd1", "sd_v1"), ("sd2", "sd_v2")):
        layout = known_layout(family)
        run = facts(base=replace(facts().base, family=family))
        file = save_adapter(trained(layout, [TO_Q]), layout, run, PROGRESS, "kohya", "fp16", tmp_path / family).path
        verdict = judge(file, InterpretOptions(), [known_layout(name) for name in KNOWN_NAMES])
        assert verdict.family == family and word in " ".join(verdict.evidence)


def test_a_thumbnail_is_a_picture_as_text() -> None:
    picture = Image.new("RGB", (300, 600), "red")
    found = said(facts(about=About("a", thumbnail=data_uri(picture, 256))))["modelspec.thumbnail"]
    head, _, body = found.partition(",")
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        assert (head, image.format, image.size) == ("data:image/jpeg;base64", "JPEG", (128, 256))
    assert "modelspec.thumbnail" not in said(facts())


def test_values_are_those_that_kohyas_scripts_write() -> None:
    found = said(facts())
    assert found["ss_network_dim"] == "4" and found["ss_network_alpha"] == "2.0"
    assert found["ss_base_model_version"] == "sd_v1" and found["ss_v2"] == "False"
    assert found["ss_text_encoder_lr"] == "None" and found["ss_unet_lr"] == found["ss_learning_rate"] == "0.001"
    assert found["ss_steps"] == "250" and found["ss_max_train_steps"] == "500" and found["ss_epoch"] == "3"
    assert found["ss_num_train_images"] == "16" and found["ss_num_reg_images"] == "4"
    assert found["ss_num_epochs"] == "125"
    assert found["ss_resolution"] == "(512, 512)" and found["ss_enable_bucket"] == "True"
    assert json.loads(found["ss_bucket_info"])["buckets"]["0"] == {"resolution": [448, 576], "count": 2}
    assert json.loads(found["ss_dataset_dirs"]) == {"cats": {"n_repeats": 2, "img_count": 8}}
    assert json.loads(found["ss_tag_frequency"]) == {"cats": {"a zib cat": 5, "a dog": 3}}
    assert found["ss_training_started_at"] == "1767322800.0" and found["ss_training_finished_at"] == "1767323045.0"
    assert found["modelspec.date"] == "2026-01-02T03:04:05+00:00" and found["modelspec.resolution"] == "512x512"
    assert found["loramux.base_digest"] == found["ss_new_sd_model_hash"] == "ab" * 32
    assert found["loramux.layout"] == known_layout("sd1").digest
    assert "loramux.rslora" not in found and json.loads(found["ss_network_args"]) == {}


def test_no_buckets_are_told_where_none_are_asked_for() -> None:
    """All pictures have one size then, or with `upscale` some."""
    found = said(facts(data=replace(facts().data, bucketed=False)))
    assert found["ss_enable_bucket"] == "False" and found["ss_bucket_info"] == "None"


def test_nothing_is_said_of_a_vae_beside_the_base() -> None:
    """sd-scripts say it where one was given, and no run here takes one."""
    assert not [key for key in said(facts()) if "vae" in key]


@pytest.mark.parametrize(
    "family,prediction,form,architecture,implementation",
    [
        ("sd1", "epsilon", "kohya", "stable-diffusion-v1/lora", "diffusers"),
        ("sd2", "epsilon", "kohya", "stable-diffusion-v2-512/lora", "diffusers"),
        ("sd2", "v", "peft", "stable-diffusion-v2-768-v/lora", "diffusers"),
        ("sdxl", "epsilon", "diffusers", "stable-diffusion-xl-v1-base/lora", "diffusers"),
        ("sdxl", "epsilon", "kohya", "stable-diffusion-xl-v1-base/lora", "https://github.com/Stability-AI/generative-models"),
    ],
)  # fmt: skip
def test_architectures(family: str, prediction: str, form: str, architecture: str, implementation: str) -> None:
    found = said(facts(base=replace(facts().base, family=family, prediction=prediction)), known_layout(family), form)
    assert found["modelspec.architecture"] == architecture
    assert found["modelspec.implementation"] == implementation
    assert found["modelspec.prediction_type"] == prediction


def test_a_base_of_its_own_shapes_is_not_called_sd1() -> None:
    assert (
        said(facts(), Layout("tiny", {TO_Q: ModuleSpec("linear", (8, 8))}))["ss_base_model_version"] == "loramux_tiny"
    )


def test_how_kinds_are_told() -> None:
    network = replace(facts().network, conv_rank=2, conv_alpha=1.0, dora=True, rslora=True)
    found = said(facts(network=network))
    assert found["ss_network_module"] == "lycoris.kohya" and found["loramux.rslora"] == "true"
    args = {"algo": "lora", "dora_wd": "True", "conv_dim": "2", "conv_alpha": "1.0"}
    assert json.loads(found["ss_network_args"]) == args


def test_paragraphs_for_captions_and_broken_names_do_no_harm(tmp_path: Path) -> None:
    """The commonest captions stay; the header stays within what readers take."""
    tags = {f"{at} " + "x" * 5000: 1 for at in range(2000)} | {"often": 9, "half \udce9": 8}
    data = DataFacts((PictureFolder("caf\udce9", 10, tags=tags),), (64, 64))
    layout = known_layout("sd1")
    run = facts(about=About("a"), data=data)
    file = save_adapter(trained(layout, [TO_Q]), layout, run, PROGRESS, "kohya", "fp16", tmp_path / "a").path
    assert file.stat().st_size < 2 << 20
    verdict = judge(file, InterpretOptions(), [layout])
    assert verdict.verdict == "accepted"
    with safe_open(file, "pt") as opened:
        (found,) = json.loads(opened.metadata()["ss_tag_frequency"]).values()
    assert found["often"] == 9 and len(found) > 100


def test_only_times_differ_between_two_runs() -> None:
    again = replace(PROGRESS, at=PROGRESS.at.replace(year=2027))
    first, second = said(facts()), metadata_of(facts(), again, known_layout("sd1"), "kohya")
    assert {key for key in first if first[key] != second[key]} == {"ss_training_finished_at", "modelspec.date"}
