"""A run's figures: read back from its log, warned about, drawn, and told in a report that no stranger's word harms."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from trained_factors import PROGRESS, delta, facts, trained

from loramux_store import Layout, ModuleSpec
from loramux_train.output.chart import HEIGHT, WIDTH, chart, smoothed
from loramux_train.output.errors import BadLog
from loramux_train.output.facts import About, PictureFolder
from loramux_train.output.norms import GroupNorm, group_norms, group_of
from loramux_train.output.report import RunReport, write_report
from loramux_train.output.run_log import RunLog, Series, read_log
from loramux_train.output.warnings import SamplePair, no_effect, over_training, rising, warnings_of

HOSTILE = "</title></pre><script>alert('x')</script><img src=x onerror=alert(1)> \" ' & {{ 7 * 7 }} \udce9"
COLOURS = {0: "white", 1: "black"}


def step(at: int, loss: float, **more: object) -> dict[str, object]:
    return {"event": "step", "step": at, "loss": loss, "rates": [1e-3 / at, 1e-4], "gradient_norm": 1.0, **more}


def checked(at: int, loss: float, **more: object) -> dict[str, object]:
    return {"event": "validation", "step": at, "loss": loss, "best": True, **more}


def write(path: Path, *lines: dict[str, object], cut: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + cut)
    return path


def pair(without: int, with_adapter: int, prompt: str = "a fox") -> SamplePair:
    return SamplePair(prompt, 7, *(Image.new("RGB", (64, 64), COLOURS[at]) for at in (without, with_adapter)))


# -- the log ----------------------------------------------------------------------------------------------------------


def test_a_log_is_read_as_curves(tmp_path: Path) -> None:
    lines = [step(1, 0.5, seconds=1.0), step(2, math.nan, seconds=2.0), checked(2, 0.4), step(3, 0.3, seconds=3.5)]
    log = read_log(write(tmp_path / "log", *lines, {"event": "checkpoint", "step": 3, "file": "3.pt"}))
    assert log.loss == Series((1, 3), (0.5, 0.3))  # what is not finite cannot be drawn
    assert log.validation == Series((2,), (0.4,))
    assert log.rates == (Series((1, 2, 3), (1e-3, 5e-4, 1e-3 / 3)), Series((1, 2, 3), (1e-4,) * 3))
    assert log.seconds == 3.5


def test_steps_that_are_done_again_count_as_done_last(tmp_path: Path) -> None:
    """A run killed at step 4 goes on from step 2, once more it is cut off, in the middle of a line."""
    first = [step(at, 1.0 + at, seconds=10.0 * at) for at in range(1, 5)]
    first.insert(3, checked(3, 9.0, seconds=31.0))
    again = [step(3, 0.3, seconds=1.0), checked(3, 0.7, seconds=2.0)]
    log = read_log(write(tmp_path / "log", *first, *again, cut='{"event": "step", "step": 4, "lo'))
    assert log.loss == Series((1, 2, 3), (2.0, 3.0, 0.3))
    assert log.validation == Series((3,), (0.7,))
    assert log.seconds == 42.0


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.integers(1, 20))
def test_a_resumed_log_says_what_an_unbroken_one_says(cuts: list[int], steps: int) -> None:
    """Resumed from any earlier steps: every step's loss is the last one written for it."""
    import tempfile

    lines: list[dict[str, object]] = []
    done = 0
    for turn, cut in enumerate((*cuts, 0)):
        last = steps if turn == len(cuts) else min(steps, done + cut)
        lines += [step(at, at + turn / 10) for at in range(done + 1, last + 1)]
        done = max(0, last - cut)  # the next turn begins at an earlier checkpoint
    wanted = {line["step"]: line["loss"] for line in lines}
    with tempfile.TemporaryDirectory() as folder:
        log = read_log(write(Path(folder) / "log", *lines))
    assert dict(zip(log.loss.steps, log.loss.values, strict=True)) == wanted
    assert list(log.loss.steps) == list(range(1, len(wanted) + 1))


@pytest.mark.parametrize("line", ['{"step": "3"}', "[1]", "{", '{"loss": 1}', '{"step": true}', "\x00"])
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    write(tmp_path / "log", step(1, 0.5), cut=line + "\n")
    with pytest.raises(BadLog, match=r"line 2: .*expected a JSON object"):
        read_log(tmp_path / "log")


# -- norms and warnings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True])
def test_norms_are_those_of_the_dense_change(dora: bool) -> None:
    paths = {
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (8, 6),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (8, 6),
        "unet.up_blocks.0.resnets.0.conv1": (8, 4, 3, 3),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (6, 6),
    }
    kinds = {2: "linear", 4: "conv2d"}
    layout = Layout("toy", {path: ModuleSpec(kinds[len(shape)], shape) for path, shape in paths.items()})  # type: ignore[arg-type]
    weights = {path: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for path, shape in paths.items()}
    modules = trained(layout, paths, dora=dora, rslora=True)
    found = {norm.group: norm for norm in group_norms(modules, weights)}
    assert set(found) == {"unet.attention, down", "unet.convolution, up", "text_encoder"}
    changes = {}
    for module in modules:
        before = weights[module.full_path].double()
        after = before + delta(module)
        if module.magnitude is not None:
            length = after.flatten(1).norm(dim=1)
            after = after * (module.magnitude.double() / length).view(-1, *(1,) * (after.dim() - 1))
        changes[module.full_path] = (float((after - before).norm()), float(before.norm()))
    (q, w), (k, v), (conv, whole) = [changes[path] for path in list(paths)[:3]]
    assert found["unet.attention, down"].ratio == pytest.approx(math.hypot(q, k) / math.hypot(w, v), rel=1e-9)
    assert found["unet.attention, down"].largest == pytest.approx(max(q / w, k / v), rel=1e-9)
    assert found["unet.convolution, up"].ratio == pytest.approx(conv / whole, rel=1e-9)


def test_layer_groups() -> None:
    stem = "unet.mid_block.attentions.0"
    assert group_of(f"{stem}.transformer_blocks.0.ff.net.2") == group_of(f"{stem}.proj_in") == "unet.feed_forward, mid"
    assert group_of("unet.conv_in") == "unet.convolution"
    assert group_of("unet.down_blocks.1.downsamplers.0.conv") == "unet.convolution, down"
    assert group_of("unet.down_blocks.1.resnets.0.time_emb_proj") == "unet.rest, down"
    assert group_of("text_encoder_2.text_projection") == "text_encoder_2"


def series(*values: float) -> Series:
    return Series(tuple(range(50, 50 * len(values) + 1, 50)), values)


def test_over_training_is_seen_where_validation_rises() -> None:
    assert "lowest at step 100 (0.1) and is 40 % above that at step 200" in over_training(series(0.2, 0.1, 0.12, 0.14))
    for fine in (
        series(0.2, 0.1),
        series(0.2, 0.1, 0.14),
        series(0.2, 0.1, 0.14, 0.101),
        series(0.3, 0.2, 0.1),
        Series(),
    ):
        assert over_training(fine) == ""


def test_a_loss_that_rises_and_an_adapter_without_effect() -> None:
    ten = tuple(range(100))
    assert "rose, from" in rising(Series(ten, tuple(0.1 + at / 100 for at in ten)))
    assert rising(Series(ten, tuple(0.1 for _ in ten))) == ""
    norm = GroupNorm("unet.attention", 3, 0.01, 0.02, "unet.x")
    assert no_effect([norm], [pair(0, 0), pair(0, 1)]) == no_effect([norm], []) == no_effect([], []) == ""
    assert "no sample differs" in no_effect([norm], [pair(0, 0)])
    assert "no layer by more than 1e-06" in no_effect([replace(norm, largest=1e-6)], [pair(0, 1)])
    assert warnings_of(RunLog(), [norm], [pair(0, 1)]) == ()


# -- charts -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=2000), st.integers(0, 10**7))
def test_curves_stay_on_the_canvas_and_end_where_they_end(values: list[float], start: int) -> None:
    whole = Series(tuple(range(start, start + len(values))), tuple(values))
    drawn = chart("Loss", [("loss", "red", False, whole), ("none", "blue", False, Series())])
    assert drawn is not None and len(drawn.curves) == 1
    points = [tuple(map(float, place.split(","))) for place in drawn.curves[0].points.split(" ")]
    assert 1 <= len(points) <= 600 and all(drawn.left - 0.1 <= x <= drawn.right + 0.1 for x, _ in points)
    assert all(drawn.top - 0.1 <= y <= drawn.bottom + 0.1 for _, y in points)
    assert len(values) == 1 or points[-1][0] == pytest.approx(drawn.right)
    assert all(drawn.left <= tick.at <= WIDTH for tick in drawn.across)
    assert all(0 <= tick.at <= HEIGHT for tick in drawn.up) and len(drawn.up) <= 10
    assert chart("Loss", [("none", "blue", False, Series())]) is None


def test_a_high_loss_is_drawn_high() -> None:
    drawn = chart("Loss", [("loss", "red", False, Series((0, 10, 20), (1.0, 3.0, 2.0)))])
    assert drawn is not None
    heights = [float(place.split(",")[1]) for place in drawn.curves[0].points.split(" ")]
    assert heights[1] < heights[2] < heights[0]
    assert {tick.text for tick in drawn.across} >= {"0", "10", "20"}


def test_smoothing_keeps_a_constant_and_calms_noise() -> None:
    assert smoothed(series(*[0.3] * 200)).values == pytest.approx([0.3] * 200)
    noisy = smoothed(series(*[0.2 + 0.1 * (-1) ** at for at in range(400)])).values
    assert max(noisy[100:]) - min(noisy[100:]) < 0.02


# -- the report -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Whether elements nest, which there are, and the text."""

    VOID = ("meta", "img", "line", "polyline", "circle", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def report() -> RunReport:
    """With a stranger's words everywhere."""
    about = About(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    data = replace(facts().data, folders=(PictureFolder(HOSTILE, 3, tags={HOSTILE: 2, "a dog": 9}),))
    losses = tuple(0.5 - at / 1000 for at in range(300))
    return RunReport(
        facts(about=about, data=data),
        PROGRESS,
        RunLog(
            Series(tuple(range(300)), losses), series(0.2, 0.1, 0.14, 0.14), rates=(series(1e-3, 1e-3),), seconds=61
        ),
        (GroupNorm("unet.attention", 3, 0.01, 0.02, HOSTILE), GroupNorm("text_encoder", 1, math.inf, math.inf, "x")),
        (pair(0, 1, HOSTILE),),
        Image.new("RGB", (200, 300), "red"),
        {HOSTILE: HOSTILE},
        {HOSTILE: HOSTILE},
        f"[data]\nprompt = {HOSTILE}",
        (HOSTILE,),
        (HOSTILE,),
    )


def test_strangers_words_stay_words(tmp_path: Path, report: RunReport) -> None:
    html, _ = write_report(report, tmp_path)
    page = Page(html.read_text())
    assert not page.open
    tags = {tag for tag, _ in page.seen}
    assert "script" not in tags and {"svg", "polyline", "table", "pre", "figure"} <= tags
    shown = HOSTILE.encode("utf-8", "replace").decode()
    assert "".join(page.text).count(shown) >= 12 and "49" not in "".join(page.text).split(shown)[0]
    assert all(not name.startswith("on") for _, attributes in page.seen for name in attributes)


def test_a_report_needs_nothing_else(tmp_path: Path, report: RunReport) -> None:
    html, _ = write_report(report, tmp_path)
    page = Page(html.read_text())
    sources = [attributes["src"] or "" for tag, attributes in page.seen if tag == "img"]
    assert len(sources) == 3 and all(source.startswith("data:image/") for source in sources)
    assert not any(name in ("href", "action") for _, attributes in page.seen for name in attributes)
    assert not [tag for tag, _ in page.seen if tag in ("link", "iframe", "object", "base")]
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.seen


def test_the_same_figures_as_json(tmp_path: Path, report: RunReport) -> None:
    _, body = write_report(report, tmp_path)
    found = json.loads(body.read_text())
    assert found["curves"]["validation"] == {"steps": [50, 100, 150, 200], "values": [0.2, 0.1, 0.14, 0.14]}
    assert found["samples"][0]["difference"] == 255.0 and found["samples"][0]["seed"] == 7
    assert found["norms"][0]["ratio"] == 0.01 and found["norms"][1]["ratio"] is None
    assert found["run"]["network"]["rank"] == 4 and found["run"]["data"]["buckets"] == {"512x512": 6, "448x576": 2}
    assert found["warnings"][0].startswith("Over-training") and len(found["warnings"]) == 2


def test_a_short_run_has_a_report_too(tmp_path: Path) -> None:
    html, body = write_report(RunReport(facts(), PROGRESS, RunLog()), tmp_path / "new" / "folder")
    page = Page(html.read_text())
    assert not page.open and "My style" in page.text and not [tag for tag, _ in page.seen if tag == "svg"]
    assert json.loads(body.read_text())["warnings"] == []
