"""Whole runs with new words on a tiny base: how they go on, what they write, and who reads it."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_training as tiny
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from loramux_store import Layout, Store, UploadSpec
from loramux_store.header import read_container
from loramux_train import base as bases
from loramux_train import checkpoint, config, session
from loramux_train.batch import Batch
from loramux_train.errors import AlreadyFinished, BadSetting, CannotResume, Diverged
from loramux_train.outlook import outlook_of
from loramux_train.output.base_layout import layout_of
from loramux_train.output.sample_sheet import SampleSheet
from loramux_train.text import Text
from loramux_train.tokens.vectors import Tokens
from loramux_train.training import Report, Training
from loramux_train.watchers import Watcher

NEW: list[Any] = [{"word": "<zib>", "vectors": 3, "start": "red apple"}, "my style"]
CAPTIONS = ("a <zib> on blue", "", "two cats", "the moon in my style", "<zib>, my style")
PARTS = ("text_encoder", "text_encoder_2")


@pytest.fixture(scope="module", params=[False, True], ids=["one encoder", "two encoders"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("base"), two=request.param)


@pytest.fixture(autouse=True)
def _one_precision_a_run() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(True)


@dataclass(frozen=True)
class Captioned(tiny.MadeBatches):
    """Batches with and without new words; from `bad` on they are infinite."""

    bad: int = 10**9

    def batch(self, position: int) -> Batch:
        made = super().batch(position)
        captions = tuple(CAPTIONS[(2 * position + index) % len(CAPTIONS)] for index in range(self.count))
        return replace(made, captions=captions, latents=made.latents * (math.inf if position >= self.bad else 1))


def settings(base: Path, out: Path, **sections: dict[str, Any]) -> config.Config:
    given: dict[str, Any] = {
        "data": {"folders": ["unused"]},
        "base": {"path": str(base)},
        "tokens": {"new": NEW, "rate": 1e-2},
        "optimiser": {"rate": 1e-2},
        "run": {"steps": 4, "device": "cpu", "save_every": 2},
        "output": {"folder": str(out), "dtype": "fp32"},
    }
    for name, values in sections.items():
        given[name] = given.get(name, {}) | values
    return config.resolved(config.parse(given))


def opened(batches: Any = None, held_out: int = 0, captions: tuple[str, ...] = CAPTIONS) -> session.OpenData:
    learnt = Captioned() if batches is None else batches
    return lambda *_: session.Data(learnt, Captioned(length=held_out, seed=1), tiny.DATA_SET, captions=captions)


class Seen(Watcher):
    """Keeps what it is told, and the values of the last step; stops after a step, where that is asked."""

    def __init__(self, stop_after: int = 0) -> None:
        self.reports: list[Report] = []
        self.losses: list[float] = []
        self.values: dict[str, Tensor] = {}
        self._stop_after = stop_after

    def started(self, training: Training) -> None:
        self.training = training

    def stepped(self, report: Report) -> None:
        self.reports.append(report)
        self.values = {name: value.detach().clone() for name, value in self.training.values.items()}
        if report.step == self._stop_after:
            raise KeyboardInterrupt

    def validated(self, step: int, loss: float, best: bool) -> None:
        self.losses.append(loss)


ALONE = {"new": NEW, "rate": 1e-2, "alone": True}
EVERYTHING: dict[str, Any] = {
    "tokens": {"new": NEW, "rate": 1e-2, "stop": 0.8, "bundle": True},
    "adapter": {"ema": 0.9, "dropout": 0.2},
    "targets": {"text_encoder": True},
    "run": {"steps": 6, "save_every": 2, "validate_every": 2, "accumulation": 2},
    "output": {"which": "best"},
}


def files(out: Path) -> dict[str, dict[str, Tensor]]:
    """What a run left besides checkpoints."""
    found = [*out.glob("*.safetensors"), *out.glob("embeddings/*.safetensors")]
    return {str(path.relative_to(out)): load_file(path) for path in found}


PRODIGY = {"tokens": {"new": NEW, "rate": 1.0, "bundle": True}, "optimiser": {"name": "prodigy", "rate": 1.0}}
KINDS = {"all": EVERYTHING, "alone": EVERYTHING | {"tokens": ALONE, "targets": {}}, "prodigy": EVERYTHING | PRODIGY}


@pytest.mark.parametrize("sections", KINDS.values(), ids=KINDS)
def test_a_broken_run_ends_with_the_bits_of_a_whole_one(base: Path, tmp_path: Path, sections: dict[str, Any]) -> None:
    whole, broken = Seen(), Seen()
    session.run(settings(base, tmp_path / "one", **sections), opened(held_out=2), None, [whole])
    halves = settings(base, tmp_path / "two", **_within(sections, tmp_path / "two"))
    with pytest.raises(KeyboardInterrupt):
        session.run(halves, opened(held_out=2), None, [Seen(stop_after=5)])
    session.run(halves, opened(held_out=2), "latest", [broken])
    assert broken.reports == whole.reports[4:] and broken.losses == whole.losses[2:]
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    adapters = set() if sections["tokens"].get("alone") else {"adapter.safetensors", "adapter-bundle.safetensors"}
    assert one.keys() == two.keys() == {"embeddings/zib.safetensors", "embeddings/my_style.safetensors"} | adapters
    for name, tensors in one.items():
        assert all(torch.equal(tensor, two[name][key]) for key, tensor in tensors.items())


def _within(sections: dict[str, Any], out: Path) -> dict[str, Any]:
    return sections | {"output": sections["output"] | {"folder": str(out)}}


def test_files_hold_the_averaged_values_and_say_what_they_are(base: Path, tmp_path: Path) -> None:
    seen = Seen()
    first = session.run(settings(base, tmp_path, tokens=ALONE, adapter={"ema": 0.9}), opened(), None, [seen])
    assert first == tmp_path / "embeddings/zib.safetensors"
    assert not torch.equal(seen.values["tokens.text_encoder.0"], seen.training.parameters["tokens.text_encoder.0"])
    two = len(seen.training.base.text_encoders) == 2
    for number, (file, word) in enumerate({"zib": "<zib>", "my_style": "my style"}.items()):
        path = tmp_path / f"embeddings/{file}.safetensors"
        names = ("clip_l", "clip_g") if two else (word,)
        expected = [seen.values[f"tokens.{part}.{number}"] for part in PARTS[: len(names)]]
        held = load_file(path)
        assert list(held) == sorted(names)
        assert all(torch.equal(held[name], value) for name, value in zip(names, expected, strict=True))
        with safe_open(path, "pt") as handle:
            about = handle.metadata()
        assert about["modelspec.trigger_phrase"] == word and about["ss_steps"] == "4"
        family = "stable-diffusion-xl-v1-base" if two else "stable-diffusion-v1"
        assert about["modelspec.architecture"] == f"{family}/textual-inversion"


def test_diffusers_reads_them_and_reads_prompts_as_the_run_did(base: Path, tmp_path: Path) -> None:
    seen = Seen()
    session.run(settings(base, tmp_path, tokens=ALONE), opened(), None, [seen])
    training = seen.training
    pipe: Any = _pipeline(base)
    _teach(pipe, tmp_path)
    training.text.train(False)
    for caption in ("a <zib> on blue", "the moon in my style, a <zib>", "two cats"):
        told = training.text.conditions([caption], training.batches.batch(0).sizes[:1], (8, 8))
        out = pipe.encode_prompt(caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        assert (told["encoder_hidden_states"] - out[0]).abs().max() < 1e-5
        if "added_cond_kwargs" in told:
            assert (told["added_cond_kwargs"]["text_embeds"] - out[2]).abs().max() < 1e-5
    plain = Text(training.base).embed(["a <zib> on blue"]).context
    assert (training.text.embed(["a <zib> on blue"]).context - plain).abs().max() > 1e-2, "vectors that act"


PROMPTS = ("a <zib> on blue", "my style, two cats", "two cats")
LOUD = ALONE | {"rate": 1.0, "norm": "free"}
"""Vectors that a base of random weights draws other pictures with."""


def sampled(**more: object) -> dict[str, Any]:
    return {"prompts": list(PROMPTS), "width": 16, "height": 16, "steps": 2, "every": 2, "seed": 3, **more}


def pixels(image: Image.Image) -> Any:
    return np.asarray(image, dtype=int)


@pytest.mark.parametrize("negative", ["", "a grey <zib>"])
def test_samples_are_what_diffusers_draws_with_the_files(base: Path, tmp_path: Path, negative: str) -> None:
    made = settings(base, tmp_path, tokens=LOUD, samples=sampled(negative=negative), adapter={"ema": 0.9})
    session.run(made, opened())
    rows = {row.step: row.images for row in SampleSheet(tmp_path / "samples.png", PROMPTS).rows}
    assert list(rows) == [0, 2, 4]
    pipe: Any = _pipeline(base)
    _teach(pipe, tmp_path)
    pipe.set_progress_bar_config(disable=True)
    usual = 5.0 if hasattr(pipe, "tokenizer_2") else 7.5
    for at, prompt in enumerate(PROMPTS):
        theirs = pipe(prompt, negative_prompt=negative or None, num_inference_steps=2, guidance_scale=usual, width=16,
                      height=16, generator=torch.Generator().manual_seed(3 + at)).images[0]  # fmt: skip
        assert np.abs(pixels(rows[4][at]) - pixels(theirs)).max() <= 1
        moved = np.abs(pixels(rows[4][at]) - pixels(rows[0][at])).max()
        assert moved > 1 if negative or prompt != "two cats" else moved == 0


@pytest.mark.parametrize(
    "sections",
    [pytest.param(each, id=name, marks=[] if name == "all" else pytest.mark.long) for name, each in KINDS.items()],
)
def test_samples_change_no_bit_of_a_run_with_new_words(base: Path, tmp_path: Path, sections: dict[str, Any]) -> None:
    ends: list[tuple[list[Report], list[float], dict[str, dict[str, Tensor]]]] = []
    for every in (1, 0):
        seen, out = Seen(), tmp_path / str(every)
        drawn = {"samples": sampled(every=every)}
        session.run(settings(base, out, **_within(sections | drawn, out)), opened(held_out=2), None, [seen])
        ends.append((seen.reports, seen.losses, files(out)))
    (reports, losses, one), (others, other_losses, other) = ends
    assert reports == others and losses == other_losses and one.keys() == other.keys()
    assert all(torch.equal(value, other[name][key]) for name, held in one.items() for key, value in held.items())


def test_a_report_made_later_shows_the_base_with_the_words_as_they_began(base: Path, tmp_path: Path) -> None:
    made = settings(base, tmp_path, tokens=LOUD | {"alone": False}, samples=sampled())
    session.run(made, opened())
    first = json.loads((tmp_path / "report.json").read_text())["samples"]
    assert first[0]["difference"] > 0.5
    (tmp_path / "samples.png").unlink()
    (tmp_path / "embeddings/zib.safetensors").unlink()
    session.run(made, opened(), "latest")
    for one, other in zip(first, json.loads((tmp_path / "report.json").read_text())["samples"], strict=True):
        assert one["difference"] == pytest.approx(other["difference"], abs=0.05)


def _teach(pipe: Any, out: Path) -> None:
    """Read a run's words as diffusers does."""
    for file, word in {"zib": "<zib>", "my_style": "my style"}.items():
        held = load_file(out / f"embeddings/{file}.safetensors")
        if len(held) == 1:
            pipe.load_textual_inversion(out / f"embeddings/{file}.safetensors")
            continue
        pipe.load_textual_inversion(held["clip_l"], word, pipe.tokenizer, pipe.text_encoder)
        pipe.load_textual_inversion(held["clip_g"], word, pipe.tokenizer_2, pipe.text_encoder_2)


def _pipeline(base: Path) -> Any:
    """diffusers' own, of the run's base."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    outline = bases.outline_of(base)
    made = bases.load(outline, torch.float32, torch.device("cpu"))
    vae = bases.load_vae(outline, torch.float32, torch.device("cpu"))
    parts: dict[str, Any] = {"vae": vae, "unet": made.unet, "scheduler": DDIMScheduler.from_config(outline.scheduler)}
    encoders = dict(zip(PARTS, made.text_encoders, strict=False))
    tokenizers = {f"tokenizer{part.removeprefix('text_encoder')}": tiny.CLIPTokenizer.from_pretrained(tiny.TOKENIZER)
                  for part in encoders}  # fmt: skip
    if len(encoders) == 2:
        return StableDiffusionXLPipeline(**parts, **encoders, **tokenizers, add_watermarker=False)
    more: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe: DiffusionPipeline = StableDiffusionPipeline(**parts, **encoders, **tokenizers, **more)
    return pipe


def test_the_store_takes_every_file_and_keeps_the_vectors(base: Path, tmp_path: Path) -> None:
    seen = Seen()
    made = settings(base, tmp_path, tokens={"bundle": True})
    session.run(made, opened(), None, [seen])
    with Store.open(tmp_path / "store") as store:
        store.register_layout(_layout(base))
        for number, (file, word) in enumerate({"zib": "<zib>", "my_style": "my style"}.items()):
            path = tmp_path / f"embeddings/{file}.safetensors"
            version = store.publish(path, UploadSpec(file.replace("_", "-"))).version
            assert version is not None and version.kind == "embedding" and version.embedding is not None
            assert len(version.embedding.widths) == 2 or version.embedding.trigger == word
            compiled = load_file(store.compiled(version))
            for part in version.embedding.widths:
                assert torch.equal(compiled[f"vectors.0.{part}"], seen.values[f"tokens.{part}.{number}"])
        for name in ("adapter", "adapter-bundle"):
            report = store.publish(tmp_path / f"{name}.safetensors", UploadSpec(name)).report
            assert len(report.matched) == len(seen.training.injected.plan.layers)
            assert [each.trigger for each in report.bundled] == (["<zib>", "my style"] if "bundle" in name else [])
    bundled = {name for name in read_container(tmp_path / "adapter-bundle.safetensors").tensors if "bundle" in name}
    keys = ("clip_l", "clip_g") if len(seen.training.base.text_encoders) == 2 else ("emb_params",)
    assert bundled == {f"bundle_emb.{word}.{key}" for word in ("<zib>", "my style") for key in keys}


def _layout(base: Path) -> Layout:
    made = bases.load(bases.outline_of(base), torch.float32, torch.device("cpu"))
    return layout_of(made.parts(), "tiny")


def test_the_base_keeps_every_bit(base: Path, tmp_path: Path) -> None:
    seen = Seen()
    session.run(settings(base, tmp_path, targets={"text_encoder": True}), opened(), None, [seen])
    before = bases.load(bases.outline_of(base), torch.float32, torch.device("cpu")).parts()
    trained = {id(parameter) for parameter in seen.training.parameters.values()}
    for part, model in seen.training.base.parts().items():
        held = {name.replace(".base_layer", ""): value for name, value in model.named_parameters()
                if id(value) not in trained}  # fmt: skip
        assert held.keys() == dict(before[part].named_parameters()).keys()
        assert all(torch.equal(value, held[name]) for name, value in before[part].named_parameters())


def test_numbers_that_are_not_finite_write_no_vectors(base: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="at step 4, expected a finite number"):
        session.run(settings(base, tmp_path, tokens=ALONE), opened(Captioned(bad=3)))
    assert files(tmp_path) == {}
    snapshot, _ = checkpoint.read(tmp_path / "checkpoints/step-00000002.safetensors")
    assert all(tensor.isfinite().all() for tensor in snapshot.tensors.values())


def test_a_run_killed_before_all_was_written_writes_it(base: Path, tmp_path: Path) -> None:
    made = settings(base, tmp_path, tokens={"bundle": True})
    session.run(made, opened())
    whole = files(tmp_path)
    with pytest.raises(AlreadyFinished, match="already at step 4 of 4"):
        session.run(made, opened(), "latest")
    (tmp_path / "embeddings/my_style.safetensors").unlink()
    session.run(made, opened(), "latest")
    assert files(tmp_path).keys() == whole.keys()
    again = files(tmp_path)["embeddings/my_style.safetensors"]
    assert all(torch.equal(value, again[key]) for key, value in whole["embeddings/my_style.safetensors"].items())


def test_other_words_cannot_go_on(base: Path, tmp_path: Path) -> None:
    session.run(settings(base, tmp_path), opened())
    with pytest.raises(CannotResume, match=r"tokens\.new was .*<zib>.*, is now .*<zob>"):
        session.run(settings(base, tmp_path, tokens={"new": ["<zob>"]}), opened(captions=("a <zob>",)), "latest")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_vectors_are_fp32_and_learn_whatever_the_base_is(
    base: Path, tmp_path: Path, precision: str, checkpointing: bool
) -> None:
    seen = Seen()
    run = {"precision": precision, "gradient_checkpointing": checkpointing, "steps": 2}
    made = settings(base, tmp_path, run=run, tokens={"norm": "free"}, targets={"text_encoder": True})
    session.run(made, opened(), None, [seen])
    began = Tokens(seen.training.base, made.tokens, 0).parameters
    assert began
    for name, value in began.items():
        assert seen.values[name].dtype == torch.float32
        assert (seen.values[name] - value).abs().max() > 1e-3


def test_gradient_checkpointing_changes_no_vector(base: Path, tmp_path: Path) -> None:
    ends: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        seen = Seen()
        run = {"steps": 2, "gradient_checkpointing": checkpointing}
        session.run(settings(base, tmp_path / str(checkpointing), run=run, targets={"text_encoder": True}), opened(),
                    None, [seen])  # fmt: skip
        ends.append(seen.values)
    assert all((value - ends[1][name]).abs().max() < 1e-6 for name, value in ends[0].items())


def test_vectors_stop_at_their_share_while_factors_go_on(base: Path, tmp_path: Path) -> None:
    values: dict[int, dict[str, Tensor]] = {}

    class Copies(Seen):
        def stepped(self, report: Report) -> None:
            super().stepped(report)
            values[report.step] = self.values

    session.run(settings(base, tmp_path, tokens={"stop": 0.5}), opened(held_out=1), None, [Copies()])
    for name in values[1]:
        still = torch.equal(values[2][name], values[4][name])
        assert still == name.startswith("tokens."), name
        assert not torch.equal(values[1][name], values[2][name])


@pytest.mark.parametrize(
    ("sections", "captions", "said"),
    [
        ({}, ("two cats", "a <zib>"), "'my style' stands in no caption"),
        ({"tokens": {"new": ["apple"]}}, ("an apple",), "'apple' is a word of the base already"),
        ({"tokens": {"new": ["<zib>"]}}, ("very " * 80 + "<zib>",), "vectors of a new word are among them"),
        ({"tokens": {"new": [{"word": "<zib>", "start": " "}]}}, ("a <zib>",), "in which the base reads nothing"),
        ({"tokens": ALONE, "targets": {"text_encoder": True}}, CAPTIONS, r"targets\.text_encoder is true with"),
        ({"tokens": {"bundle": True}, "output": {"form": "peft"}}, CAPTIONS, r"output\.form peft"),
        ({"optimiser": {"name": "prodigy", "rate": 1.0}}, CAPTIONS, r"tokens\.rate is 0\.01: prodigy .* 1\.0"),
    ],
)
def test_what_cannot_be_is_said_before_a_step(
    base: Path, tmp_path: Path, sections: dict[str, Any], captions: tuple[str, ...], said: str
) -> None:
    with pytest.raises(BadSetting, match=said):
        session.run(settings(base, tmp_path, **sections), opened(captions=captions))
    assert not list(tmp_path.iterdir())


def test_the_plan_counts_the_vectors(base: Path, tmp_path: Path) -> None:
    outlook = outlook_of(settings(base, tmp_path, tokens=ALONE))
    planned, width = outlook.plan, sum(encoder["hidden_size"] for encoder in outlook.outline.encoders)
    assert planned.parameters == 4 * width and planned.layers == ()
    assert planned.text().splitlines()[0] == f"new words: 2, {4 * width} parameters"
