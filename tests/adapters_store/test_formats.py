"""Every accepted format, applied exactly: the compiled factors against a dense float64 oracle."""

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import adapter_files as af
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from loramux_store import Embedding, InterpretOptions, Layout, ModuleSpec, Published, Store, UploadSpec, known_layout
from loramux_store.errors import InvalidArgument, Refused
from loramux_store.formats.foreign import refuse_families
from loramux_store.formats.naming import name_table
from loramux_store.formats.peft_config import parse_config

ATTENTION = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
TEXT = "text_encoder.text_model.encoder.layers.1"
# Both sides are float64 sums of products of float32 factors that are stored exactly; what is left
# is the order of a sum over the rank (at most 8 terms) and a scale rounded to double.
EXACT = 1e-14
# CP folds in float64 and rounds the folded factor to float32 once: half an ulp, 6e-8, a term.
FOLDED = 6e-7


def publish(
    store: Store,
    folder: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    layout: str | None = None,
    options: InterpretOptions | None = None,
) -> Published:
    path = af.write(folder / "adapter.safetensors", tensors, metadata)
    spec = UploadSpec("adapter", layout=layout, options=options or InterpretOptions())
    return store.publish(path, spec)


def deltas(store: Store, published: Published) -> dict[str, Tensor]:
    assert published.version is not None
    layout = store.layout(published.version.layout_digest)
    return af.compiled_delta(store.compiled(published.version), layout)


def assert_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], bound: float) -> None:
    assert set(got) == set(expected)
    for path, delta in expected.items():
        error = (got[path] - delta).norm() / delta.norm().clamp(min=1e-300)
        assert error <= bound, f"{path}: {error:.1e}"


def oracle(made: Mapping[str, af.Factors]) -> dict[str, Tensor]:
    return {path: af.dense(module) for path, module in made.items()}


@pytest.mark.parametrize("dtype", af.DTYPES)
@pytest.mark.parametrize("form", ["kohya", "kohya_tucker", "diffusers", "peft"])
def test_every_form_in_every_dtype(store: Store, tmp_path: Path, form: str, dtype: str) -> None:
    alpha = 2.0 if form.startswith("kohya") else None
    # every sixth module: the six dtypes together see each one
    paths = list(af.TOY_SD1.modules)[list(af.DTYPES).index(dtype) :: len(af.DTYPES)]
    made = af.factors(af.TOY_SD1, paths, alpha=alpha, dtype=af.DTYPES[dtype], tucker=form == "kohya_tucker")
    if dtype == "F64":  # what does not fit float32 is rounded; the oracle takes it rounded
        made = {path: _rounded(module) for path, module in made.items()}
    tensors = {
        "kohya": af.kohya_tensors,
        "kohya_tucker": af.kohya_tensors,
        "diffusers": af.diffusers_tensors,
        "peft": af.peft_tensors,
    }[form](made)
    published = publish(store, tmp_path, tensors)
    assert published.report.layout_name == "toy_sd1"
    assert len(published.report.matched) == len(paths)
    assert published.report.ignored == ()
    bound = FOLDED if form == "kohya_tucker" else EXACT
    assert_same(deltas(store, published), oracle(made), bound)


def _rounded(module: af.Factors) -> af.Factors:
    mid = None if module.mid is None else module.mid.float().double()
    return replace(module, down=module.down.float().double(), up=module.up.float().double(), mid=mid)


@pytest.mark.parametrize("naming", ["sgm", "diffusers", "mixed", "sgm dotted"])
def test_sdxl_names(store: Store, tmp_path: Path, naming: str) -> None:
    made = af.factors(af.TOY_SDXL, alpha=1.0)
    tensors: dict[str, Tensor] = {}
    for at, (path, module) in enumerate(made.items()):
        sgm = naming.startswith("sgm") or (naming == "mixed" and at % 2 == 0)
        tensors |= af.kohya_tensors({path: module}, sgm=sgm, two_encoders=True)
        if naming == "sgm dotted" and path.startswith("unet."):
            for key in list(af.kohya_tensors({path: module}, sgm=True)):
                _, _, leaf = key.partition(".")
                dotted = f"diffusion_model.{af.sgm_name(path.removeprefix('unet.'))}"
                tensors[f"{dotted}.{leaf}"] = tensors.pop(key)
    published = publish(store, tmp_path, tensors)
    assert published.report.layout_name == "toy_sdxl"
    assert_same(deltas(store, published), oracle(made), EXACT)


def test_sd1_with_sgm_names_takes_block_ids_as_integers(store: Store, tmp_path: Path) -> None:
    """input_blocks_1 is not the beginning of input_blocks_10 and 11."""
    made = af.factors(af.TOY_SD1, alpha=1.0)
    unet = {path: module for path, module in made.items() if path.startswith("unet.")}
    tensors: dict[str, Tensor] = {}
    for path, module in unet.items():
        stem = f"lora_unet_{af.sgm_name(path[5:], (1, 2, 3)).replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"] = module.down
        tensors[f"{stem}.lora_up.weight"] = module.up
        tensors[f"{stem}.alpha"] = torch.tensor(module.alpha)
    published = publish(store, tmp_path, tensors)
    assert_same(deltas(store, published), oracle(unet), EXACT)


def test_sparse_block_ids_stay_where_they_are(store: Store, tmp_path: Path) -> None:
    """N4: blocks 4, 5, 7, 8 alone are not blocks 0, 1, 2, 3."""
    stem = "unet.down_blocks.{}.attentions.{}.transformer_blocks.0.attn2.to_k"
    paths = [stem.format(i, j) for i in (1, 2) for j in (0, 1)]
    made = af.factors(af.TOY_SDXL, paths, alpha=1.0)
    tensors = af.kohya_tensors(made, sgm=True)
    assert {name[len("lora_unet_input_blocks_") :][0] for name in tensors} == set("4578")
    assert_same(deltas(store, publish(store, tmp_path, tensors)), oracle(made), EXACT)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_real_widths(store: Store, tmp_path: Path, name: str) -> None:
    """One module of each shape of the real models, in the names that trainers use for them."""
    layout = known_layout(name)
    shapes: dict[tuple[int, ...], str] = {}
    for path, spec in layout.modules.items():
        if prod(spec.shape) < 6_000_000:  # the widest convolutions only cost the oracle seconds
            shapes.setdefault(spec.shape, path)
    made = af.factors(layout, shapes.values(), rank=1, alpha=1.0, dtype=torch.float16)
    tensors = af.kohya_tensors(made, sgm=name == "sdxl", two_encoders=name == "sdxl")
    published = publish(store, tmp_path, tensors)
    assert published.report.layout_name == name
    assert_same(deltas(store, published), oracle(made), EXACT)


# -- diffusers and PEFT generations ---------------------------------------------------------------


@pytest.mark.parametrize("prefix", [False, True], ids=["G0", "G1"])
def test_attention_processors(store: Store, tmp_path: Path, prefix: bool) -> None:
    layout = af.TOY_SD1
    wanted = (".to_q", ".to_k", ".to_v", ".to_out.0", "_proj") if prefix else (".to_q", ".to_out.0")
    paths = [
        path
        for path in layout.modules
        if (".attn" in path or ".self_attn" in path) and path.endswith(wanted) and (prefix or path.startswith("unet."))
    ]
    made = af.factors(layout, paths)
    published = publish(store, tmp_path, af.processor_tensors(made, prefix=prefix), layout="toy_sd1")
    assert published.report.family == "diffusers-processor"
    assert_same(deltas(store, published), oracle(made), EXACT)


@pytest.mark.parametrize("infix", ["", "default."])
@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_peft_folder_finds_its_component(store: Store, tmp_path: Path, component: str, infix: str) -> None:
    """N16: one folder a component, no prefix that says which."""
    paths = [path for path in af.TOY_SD2.modules if path.startswith(f"{component}.")]
    made = af.factors(af.TOY_SD2, paths)
    tensors = af.peft_tensors(made, wrapper="base_model.model.", component=False, infix=infix)
    config = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6})
    published = publish(store, tmp_path, tensors, options=InterpretOptions(peft_config=config))
    expected = {path: af.dense(module, 6 / module.rank) for path, module in made.items()}
    assert_same(deltas(store, published), expected, EXACT)


def test_mixed_generations_in_one_file(store: Store, tmp_path: Path) -> None:
    """X10: the first key does not speak for the others."""
    made = af.factors(af.TOY_SD1)
    tensors: dict[str, Tensor] = {}
    for at, (path, module) in enumerate(made.items()):
        form = (af.peft_tensors, af.diffusers_tensors, af.kohya_tensors)[at % 3]
        tensors |= form({path: module})
    published = publish(store, tmp_path, tensors)
    assert published.report.family == "diffusers+kohya+peft"
    assert_same(deltas(store, published), oracle(made), EXACT)


def test_names_of_transformers_5_without_text_model(store: Store, tmp_path: Path) -> None:
    paths = [path for path in af.TOY_SD1.modules if path.startswith("text_encoder.")]
    made = af.factors(af.TOY_SD1, paths)
    tensors = {
        name.replace("text_encoder.text_model.", "text_encoder."): tensor
        for name, tensor in af.peft_tensors(made).items()
    }
    published = publish(store, tmp_path, tensors, layout="toy_sd1")
    assert_same(deltas(store, published), oracle(made), EXACT)


# -- alpha and scale ------------------------------------------------------------------------------

KEY = f"{ATTENTION}.attn2.to_k"


def _scales(published: Published) -> dict[str, float]:
    return {module.module: module.scale for module in published.report.matched}


def _codes(published: Published) -> list[str]:
    return [warning.partition(":")[0] for warning in published.report.warnings]


def test_missing_alpha_is_the_rank_of_each_module(store: Store, tmp_path: Path) -> None:
    """A2, A4, A18: never one alpha of the first key for all."""
    paths = [KEY, f"{ATTENTION}.attn1.to_q"]
    made = af.factors(af.TOY_SD1, paths[:1], rank=2) | af.factors(af.TOY_SD1, paths[1:], rank=8, alpha=4.0)
    published = publish(store, tmp_path, af.kohya_tensors(made))
    assert _scales(published) == {paths[0]: 1.0, paths[1]: 0.5}
    assert _codes(published) == []


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (torch.tensor(2.0).to(torch.float8_e4m3fn), 0.5),
        (torch.tensor(2.0).to(torch.float8_e5m2), 0.5),
        (torch.tensor(2.0**-9).to(torch.float8_e4m3fn), 2.0**-11),
        (torch.tensor(-448.0).to(torch.float8_e4m3fn), -112.0),
        (torch.tensor(2.0, dtype=torch.float64), 0.5),
    ],
    ids=str,
)
def test_alpha_of_any_dtype(store: Store, tmp_path: Path, alpha: Tensor, expected: float) -> None:
    tensors = af.kohya_tensors(af.factors(af.TOY_SD1, [KEY], rank=4, alpha=1.0))
    name = next(name for name in tensors if name.endswith(".alpha"))
    published = publish(store, tmp_path, tensors | {name: alpha})
    assert _scales(published) == {KEY: expected}


def test_every_fp8_alpha_reads_as_torch_reads_it(tmp_path: Path) -> None:
    from loramux_store.formats.scalar import read_scalar
    from loramux_store.header import TensorEntry

    for name, dtype in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        path = tmp_path / name
        path.write_bytes(bytes(range(256)))
        values = torch.arange(256, dtype=torch.uint8).view(dtype).double()
        with path.open("rb") as handle:
            for byte, value in enumerate(values.tolist()):
                if abs(value) < float("inf"):
                    entry = TensorEntry("alpha", name, (), byte, byte + 1)
                    assert read_scalar(handle, entry, "m") == value


def _peft(store: Store, folder: Path, config: dict, rank: int = 16) -> Published:
    made = af.factors(af.TOY_SD1, [KEY], rank=rank)
    tensors = af.peft_tensors(made, wrapper="base_model.model.", component=False)
    options = InterpretOptions(peft_config=json.dumps(config))
    return publish(store, folder, tensors, options=options)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 16, "lora_alpha": 8}, 0.5),
        ({"r": 16, "lora_alpha": 16, "use_rslora": True}, 4.0),  # A6
        ({"r": 16, "lora_alpha": 8, "alpha_pattern": {"to_k": 32}}, 2.0),
        ({"r": 16, "lora_alpha": 8, "alpha_pattern": {"o_k": 32}}, 0.5),
        ({"r": 16, "lora_alpha": 8, "alpha_pattern": {"attn2.to_k": 32, "to_k": 64}}, 2.0),
        ({"r": 16, "lora_alpha": 8, "alpha_pattern": {"to_k": 64, "attn2.to_k": 32}}, 4.0),
        ({"r": 16, "lora_alpha": 8, "alpha_pattern": {f"^{KEY[5:]}": 32}}, 2.0),
        ({"r": 16, "lora_alpha": 8, "alpha_pattern": {"^attn2.to_k": 32}}, 0.5),
        ({"r": 16, "lora_alpha": 8, "alpha_pattern": {r"down_blocks\.\d+\..*to_k": 32}}, 2.0),
        ({"r": 4, "lora_alpha": 8, "rank_pattern": {"to_k": 16}}, 0.5),
        ({"r": 16, "alpha_pattern": {}}, 1.0),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_peft_scales(store: Store, tmp_path: Path, config: dict, scale: float) -> None:
    published = _peft(store, tmp_path, config)
    assert _scales(published) == {KEY: scale}
    codes = [] if "lora_alpha" in config else ["alpha_assumed"]
    assert _codes(published) == codes


def test_patterns_match_as_in_peft() -> None:
    """The same answer as PEFT's own function, for patterns and names of this domain."""
    from peft.utils.other import get_pattern_key

    rng = random.Random(5)
    parts = ["to_k", "to_q", "attn1", "attn2", "down_blocks", "0", "1", "up_blocks"]
    more = [".*", "[01]", r"\d", "(up|down)_blocks", "(?:0|to_k)"]
    for _ in range(400):
        name = ".".join(rng.choices(parts, k=rng.randint(1, 5)))
        keys: dict[str, int] = {}
        for value in range(rng.randint(1, 4)):
            pattern = ".".join(rng.choices([*parts, *more], k=rng.randint(1, 2)))
            keys.setdefault(rng.choice(["", "^"]) + pattern, value)
        config = parse_config(json.dumps({"lora_alpha": -1, "alpha_pattern": keys}))
        assert config.alpha(name) == keys.get(get_pattern_key(list(keys), name), -1), (keys, name)


@pytest.mark.parametrize(
    "key",
    [
        "(a|a)" * 30 + "b",  # a thousand million ways
        "(a|b|c|d|e|f|g|h).*(a|b|c)",
        "(a)*", "(a|b)+", "(a){9}", "((a|b)c)", "(?a)", "(?=a)", "(a", "a)", r"\(a\)", "(" * 256, "(*)", "(a)" * 86,
    ],
)  # fmt: skip
def test_patterns_that_could_take_long_are_refused(key: str) -> None:
    with pytest.raises(InvalidArgument, match="alpha_pattern"):
        parse_config(json.dumps({"alpha_pattern": {key: 1}}))


def test_peft_without_a_config(store: Store, tmp_path: Path) -> None:
    made = af.factors(af.TOY_SD1, [KEY], rank=4)
    tensors = af.peft_tensors(made)
    assumed = publish(store, tmp_path, tensors)
    assert (_scales(assumed), _codes(assumed)) == ({KEY: 1.0}, ["alpha_assumed"])
    said = publish(store, tmp_path, tensors, options=InterpretOptions(alpha=2.0))
    assert (_scales(said), _codes(said)) == ({KEY: 0.5}, [])
    written = publish(store, tmp_path, tensors, metadata={"alpha": "1"})
    assert (_scales(written), _codes(written)) == ({KEY: 0.25}, ["alpha_from_metadata"])


def test_adapter_metadata_in_the_file(store: Store, tmp_path: Path) -> None:
    text = f"{TEXT}.self_attn.q_proj"
    made = af.factors(af.TOY_SD1, [KEY, text], rank=4)
    body = {
        "unet.r": 4,
        "unet.lora_alpha": 8,
        "unet.alpha_pattern": {},
        "text_encoder.r": 4,
        "text_encoder.lora_alpha": 4,
        "text_encoder.use_rslora": True,
    }
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(body)}
    published = publish(store, tmp_path, af.peft_tensors(made), metadata)
    assert _scales(published) == {KEY: 2.0, text: 2.0}
    given = InterpretOptions(peft_config='{"r": 4, "lora_alpha": 1}')
    override = publish(store, tmp_path, af.peft_tensors(made), metadata, options=given)
    assert _scales(override) == {KEY: 0.25, text: 0.25}


def test_options_that_nothing_uses_are_reported(store: Store, tmp_path: Path) -> None:
    made = af.factors(af.TOY_SD1, [KEY], rank=4, alpha=2.0)
    options = InterpretOptions(alpha=9.0, peft_config='{"lora_alpha": 3}')
    published = publish(store, tmp_path, af.kohya_tensors(made), options=options)
    assert _scales(published) == {KEY: 0.5}
    assert _codes(published) == ["peft_config_unused", "alpha_unused"]


def test_bundled_embeddings_are_part_of_the_version(store: Store, tmp_path: Path) -> None:
    tensors = af.kohya_tensors(af.factors(af.TOY_SD1, [KEY], rank=4))
    published = publish(store, tmp_path, tensors | {"bundle_emb.ema yasuhara.clip_l": torch.ones(2, 24)})
    version = published.version
    wanted = (Embedding("ema yasuhara", 2, {"text_encoder": 24}),)
    assert published.report.bundled == version.bundled == version.embeddings == wanted
    assert (version.kind, version.embedding, version.notes.trigger_words) == ("lora", None, ("ema yasuhara",))
    assert published.report.ignored == () and _codes(published) == []
    without = publish(store, tmp_path, tensors).version
    assert version.device_bytes == without.device_bytes + 2 * 24 * 4
    assert store.list_versions(version.adapter, 5).items[1].bundled == wanted, "listings tell them too"


# -- which layout ---------------------------------------------------------------------------------


def test_evidence_names_what_decided(store: Store, tmp_path: Path) -> None:
    made = af.factors(af.TOY_SD1, [KEY, f"{ATTENTION}.attn1.to_q"], alpha=1.0)
    report = publish(store, tmp_path, af.kohya_tensors(made)).report
    assert report.layout_name == "toy_sd1"
    assert any("toy_sd2" in line and "attn2.to_k" in line for line in report.evidence)


INPAINTING = Layout(
    "sd-inpainting", {**known_layout("sd1").modules, "unet.conv_in": ModuleSpec("conv2d", (320, 9, 3, 3))}
)
CROSS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
SELF = CROSS.replace("attn2", "attn1")
SD1_SAID, SD2_SAID = {"ss_base_model_version": "sd_v1"}, {"ss_base_model_version": "sd_v2"}


@pytest.mark.parametrize(
    "base,path,said,layout",
    [
        (None, CROSS, {}, "sd1"),
        (None, CROSS, SD1_SAID, "sd1"),
        (None, SELF, {}, None),
        (None, SELF, SD2_SAID, "sd2"),
        (None, "unet.conv_in", {}, "sd-inpainting"),
        ("sd1", CROSS, {}, "sd1"),
        ("sd1", SELF, {}, None),
        ("sdxl", CROSS, {}, "sd1"),
        ("sd-inpainting", CROSS, {}, "sd-inpainting"),
        ("sd-inpainting", CROSS, SD1_SAID, "sd-inpainting"),
        ("sd-inpainting", SELF, {}, "sd-inpainting"),
        ("sd-inpainting", SELF, SD2_SAID, "sd2"),
    ],
)
def test_a_base_that_ran_once_takes_no_file_from_a_family_and_one_that_runs_does(
    store: Store, tmp_path: Path, base: str | None, path: str, said: dict[str, str], layout: str | None
) -> None:
    store.register_layout(INPAINTING)
    if base is not None:
        store.serve_base(store.layout(base))
    tensors = af.kohya_tensors(af.factors(INPAINTING, [path]))
    file = af.write(tmp_path / "a.safetensors", tensors, said)
    if layout is None:
        with pytest.raises(Refused, match=r"family_ambiguous: the file fits .*sd1, sd2"):
            store.publish(file, UploadSpec("a"))
    else:
        report = store.publish(file, UploadSpec("a")).report
        assert report.layout_name == layout
        assert (path == "unet.conv_in") != any("equally possible" in line for line in report.evidence)


def test_layout_option_breaks_a_tie(store: Store, tmp_path: Path) -> None:
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    made = af.factors(known_layout("sd1"), [path], rank=2, alpha=1.0)
    for wanted in ("sd2", known_layout("sd1").digest):
        published = publish(store, tmp_path, af.kohya_tensors(made), layout=wanted)
        assert wanted in (published.report.layout_name, published.report.layout_digest)
        assert published.created


# -- laws -----------------------------------------------------------------------------------------


@given(data=st.data())
@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_selection_of_modules(data: st.DataObject, store: Store, tmp_path: Path) -> None:
    """Random modules, ranks, alphas, dtypes and key orders: the oracle's delta, in any order."""
    layout: Layout = data.draw(st.sampled_from(af.TOYS), "layout")
    paths = data.draw(st.lists(st.sampled_from(list(layout.modules)), min_size=1, max_size=12, unique=True))
    dtype = af.DTYPES[data.draw(st.sampled_from(["F32", "F16", "BF16", "F8_E4M3"]), "dtype")]
    alpha = data.draw(st.one_of(st.none(), st.sampled_from([0.5, 1.0, 3.0, 16.0])), "alpha")
    tucker = data.draw(st.booleans(), "tucker")
    seed = data.draw(st.integers(0, 9), "seed")
    made = af.factors(layout, paths, seed=seed, alpha=alpha, dtype=dtype, tucker=tucker)
    tensors = af.kohya_tensors(made, two_encoders=layout is af.TOY_SDXL)
    shuffled = dict(data.draw(st.permutations(list(tensors.items())), "order"))
    first = publish(store, tmp_path, tensors, layout=layout.name)
    second = publish(store, tmp_path, shuffled, layout=layout.name)
    assert first.report == second.report
    bound = FOLDED if tucker else EXACT
    expected = {
        path: af.dense(module, None if alpha is None else _stored(alpha, dtype) / module.rank)
        for path, module in made.items()
    }
    assert_same(deltas(store, first), expected, bound)
    assert_same(deltas(store, second), expected, bound)


def _stored(alpha: float, dtype: torch.dtype) -> float:
    return torch.tensor(alpha).to(dtype).double().item()


def test_key_order_makes_no_difference(store: Store, tmp_path: Path) -> None:
    """The container, not the library, decides the order: write it by hand."""
    tensors = af.kohya_tensors(af.factors(af.TOY_SD1, alpha=2.0))
    reports = []
    for seed in range(3):
        names = list(tensors)
        random.Random(seed).shuffle(names)
        path = af.write_in_order(tmp_path / "shuffled.safetensors", tensors, names)
        published = store.publish(path, UploadSpec("shuffled"))
        assert published.version is not None
        reports.append((published.report, store.compiled(published.version).read_bytes()))
    assert reports[0] == reports[1] == reports[2]


def test_a_family_is_nearer_than_the_builtin_base(tmp_path: Path) -> None:
    """A width of no model, under a name that all have."""
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{key}.lora_A.weight": torch.ones(1, 111), f"{key}.lora_B.weight": torch.ones(111, 1)}
    with Store.open(tmp_path / "plain") as store, pytest.raises(Refused, match="nearest is sd"):
        publish(store, tmp_path, tensors)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_no_name_that_is_taken_is_another_familys(name: str) -> None:
    table = name_table(known_layout(name))
    stems = [*table._full, *(stem for inside in table._bare.values() for stem in inside)]
    assert len(stems) > 1000
    refuse_families(f"{wrapper}{stem}.lora_A.weight" for wrapper in ("", "base_model.model.") for stem in stems)
