"""Laws that hold for every file: any modules, kinds, ranks, alphas, dtypes and orders of keys.

The canonical form applied to a weight is the dense formula's, in float64; what is exported and read again is the same
adapter, or the form says that it cannot say it; no scale loses anything to the dtype.
"""

import itertools
import random
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import adapter_files as af
import adapter_kinds as kinds
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from loramux_store import InterpretOptions, Layout, Published, Store, UploadSpec
from loramux_store.errors import Inexpressible
from loramux_store.forms.export import export

# Factors made of factors are rounded to float32 once: half an ulp, 6e-8, for each of a few.
ROUNDED = 6e-7
# Of a whole weight; magnitudes over a norm that is small beside the delta enlarge what is rounded.
WHOLE = 1e-5

ALPHAS = st.sampled_from([None, 0.5, 1.0, 3.0, 16.0])
RANKS = st.integers(1, 6)


def coarse(generator: torch.Generator, *shape: int) -> Tensor:
    """Random numbers that every dtype holds, the float8s too: 2 bits of mantissa."""
    drawn = torch.randn(shape, generator=generator) / 2
    return drawn.to(torch.float8_e4m3fn).float().to(torch.float8_e5m2).float()


@contextmanager
def folder() -> Generator[Path]:
    """Of one example; pytest's are of one test."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


@st.composite
def lokrs(draw: st.DrawFn, shape: tuple[int, ...]) -> kinds.Make:
    first = draw(st.sampled_from(_divisors(shape[0]))), draw(st.sampled_from(_divisors(shape[1])))
    one, two = (draw(st.none() | st.integers(1, 3)) for _ in "12")
    tucker = len(shape) == 4 and two is not None and draw(st.booleans())
    return kinds.lokr(first, one, two, draw(ALPHAS), tucker=tucker)


@st.composite
def makes(draw: st.DrawFn, shape: tuple[int, ...]) -> kinds.Make:
    """Any kind of delta, with magnitudes or without."""
    alpha = draw(ALPHAS)
    plain: list[st.SearchStrategy[kinds.Make]] = [
        RANKS.map(lambda rank: kinds.lora(rank, alpha or 2.0)),
        RANKS.map(lambda rank: kinds.lora(rank, alpha or 2.0, bias=True)),
        RANKS.map(lambda rank: kinds.loha(rank, alpha)),
        lokrs(shape),
        st.just(kinds.full),
    ]
    if len(shape) == 4:
        plain.append(RANKS.map(lambda rank: kinds.loha_tucker(rank, alpha or 2.0)))
    make = draw(st.one_of(plain))
    if draw(st.integers(0, 2)):
        return make
    axis = draw(st.sampled_from(["output", "input"]))
    style = draw(st.sampled_from(["lycoris", "peft"])) if axis == "output" else "lycoris"
    return kinds.decomposed(make, axis, style)


@st.composite
def adapters(draw: st.DrawFn) -> tuple[Layout, dict[str, kinds.Sample], torch.dtype]:
    """Some modules of a layout, each of its own kind."""
    layout = draw(st.sampled_from(af.TOYS))
    paths = draw(st.lists(st.sampled_from(list(layout.modules)), min_size=1, max_size=4, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    chosen = {path: draw(makes(layout.modules[path].shape)) for path in paths}
    with mock.patch.object(kinds, "_random", coarse):
        made = {path: make(layout.modules[path].shape, generator) for path, make in chosen.items()}
    return layout, made, af.DTYPES[draw(st.sampled_from(list(af.DTYPES)))]


def stored(layout: Layout, made: Mapping[str, kinds.Sample], dtype: torch.dtype) -> dict[str, Tensor]:
    """As a file has it; magnitudes in fp16 at least, whose numbers they are."""
    two = "text_encoder_2" in layout.components
    tensors = {k: t for path, each in made.items() for k, t in kinds.stem_tensors(path, each, two).items()}
    wide = dtype in (torch.float64, torch.float32, torch.float16)
    return {k: t if not wide and ("dora" in k or "magnitude" in k) else t.to(dtype) for k, t in tensors.items()}


def samples(store: Store, published: Published) -> dict[str, kinds.Sample]:
    """The canonical form, as deltas, biases and magnitudes."""
    assert published.version is not None
    file = store.compiled(published.version)
    deltas = af.compiled_delta(file, store.layout(published.version.layout_digest))
    table, parts = af.compiled_parts(file)
    return {
        path: kinds.Sample({}, delta, parts[path].get("bias"), table[path]["axis"], parts[path].get("m"))
        for path, delta in deltas.items()
    }


def near(got: Tensor, wanted: Tensor, bound: float) -> bool:
    return bool((got - wanted).norm() <= bound * wanted.norm())


def check_same(got: Mapping[str, kinds.Sample], wanted: Mapping[str, kinds.Sample]) -> None:
    """Deltas, what becomes of a weight, and biases."""
    assert got.keys() == wanted.keys()
    for path, sample in wanted.items():
        weight = torch.randn(sample.delta.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        assert got[path].axis == sample.axis
        assert near(got[path].delta, sample.delta, ROUNDED), path
        assert near(weight + kinds.change(got[path], weight), weight + kinds.change(sample, weight), WHOLE), path
        assert (got[path].bias is None) == (sample.bias is None)
        assert sample.bias is None or torch.equal(got[path].bias, sample.bias)  # type: ignore[arg-type]


def cheap(examples: int) -> settings:
    return settings(
        max_examples=examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def check_adapter(store: Store, adapter: tuple[Layout, dict[str, kinds.Sample], torch.dtype], order: int) -> None:
    """The first law and the second, for one file in two orders of its keys."""
    layout, made, dtype = adapter
    tensors = stored(layout, made, dtype)
    names = random.Random(order).sample(list(tensors), len(tensors))
    with folder() as here:
        one = store.publish(af.write(here / "a.safetensors", tensors), UploadSpec("a", layout=layout.name))
        other = store.publish(
            af.write_in_order(here / "b.safetensors", tensors, names), UploadSpec("b", layout=layout.name)
        )
        assert one.report == other.report and one.version is not None and other.version is not None
        assert store.compiled(one.version).read_bytes() == store.compiled(other.version).read_bytes()
        check_same(samples(store, one), made)
        for form in ("kohya", "diffusers", "peft"):
            check_export(store, layout, form, made, here)


def check_export(store: Store, layout: Layout, form: str, made: Mapping[str, kinds.Sample], here: Path) -> None:
    """Read again it is the same; what a form cannot say, it says so and writes nothing."""
    target = here / f"{form}.safetensors"
    try:
        written = export(store, "a", form, target)
    except Inexpressible:
        assert form != "kohya" and not target.exists()
        return
    back: dict[str, kinds.Sample] = {}
    for file in written:
        if file.suffix == ".safetensors":
            config = file.parent / "adapter_config.json"
            options = InterpretOptions(peft_config=config.read_text() if form == "peft" else None)
            back |= samples(store, store.publish(file, UploadSpec("c", layout=layout.name, options=options)))
    check_same(back, made)


@cheap(20)
@given(adapter=adapters(), order=st.integers(0, 99))
def test_any_adapter(store: Store, adapter: tuple[Layout, dict[str, kinds.Sample], torch.dtype], order: int) -> None:
    check_adapter(store, adapter, order)


@pytest.mark.long
@cheap(200)
@given(adapter=adapters(), order=st.integers(0, 99))
def test_any_adapter_at_length(
    store: Store, adapter: tuple[Layout, dict[str, kinds.Sample], torch.dtype], order: int
) -> None:
    check_adapter(store, adapter, order)


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@cheap(15)
@given(
    size=st.sampled_from([1e-6, 1e-3, 1.0, 1e2]),
    other=st.sampled_from([1e-6, 1e-3, 1.0, 1e2]),
    scale=st.sampled_from([2.0**-16, 1 / 3, 1.0, 2.0**16, -1 / 16]),
    rank=RANKS,
)
def test_no_scale_is_lost_in_small_or_large_factors(
    store: Store, form: str, size: float, other: float, scale: float, rank: int
) -> None:
    """fp16 factors of 1e-6 with a scale folded into them would be zeros; also where a form has no alpha to say."""
    path = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    (made,) = af.factors(af.TOY_SD1, [path], rank=rank).values()
    down, up = (made.down * size).half(), (made.up * other).half()
    assert down.count_nonzero() and up.count_nonzero()
    stem = f"lora_unet_{path[5:].replace('.', '_')}"
    alpha = torch.tensor(scale * rank)
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": alpha}
    wanted = alpha.double().item() / rank * (up.double() @ down.double())
    with folder() as here:
        published = store.publish(af.write(here / "a", tensors), UploadSpec("a", layout="toy_sd1"))
        assert near(samples(store, published)[path].delta, wanted, 1e-14)
        (out,) = export(store, "a", form, here / "b")
        again = samples(store, store.publish(out, UploadSpec("b", layout="toy_sd1")))
        assert near(again[path].delta, wanted, ROUNDED)


def test_the_kinds_that_are_drawn_are_all_kinds() -> None:
    """A strategy that draws one kind only would prove little."""
    shape, seen = (16, 16, 3, 3), set[str]()

    @settings(max_examples=200, database=None, derandomize=True)
    @given(make=makes(shape))
    def look(make: kinds.Make) -> None:
        leaves = make(shape, torch.Generator().manual_seed(0)).leaves
        seen.update(itertools.chain(leaves, ["plain"] if "dora_scale" not in leaves else []))

    look()
    assert seen >= {
        "lora_down.weight", "hada_w1_a", "hada_t1", "lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a", "lokr_t2", "diff",
        "diff_b", "dora_scale", "lora_magnitude_vector", "plain",
    }  # fmt: skip
