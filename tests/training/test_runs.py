"""Whole runs on a tiny base: what they write, how they go on, and what they refuse. Each fault that users of other
trainers report has a test that names it."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_training as tiny
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from loramux_train import checkpoint, config, session
from loramux_train.batch import Batch
from loramux_train.errors import (
    AlreadyFinished,
    BadSetting,
    CannotResume,
    Diverged,
    PackageMissing,
)
from loramux_train.outlook import DTYPES
from loramux_train.output.errors import NothingLearnt
from loramux_train.snapshot import Snapshot
from loramux_train.training import Report, Training
from loramux_train.watchers import TensorBoard, Watcher


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def _one_precision_a_run() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(True)


def settings(base: Path, out: Path, **sections: dict[str, Any]) -> config.Config:
    given: dict[str, Any] = {
        "data": {"folders": ["unused"]},
        "base": {"path": str(base)},
        "optimiser": {"rate": 1e-2},
        "run": {"steps": 4, "device": "cpu", "save_every": 2},
        "samples": {"every": 0},
        "output": {"folder": str(out), "dtype": "fp32"},
    }
    for name, values in sections.items():
        given[name] = given.get(name, {}) | values
    return config.resolved(config.parse(given))


def opened(batches: Any = None, held_out: int = 0) -> session.OpenData:
    learnt = tiny.MadeBatches() if batches is None else batches  # one of no length is false
    return lambda *_: session.Data(learnt, tiny.MadeBatches(length=held_out, seed=1), tiny.DATA_SET)


class Seen(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.validations: list[tuple[int, float, bool]] = []
        self.begun_at: int | None = None

    def started(self, training: Training) -> None:
        self.begun_at = training.done

    def stepped(self, report: Report) -> None:
        self.reports.append(report)

    def validated(self, step: int, loss: float, best: bool) -> None:
        self.validations.append((step, loss, best))


class StopAfter(Watcher):
    """An interruption between two steps."""

    def __init__(self, step: int) -> None:
        self._step = step

    def stepped(self, report: Report) -> None:
        if report.step == self._step:
            raise KeyboardInterrupt


EVERYTHING = {
    "adapter": {"ema": 0.9, "dropout": 0.2, "module_dropout": 0.2},
    "targets": {"modules": "locon", "text_encoder": True},
    "optimiser": {"rate": 1e-2, "schedule": "cosine"},
    "run": {"steps": 6, "save_every": 2, "validate_every": 2, "accumulation": 2},
}


# going on


@pytest.mark.parametrize("optimiser", ["adamw", "prodigy"])
def test_resume_continues_weights_and_optimiser(base: Path, tmp_path: Path, optimiser: str) -> None:
    """huggingface/diffusers#12689, #5840, #4936: weights not loaded, or frozen by a stale optimiser, after a resume."""
    sections = EVERYTHING | {"optimiser": {"name": optimiser, "rate": 1.0 if optimiser == "prodigy" else 1e-2}}
    whole, broken = Seen(), Seen()
    one = session.run(settings(base, tmp_path / "one", **sections), opened(held_out=2), None, [whole])
    halves = settings(base, tmp_path / "two", **sections)
    with pytest.raises(KeyboardInterrupt):
        session.run(halves, opened(held_out=2), None, [StopAfter(5)])
    two = session.run(halves, opened(held_out=2), "latest", [broken])
    assert broken.begun_at == 4
    assert broken.reports == whole.reports[4:]
    assert broken.validations == whole.validations[2:]
    ends = load_file(one), load_file(two)
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    at_four, _ = checkpoint.read(tmp_path / "two/checkpoints/step-00000004.safetensors")
    at_six, _ = checkpoint.read(tmp_path / "two/checkpoints/step-00000006.safetensors")
    moved = [
        n for n, t in at_four.tensors.items() if n.startswith("factors/") and not torch.equal(t, at_six.tensors[n])
    ]
    assert len(moved) == sum(name.startswith("factors/") for name in at_four.tensors)


def test_what_the_average_makes_of_captions_is_not_taken_for_what_the_steps_make(base: Path, tmp_path: Path) -> None:
    """A text encoder has stopped: captions are encoded once for the steps, and anew for every validation, as its
    average still moves. The first step after the stop follows a validation of the same captions."""
    sections = EVERYTHING | {"adapter": {"ema": 0.9}, "optimiser": {"rate": 1e-2, "text_encoder_stop": 2}}
    whole, broken, plain = Seen(), Seen(), Seen()
    session.run(settings(base, tmp_path / "one", **sections), opened(held_out=2), None, [whole])
    halves = settings(base, tmp_path / "two", **sections)
    with pytest.raises(KeyboardInterrupt):
        session.run(halves, opened(held_out=2), None, [StopAfter(3)])
    session.run(halves, opened(held_out=2), "latest", [broken])
    assert broken.begun_at == 2
    assert (broken.reports, broken.validations) == (whole.reports[2:], whole.validations[1:])
    session.run(settings(base, tmp_path / "three", **sections), opened(), None, [plain])
    assert plain.reports == whole.reports, "validations change the steps"


def test_a_finished_run_says_so_and_writes_nothing(base: Path, tmp_path: Path) -> None:
    """kohya-ss/sd-scripts#840, #954, Nerogar/OneTrainer#132: the same adapter silently written again."""
    made = settings(base, tmp_path)
    file = session.run(made, opened())
    before = file.stat().st_mtime_ns
    with pytest.raises(AlreadyFinished, match=r"already at step 4 of 4; raise run\.steps"):
        session.run(made, opened(), "latest")
    assert file.stat().st_mtime_ns == before


def test_a_run_killed_before_its_adapter_was_written_writes_it(base: Path, tmp_path: Path) -> None:
    made = settings(base, tmp_path)
    file = session.run(made, opened())
    first = load_file(file)
    file.unlink()
    again = load_file(session.run(made, opened(), "latest"))
    assert first.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_more_steps_follow_the_new_schedule(base: Path, tmp_path: Path) -> None:
    """kohya-ss/sd-scripts#141: a rate of 0 after a resume with more steps."""
    optimiser = {"rate": 1e-2, "schedule": "cosine", "warmup": 0.0}
    session.run(settings(base, tmp_path, optimiser=optimiser), opened())
    seen = Seen()
    longer = settings(base, tmp_path, optimiser=optimiser, run={"steps": 8})
    session.run(longer, opened(), "latest", [seen])
    expected = [1e-2 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(4, 8)]
    assert [report.rates[0] for report in seen.reports] == pytest.approx(expected)


def test_a_resumed_run_takes_the_new_rate(base: Path, tmp_path: Path) -> None:
    session.run(settings(base, tmp_path), opened())
    seen = Seen()
    session.run(settings(base, tmp_path, optimiser={"rate": 3e-3}, run={"steps": 5}), opened(), "latest", [seen])
    assert seen.reports[0].rates[0] == pytest.approx(3e-3)


def test_resume_takes_the_newest_checkpoint_and_no_unfinished_one(base: Path, tmp_path: Path) -> None:
    """ostris/ai-toolkit#329: the last but one is taken; Nerogar/OneTrainer#840: a backup taken for something else."""
    session.run(settings(base, tmp_path), opened())
    folder = tmp_path / "checkpoints"
    (folder / ".step-00000099.safetensors.77.part").write_bytes(b"half of one")
    seen = Seen()
    session.run(settings(base, tmp_path, run={"steps": 5}), opened(), "latest", [seen])
    assert seen.begun_at == 4 and not list(folder.glob(".*"))


class StopWhenSaved(Watcher):
    """A kill between a checkpoint and what comes after it."""

    def __init__(self, step: int) -> None:
        self._step = step

    def saved(self, step: int, path: Path) -> None:
        if step == self._step:
            raise KeyboardInterrupt


def test_a_run_that_goes_back_leaves_the_course_it_took_before(base: Path, tmp_path: Path) -> None:
    """From step 2 of 8 on with another rate: its own new checkpoints stay, and the old ones are not taken for them."""
    run = {"steps": 8, "save_every": 2, "keep": 4}
    left = load_file(session.run(settings(base, tmp_path / "out", run=run), opened()))
    folder = tmp_path / "out/checkpoints"
    again = settings(base, tmp_path / "out", run=run | {"save_every": 1, "keep": 2}, optimiser={"rate": 3e-3})
    with pytest.raises(KeyboardInterrupt):
        session.run(again, opened(), folder / "step-00000002.safetensors", [StopWhenSaved(3)])
    assert [path.name for path in checkpoint.every(folder)] == [
        "step-00000002.safetensors",
        "step-00000003.safetensors",
    ]
    seen = Seen()
    with pytest.raises(KeyboardInterrupt):  # the report of the old course is of step 8 too
        session.run(again, opened(), "latest", [seen, StopWhenSaved(8)])
    assert seen.begun_at == 3
    written = load_file(session.run(again, opened(), "latest"))
    assert any(not torch.equal(tensor, left[name]) for name, tensor in written.items())


def test_a_checkpoint_that_was_just_written_is_kept(tmp_path: Path) -> None:
    for step in (30, 40, 10):
        path = checkpoint.write(tmp_path, Snapshot(step, {}, {}), {}, keep=1)
        assert path.is_file()


def test_an_adapter_is_no_checkpoint(base: Path, tmp_path: Path) -> None:
    """shootthesound/Fizgig#48: a file of weights alone taken for a state, and the run begins again at 0."""
    made = settings(base, tmp_path)
    file = session.run(made, opened())
    with pytest.raises(CannotResume, match=r"no checkpoint: it holds weights alone.*step-00000002.*step-00000004"):
        session.run(settings(base, tmp_path, run={"steps": 9}), opened(), file)


@pytest.mark.parametrize("length", [0, 100])
def test_a_damaged_checkpoint_is_refused(base: Path, tmp_path: Path, length: int) -> None:
    session.run(settings(base, tmp_path), opened())
    newest = tmp_path / "checkpoints/step-00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:length])
    with pytest.raises(CannotResume, match="cannot be read as a checkpoint"):
        session.run(settings(base, tmp_path, run={"steps": 5}), opened(), "latest")


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("adapter", {"rank": 8}, r"adapter\.rank was small, is now 8"),
        ("targets", {"blocks": "mid"}, r"targets\.blocks was all, is now mid"),
        ("optimiser", {"name": "prodigy", "rate": 1.0}, r"optimiser\.name was adamw, is now prodigy"),
        ("run", {"seed": 7}, r"run\.seed was 0, is now 7"),
    ],
)
def test_changed_rank_or_targets_are_named(
    base: Path, tmp_path: Path, section: str, values: dict[str, Any], said: str
) -> None:
    """Nerogar/OneTrainer#1340, #1661."""
    session.run(settings(base, tmp_path), opened())
    with pytest.raises(CannotResume, match=said):
        session.run(settings(base, tmp_path, **{section: values}), opened(), "latest")


def test_another_base_is_named(base: Path, tmp_path: Path) -> None:
    session.run(settings(base, tmp_path / "out"), opened())
    other = tiny.write_base(tmp_path / "other", "v_prediction")
    with pytest.raises(CannotResume, match=r"base\.prediction was epsilon, is now v_prediction"):
        session.run(settings(other, tmp_path / "out"), opened(), "latest")


def test_a_folder_that_holds_a_run_is_not_written_over(base: Path, tmp_path: Path) -> None:
    session.run(settings(base, tmp_path), opened())
    with pytest.raises(CannotResume, match=r"go on with --resume latest, or choose another output\.folder"):
        session.run(settings(base, tmp_path), opened())
    with pytest.raises(CannotResume, match="no checkpoints in"):
        session.run(settings(base, tmp_path / "new"), opened(), "latest")


def test_only_the_newest_checkpoints_are_kept(base: Path, tmp_path: Path) -> None:
    session.run(settings(base, tmp_path, run={"steps": 7, "save_every": 2, "keep": 2}), opened())
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000006.safetensors", "step-00000007.safetensors"]


# steps


def test_steps_count_updates_and_not_batches(base: Path, tmp_path: Path) -> None:
    """huggingface/diffusers#3467: a wrong global step with gradient accumulation."""
    asked: list[int] = []

    class Counted(tiny.MadeBatches):
        def batch(self, position: int) -> Batch:
            asked.append(position)
            return super().batch(position)

    seen = Seen()
    session.run(settings(base, tmp_path, run={"steps": 4, "accumulation": 3}), opened(Counted()), None, [seen])
    assert asked == list(range(12))
    assert [report.step for report in seen.reports] == [1, 2, 3, 4]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_numbers_that_are_not_finite_end_the_run_and_keep_the_last_good(
    base: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bmaltais/kohya_ss#1112, kohya-ss/sd-scripts#293, #820: a NaN adapter is saved over a good one."""

    class Bad(tiny.MadeBatches):
        def batch(self, position: int) -> Batch:
            made = super().batch(position)
            return replace(made, latents=made.latents * math.inf) if position == 3 and what == "loss" else made

    if what == "gradient":
        clip = torch.nn.utils.clip_grad_norm_
        calls: list[int] = []

        def fourth_is_infinite(parameters: Any, limit: float) -> torch.Tensor:
            calls.append(1)
            return clip(parameters, limit) * (math.inf if len(calls) == 4 else 1.0)

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", fourth_is_infinite)
    with pytest.raises(Diverged, match=f"{what}.* at step 4, expected a finite number"):
        session.run(settings(base, tmp_path), opened(Bad()))
    assert [path.name for path in checkpoint.every(tmp_path / "checkpoints")] == ["step-00000002.safetensors"]
    assert not (tmp_path / "adapter.safetensors").exists()
    snapshot, _ = checkpoint.read(tmp_path / "checkpoints/step-00000002.safetensors")
    assert all(tensor.isfinite().all() for tensor in snapshot.tensors.values())


def test_an_adapter_without_effect_is_not_written(base: Path, tmp_path: Path) -> None:
    """kohya-ss/sd-scripts#1685, ostris/ai-toolkit#545: every B is zero."""

    class Nothing(tiny.MadeBatches):
        def batch(self, position: int) -> Batch:
            made = super().batch(position)
            return replace(made, weights=torch.zeros_like(made.weights))

    with pytest.raises(NothingLearnt, match="every up factor is zero"):
        session.run(settings(base, tmp_path), opened(Nothing()))
    assert not (tmp_path / "adapter.safetensors").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_factors_are_fp32_whatever_the_base_is(base: Path, tmp_path: Path, precision: str, checkpointing: bool) -> None:
    """huggingface/diffusers#6363, #7330: attempting to unscale FP16 gradients."""
    kinds: list[set[torch.dtype]] = []

    class Kinds(Watcher):
        def started(self, training: Training) -> None:
            injected = set(training.injected.parameters.values())
            kinds.append({parameter.dtype for parameter in injected})
            kinds.append({p.dtype for p in training.base.unet.parameters() if p not in injected})

    run = {"precision": precision, "gradient_checkpointing": checkpointing}
    session.run(settings(base, tmp_path, run=run, targets={"text_encoder": True}), opened(), None, [Kinds()])
    assert kinds == [{torch.float32}, {DTYPES[precision]}]


def test_gradient_checkpointing_changes_no_gradient(base: Path, tmp_path: Path) -> None:
    sections = {"adapter": {"dropout": 0.3, "rank_dropout": 0.3}, "targets": {"text_encoder": True}}
    reports: list[list[Report]] = []
    for checkpointing in (False, True):
        seen = Seen()
        run = {"steps": 2, "gradient_checkpointing": checkpointing}
        session.run(settings(base, tmp_path / str(checkpointing), run=run, **sections), opened(), None, [seen])
        reports.append(seen.reports)
    for one, other in zip(*reports, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-6)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5)


def test_the_text_encoder_stops_learning_at_its_step(base: Path, tmp_path: Path) -> None:
    values: dict[int, dict[str, torch.Tensor]] = {}

    class Copies(Watcher):
        def started(self, training: Training) -> None:
            self._training = training

        def stepped(self, report: Report) -> None:
            values[report.step] = {n: p.detach().clone() for n, p in self._training.injected.parameters.items()}

    optimiser = {"rate": 1e-2, "text_encoder_stop": 2}
    session.run(
        settings(base, tmp_path, optimiser=optimiser, targets={"text_encoder": True}), opened(), None, [Copies()]
    )
    text = [name for name in values[1] if name.startswith("text_encoder.") and name.endswith(".B")]
    assert text
    assert all(not torch.equal(values[1][name], values[2][name]) for name in text)
    assert all(torch.equal(values[2][name], values[4][name]) for name in text)
    assert not torch.equal(values[2]["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.B"],
                           values[4]["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.B"])  # fmt: skip


# validation


def test_validation_loss_is_deterministic_and_leaves_the_run_alone(base: Path, tmp_path: Path) -> None:
    """kohya-ss/sd-scripts#193, #2077: over-training cannot be seen."""
    with_, without, again = Seen(), Seen(), Seen()
    sections = {"adapter": {"dropout": 0.2, "ema": 0.5}, "run": {"steps": 4, "validate_every": 2}}
    session.run(settings(base, tmp_path / "a", **sections), opened(held_out=2), None, [with_])
    session.run(settings(base, tmp_path / "b", **sections), opened(), None, [without])
    session.run(settings(base, tmp_path / "c", **sections), opened(held_out=2), None, [again])
    assert with_.reports == without.reports
    assert [step for step, _, _ in with_.validations] == [2, 4]
    assert with_.validations == again.validations
    assert with_.validations[0][1] != with_.validations[1][1]


def test_validation_is_the_same_function_at_every_step(base: Path, tmp_path: Path) -> None:
    """Of factors that do not move far enough to be seen."""
    seen = Seen()
    still = {"run": {"steps": 3, "validate_every": 1}, "optimiser": {"rate": 1e-30, "weight_decay": 0.0}}
    session.run(settings(base, tmp_path, **still), opened(held_out=2), None, [seen])
    assert [step for step, _, _ in seen.validations] == [1, 2, 3]
    assert len({loss for _, loss, _ in seen.validations}) == 1


def test_a_run_ends_early_and_writes_the_best(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.0, 0.0])
    monkeypatch.setattr(Training, "validate", lambda *_: next(losses))
    seen = Seen()
    run = {"steps": 9, "validate_every": 1, "patience": 2, "save_every": 1, "keep": 9}
    made = settings(base, tmp_path, run=run, output={"which": "best", "form": "diffusers"})
    file = session.run(made, opened(held_out=1), None, [seen])
    assert [best for _, _, best in seen.validations] == [True, True, False, False]
    second, _ = checkpoint.read(tmp_path / "checkpoints/step-00000002.safetensors")
    written = load_file(file)
    places = [name.removesuffix(".lora_A.weight") for name in written if name.endswith(".lora_A.weight")]
    assert len(places) == 24
    for place in places:  # between A and B a file may move powers of two
        told = written[f"{place}.lora_B.weight"] @ written[f"{place}.lora_A.weight"]
        assert torch.equal(told, second.tensors[f"factors/{place}.B"] @ second.tensors[f"factors/{place}.A"])
    with pytest.raises(AlreadyFinished, match=r"at step 4 of 9, where run\.patience ended it"):
        session.run(made, opened(held_out=1), "latest")


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("run", {"validation_draws": 1}),
        ("run", {"precision": "bf16"}),
        ("loss", {"min_snr": 5.0}),
        ("loss", {"noise_offset": 0.1}),
        ("optimiser", {"rate": 3e-3}),
    ],
)
def test_the_best_is_looked_for_anew_where_losses_are_other_numbers(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, values: dict[str, Any]
) -> None:
    losses = iter([1.0, 3.0, 2.0, 2.5])
    monkeypatch.setattr(Training, "validate", lambda *_: next(losses))
    which = {"output": {"which": "best"}}
    session.run(settings(base, tmp_path, run={"steps": 2, "validate_every": 1}, **which), opened(held_out=1))
    AcceleratorState._reset_state(True)
    seen, more = Seen(), {"run": {"steps": 4, "validate_every": 1}} | which
    more[section] = more.get(section, {}) | values
    session.run(settings(base, tmp_path, **more), opened(held_out=1), "latest", [seen])
    other = section != "optimiser"
    assert seen.validations == [(3, 2.0, other), (4, 2.5, False)]
    told = json.loads((tmp_path / "report.json").read_text())["curves"]["validation"]
    assert told["steps"] == ([3, 4] if other else [1, 2, 3, 4])


def test_a_best_that_is_measured_otherwise_at_the_last_step(base: Path, tmp_path: Path) -> None:
    """Another form of a finished run: it has no step left that would be validated."""
    which = {"which": "best"}
    made = settings(base, tmp_path, output=which)
    first = load_file(session.run(made, opened(held_out=1)))
    other = settings(base, tmp_path, output=which | {"form": "diffusers", "name": "other"}, run={"validation_draws": 1})
    second = load_file(session.run(other, opened(held_out=1), "latest"))
    assert len(first) == 3 * 24 and len(second) == 2 * 24


@pytest.mark.parametrize(("section", "values"), [("output", {"which": "best"}), ("run", {"patience": 3})])
def test_what_needs_held_out_pictures_says_so(base: Path, tmp_path: Path, section: str, values: dict[str, Any]) -> None:
    with pytest.raises(BadSetting, match=r"needs held-out pictures: set data\.validation_share"):
        session.run(settings(base, tmp_path, **{section: values}), opened())
    assert not list(tmp_path.iterdir())


# what lies beside the adapter


def test_the_settings_beside_the_adapter_are_the_run(base: Path, tmp_path: Path) -> None:
    made = settings(base, tmp_path, adapter={"rank": "medium"}, loss={"min_snr": 5.0})
    session.run(made, opened())
    assert config.read(tmp_path / "train.toml") == config.resolved(
        made.model_copy(update={"data": made.data.model_copy(update={"resolution": 512})})
    )


def test_the_log_of_a_resumed_run_has_every_step_once(base: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    made = settings(base, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        session.run(made, opened(), None, [StopAfter(3)])
    with log.open("a") as file:
        file.write('{"event": "st')
    session.run(made, opened(), "latest")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4]
    assert [event["step"] for event in events if event["event"] == "checkpoint"] == [2, 4]


def test_tensorboard_gets_the_losses(base: Path, tmp_path: Path) -> None:
    session.run(settings(base, tmp_path), opened(), None, [TensorBoard(tmp_path / "tensorboard")])
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss/train" in events.read_bytes()


def test_a_missing_optimiser_is_named_before_anything_starts(base: Path, tmp_path: Path) -> None:
    made = settings(base, tmp_path, optimiser={"name": "adamw8bit"})
    with pytest.raises(PackageMissing, match="needs the package bitsandbytes: pip install bitsandbytes"):
        session.run(made, opened())
    assert not list(tmp_path.iterdir())


def test_sdxl_trains_with_both_text_encoders_sizes_and_dora(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", two=True)
    sections: dict[str, Any] = {"targets": {"modules": "locon", "text_encoder": True}, "adapter": {"dora": True}}
    file = session.run(settings(base, tmp_path / "out", **sections), opened())
    names = load_file(file).keys()
    for prefix in ("lora_unet_", "lora_te1_text_model_", "lora_te2_text_model_"):
        assert any(name.startswith(prefix) and name.endswith(".dora_scale") for name in names)
    assert len(names) % 4 == 0


def test_a_checkpoint_of_other_factors_is_refused(base: Path, tmp_path: Path) -> None:
    """The settings agree, but the file was changed."""
    session.run(settings(base, tmp_path), opened())
    path = tmp_path / "checkpoints/step-00000004.safetensors"
    snapshot, told = checkpoint.read(path)
    name = next(name for name in snapshot.tensors if name.startswith("factors/"))
    checkpoint.write(path.parent, replace(snapshot, tensors=snapshot.tensors | {name: torch.zeros(1, 1)}), told, keep=9)
    with pytest.raises(CannotResume, match=r"the checkpoint's factors .* is \[1, 1\], expected \["):
        session.run(settings(base, tmp_path, run={"steps": 5}), opened(), "latest")
