"""The table of cases: names and mapping, alpha and scale (formats.md 4.1 and 4.2), and PEFT's configurations."""

import json
import math

import adapter_files as af
import torch
from cases import (
    ALPHA,
    BLOCK,
    DOWN,
    KEY,
    STEM,
    TEXT,
    UP,
    Accepted,
    Case,
    Elsewhere,
    Refusal,
    Rows,
    Tensors,
    good,
    lora,
    renamed,
)

__all__ = ["NAMES", "SCALES"]

ATTN1 = f"{BLOCK}.attn1.to_q"
LATE = ("unet.conv_in", "unet.conv_out", "unet.time_embedding.linear_1", "unet.time_embedding.linear_2")
FORMATS = "tests/adapters_store/test_formats.py"


def _sgm(made):
    return af.kohya_tensors(made, sgm=True, two_encoders=True)


def _of_encoder(component: str) -> Case:
    """N16: PEFT's folder of one component has no prefix; names and shapes tell which."""
    paths = [p for p in af.TOY_SDXL.modules if p.startswith(f"{component}.") and p.endswith((".fc1", "attn2.to_k"))]

    def write(made):
        return af.peft_tensors(made, wrapper="base_model.model.", component=False)

    config = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3})
    said = {"config": config} | ({"layout": "toy_sdxl"} if component == "text_encoder" else {})  # SD1's is its equal
    return lora(*paths, layout=af.TOY_SDXL, rank=2, alpha=None, write=write, scale=1.5, said=said)


def _old(component: str):
    def write(made):
        return af.processor_tensors(made, prefix=component == "text_encoder")

    return write


NAMES: Rows = {
    "N2 conv_in, conv_out and the time embedding of SD1": lambda: lora(*LATE, KEY),
    "N2 the same in SDXL by sgm names": lambda: lora(*LATE, KEY, layout=af.TOY_SDXL, write=_sgm),
    "N4 sparse blocks": Elsewhere(f"{FORMATS}::test_sparse_block_ids_stay_where_they_are"),
    "N6 lycoris_": lambda: lora(
        ATTN1, "unet.conv_in", layout=af.TOY_SDXL, change=renamed("lora_unet_", "lycoris_"), said={"layout": "toy_sdxl"}
    ),
    "N8 G2 of UNet and text encoder": lambda: lora(
        KEY, f"{TEXT}.self_attn.q_proj", f"{TEXT}.mlp.fc1", alpha=None, write=af.diffusers_tensors
    ),
    "N10 trailing underscores": lambda: lora(
        KEY, "unet.mid_block.attentions.0.proj_out", change=lambda t: {n.replace(".", "_.", 1): v for n, v in t.items()}
    ),
    "N12 an SDXL file is SDXL's": lambda: lora(KEY, f"{BLOCK[:-1]}1.attn2.to_k", layout=af.TOY_SDXL),
    "N12 asked for as another's": lambda: Case(
        good(layout=af.TOY_SDXL),
        Refusal(
            "family_mismatch",
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
            "the file is for toy_sdxl, not for toy_sd1",
        ),
        layout="toy_sd1",
    ),
    "N12 used on another base": Elsewhere(
        "tests/test_end_to_end.py::test_an_adapter_for_another_base_is_kept_but_not_drawn_with"
    ),
    "N14 a foreign key": lambda: Case(good() | {"stray": torch.ones(1)}, Refusal("unknown_keys", "stray")),
    "N14 a bundled embedding": lambda: lora(
        KEY,
        change=lambda t: t | {"bundle_emb.ema yasuhara.clip_l": torch.ones(2, 24)},
        bundled={"ema yasuhara": {"text_encoder": torch.ones(2, 24)}},
    ),
    "N16 PEFT's folder of the UNet": lambda: _of_encoder("unet"),
    "N16 PEFT's folder of the first encoder": lambda: _of_encoder("text_encoder"),
    "N16 PEFT's folder of the second encoder": lambda: _of_encoder("text_encoder_2"),
    "N18 PEFT's LoHa, with and without its config": Elsewhere(
        "tests/adapters_store/test_kinds.py::test_alpha_of_low_rank_kinds"
    ),
    "X10 generations mixed": Elsewhere(f"{FORMATS}::test_mixed_generations_in_one_file"),
    # rules of sections 1.1 to 1.4 and 3.2 that no report is about
    "processors of attention": lambda: lora(KEY, ATTN1, alpha=None, write=_old("unet")),
    "a processor in PEFT's names": lambda: lora(
        KEY,
        alpha=None,
        rank=2,
        write=af.peft_tensors,
        change=renamed("attn2.", "attn2.processor."),
        warnings=("alpha_assumed",),
    ),
    "self_attn.to_q_lora": lambda: lora(
        f"{TEXT}.self_attn.q_proj",
        f"{TEXT}.self_attn.out_proj",
        alpha=None,
        write=_old("text_encoder"),
        said={"layout": "toy_sd1"},
    ),
    "a dot in a flat name": lambda: lora(KEY, change=renamed("attn2_to_k", "attn2.to_k")),
    "lora_A without .weight": lambda: lora(
        KEY, alpha=None, write=af.peft_tensors, change=renamed(".weight", ""), warnings=("alpha_assumed",)
    ),
    "an adapter's name left in": lambda: lora(
        KEY, ATTN1, alpha=None, write=lambda made: af.peft_tensors(made, infix="cat."), warnings=("alpha_assumed",)
    ),
    "model. around diffusion_model.": lambda: lora(
        KEY, change=renamed(STEM, "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k")
    ),
    "text encoders of ComfyUI": lambda: lora(
        KEY,
        f"{TEXT}.mlp.fc1",
        f"{TEXT.replace('.', '_2.', 1)}.mlp.fc1",
        layout=af.TOY_SDXL,
        write=lambda made: af.kohya_tensors(made, sgm=True, two_encoders=True),
        change=lambda tensors: {_of_comfy(name): tensor for name, tensor in tensors.items()},
    ),
    "the text encoder of SD2 of ComfyUI": lambda: lora(
        KEY,
        f"{TEXT}.mlp.fc1",
        layout=af.TOY_SD2,
        change=renamed(
            f"lora_te_{TEXT[13:].replace('.', '_')}_mlp_fc1", f"text_encoders.clip_h.transformer{TEXT[12:]}.mlp.fc1"
        ),
    ),
    "text projections": lambda: lora(
        "text_encoder_2.text_projection", layout=af.TOY_SDXL, write=lambda made: af.kohya_tensors(made)
    ),
    "a text projection that the encoder lacks": lambda: lora(
        KEY,
        change=lambda t: t | {"lora_te_text_projection.diff": torch.ones(2, 2)},
        warnings=("ignored",),
        ignored=("lora_te_text_projection.diff",),
    ),
    "a counter": lambda: lora(
        KEY,
        change=lambda t: t | {"text_model.embeddings.position_ids": torch.ones(77)},
        warnings=("ignored",),
        ignored=("text_model.embeddings.position_ids",),
    ),
    "only a counter": lambda: Case(
        {"text_model.embeddings.position_ids": torch.ones(77)},
        Refusal("family_unknown", "text_model.embeddings.position_ids"),
    ),
    "attention where there is none in the table of names": lambda: Case(
        good() | renamed("down_blocks_1", "down_blocks_3")(good()),
        Refusal("unknown_keys", STEM.replace("down_blocks_1", "down_blocks_3")),
    ),
    "two names of one module": lambda: Case(
        good() | renamed("down_blocks_1_attentions_0", "input_blocks_4_1")(good()),
        Refusal("duplicate_module", STEM.replace("down_blocks_1_attentions_0", "input_blocks_4_1")),
    ),
    "two leaves of one part": lambda: Case(
        good() | {f"{STEM}.lora_A.weight": torch.ones(2, 24)}, Refusal("duplicate_module", DOWN)
    ),
    "two PEFT adapters": lambda: Case(
        _peft_pair("one", KEY) | _peft_pair("two", ATTN1),
        Refusal("multiple_adapters", f"{ATTN1}.lora_A.two.weight"),
    ),
    "two PEFT adapters of LoHa": lambda: Case(
        {
            f"{path}.hada_w{side}_{end}.{name}": torch.ones(shape)
            for name, path, width in (("one", KEY, 24), ("two", ATTN1, 16))
            for side in "12"
            for end, shape in (("a", (16, 1)), ("b", (1, width)))
        },
        Refusal("multiple_adapters", f"{ATTN1}.hada_w1_a.two"),
    ),
    "modules_to_save": lambda: Case(
        af.peft_tensors(af.factors(af.TOY_SD1, [KEY])) | {"base_model.model.conv_in.weight": torch.ones(8, 4, 3, 3)},
        Refusal("unknown_keys", "base_model.model.conv_in.weight"),
    ),
    "biases of PEFT's bias=all": lambda: Case(
        af.peft_tensors(af.factors(af.TOY_SD1, [KEY])) | {f"{KEY}.bias": torch.ones(16)},
        Refusal("unknown_keys", f"{KEY}.bias"),
    ),
    "modules_to_save, said by the config": lambda: _beside(
        {"modules_to_save": ["conv_in"]}, {"base_model.model.conv_in.weight": torch.ones(8, 4, 3, 3)}, "modules_to_save"
    ),
    "biases of PEFT's bias=all, said by the config": lambda: _beside(
        {"bias": "all"}, {"base_model.model.conv_norm_out.bias": torch.ones(8)}, "bias_all"
    ),
    "biases of PEFT's bias=lora_only, said by the metadata": lambda: _beside(
        {"bias": "lora_only"}, {f"{KEY}.base_layer.bias": torch.ones(16)}, "bias_lora_only", kept=True
    ),
    "bias=all of a file without biases": lambda: _configured({"r": 4, "lora_alpha": 8, "bias": "all"}, 2.0, rank=4),
    "an embedding of PEFT": lambda: Case(
        {"text_model.embeddings.token_embedding.lora_embedding_A": torch.ones(2, 9)},
        Refusal("unsupported_kind:lora_embedding", "text_model.embeddings.token_embedding.lora_embedding_A"),
    ),
}


def _of_comfy(name: str) -> str:
    for number, encoder in (("1", "clip_l"), ("2", "clip_g")):
        stem = f"lora_te{number}_{TEXT[13:].replace('.', '_')}_mlp_fc1"
        name = name.replace(stem, f"text_encoders.{encoder}.transformer{TEXT[12:]}.mlp.fc1")
    return name


def _beside(config: dict[str, object], tensors: Tensors, kind: str, *, kept: bool = False) -> Case:
    """A LoRA with other tensors beside it, and a config that says so: given, or kept in the metadata."""
    content = af.peft_tensors(af.factors(af.TOY_SD1, [KEY])) | tensors
    refusal = Refusal(f"unsupported_kind:{kind}", next(iter(tensors)))
    if kept:
        said = {f"unet.{field}": value for field, value in config.items()}
        return Case(content, refusal, {"lora_adapter_metadata": json.dumps(said)})
    return Case(content, refusal, config=json.dumps(config))


def _peft_pair(name: str, path: str):
    return af.peft_tensors(af.factors(af.TOY_SD1, [path]), infix=f"{name}.")


def _mixed(alphas: tuple[float | None, float | None], ranks: tuple[int, int] = (2, 8), **expected: object) -> Case:
    """attn1.to_q, which sorts first, and attn2.to_k of two ranks."""
    made = {
        path: module
        for path, alpha, rank in zip((ATTN1, KEY), alphas, ranks, strict=True)
        for path, module in af.factors(af.TOY_SD1, [path], rank=rank, alpha=alpha).items()
    }
    return Case(af.kohya_tensors(made), Accepted({p: af.dense(m) for p, m in made.items()}, **expected))  # type: ignore[arg-type]


def _alpha(tensor: torch.Tensor, scale: float, **expected: object) -> Case:
    return lora(KEY, rank=4, change=lambda t: t | {ALPHA: tensor}, scale=scale, scales={KEY: scale}, **expected)  # type: ignore[arg-type]


RS = {"r": 16, "lora_alpha": 16, "use_rslora": True}


def _configured(
    config: object, scale: float, rank: int = 16, write: object = af.peft_tensors, **expected: object
) -> Case:
    said = {"config": config if isinstance(config, str) else json.dumps(config)}
    return lora(KEY, rank=rank, alpha=None, write=write, scale=scale, said=said, **expected)  # type: ignore[arg-type]


def _kept(config: object, write: object, said: dict[str, str] | None = None) -> Case:
    """Of rank 16, with a config of its own."""
    kept = {"lora_adapter_metadata": json.dumps(config)}
    return lora(KEY, rank=16, alpha=None, write=write, metadata=kept, scale=4.0, said=said)  # type: ignore[arg-type]


def _stored(body: str) -> Case:
    return Case(
        af.peft_tensors(af.factors(af.TOY_SD1, [KEY])),
        Refusal("adapter_config_invalid", "lora_adapter_metadata"),
        {"lora_adapter_metadata": body},
    )


def _config_refused(config: dict[str, object], reason: str, key: str) -> Case:
    return Case(af.peft_tensors(af.factors(af.TOY_SD1, [KEY])), Refusal(reason, key), config=json.dumps(config))


def _tiny() -> Case:
    made = af.factors(af.TOY_SD1, [KEY], rank=16, alpha=1.0, dtype=torch.float16, size=1e-6)
    return Case(af.kohya_tensors(made), Accepted({KEY: af.dense(made[KEY])}))


def _whole_bf16() -> Case:
    made = af.factors(af.TOY_SD1, [KEY, ATTN1], rank=4, alpha=2.0, dtype=torch.bfloat16)
    return Case(af.kohya_tensors(made), Accepted({path: af.dense(module) for path, module in made.items()}))


def _of_fp8(dtype: torch.dtype) -> Case:
    made = af.factors(af.TOY_SD1, [KEY], rank=4, alpha=2.0, dtype=dtype)
    return Case(af.kohya_tensors(made), Accepted({KEY: af.dense(made[KEY])}))


SCALES: Rows = {
    "Z1 alpha 0": lambda: _alpha(torch.tensor(0.0), 0.0, warnings=("alpha_zero",)),
    "A2 mixed ranks without alpha": lambda: _mixed((None, None), scales={ATTN1: 1.0, KEY: 1.0}),
    "A4 alpha in some modules": lambda: _mixed((1.0, None), scales={ATTN1: 0.5, KEY: 1.0}),
    "A6 rsLoRA": lambda: _configured({"r": 16, "lora_alpha": 16, "use_rslora": True}, 4.0),
    "A8 alpha left at 181": lambda: _mixed(
        (181.0, 181.0), (1, 64), scales={KEY: 181 / 64}, warnings=("scale_outlier",)
    ),
    "A10 bf16 throughout": _whole_bf16,
    "A12 LoKr of two whole sides": Elsewhere("tests/adapters_store/test_kinds.py::test_scales_of_whole_lokr"),
    "A14 alpha of shape [1]": lambda: _alpha(torch.tensor([2.0]).half(), 0.5),
    "A14 alpha of shape [2]": lambda: Case(good() | {ALPHA: torch.ones(2)}, Refusal("alpha_bad_shape", ALPHA)),
    "A16 factors of 1e-6 in fp16": _tiny,
    "A18 no alpha": lambda: lora(KEY, rank=4, alpha=None, scales={KEY: 1.0}),
    "A20 alpha an int64": lambda: _alpha(torch.tensor(2), 0.5),
    "A20 alpha a uint8": lambda: _alpha(torch.tensor(2, dtype=torch.uint8), 0.5),
    "X12 fp8 e4m3": lambda: _of_fp8(torch.float8_e4m3fn),
    "X12 fp8 e5m2": lambda: _of_fp8(torch.float8_e5m2),
    # rules of sections 1.4, 1.5 and 1.7 that no report is about
    "alpha rounded by bf16": lambda: _alpha(torch.tensor(0.3).bfloat16(), 0.30078125 / 4),
    "alpha a bool": lambda: Case(good() | {ALPHA: torch.tensor(True)}, Refusal("alpha_bad_shape", ALPHA)),
    "alpha infinite in fp16": lambda: Case(
        good() | {ALPHA: torch.tensor(math.inf).half()}, Refusal("alpha_non_finite", ALPHA)
    ),
    "alpha beyond float32": lambda: Case(
        good() | {ALPHA: torch.tensor(1e300, dtype=torch.float64)}, Refusal("alpha_non_finite", ALPHA)
    ),
    "alpha of a dtype without numbers": lambda: Case(_scaling_factors("F8_E8M0"), Refusal("unsupported_dtype", ALPHA)),
    "a negative alpha": lambda: _alpha(torch.tensor(-2.0), -0.5),
    "scale overrides alpha": lambda: lora(
        KEY, rank=4, change=lambda t: t | {f"{STEM}.scale": torch.tensor(0.75)}, scale=0.75, scales={KEY: 0.75}
    ),
    "alpha in the metadata": lambda: lora(
        KEY,
        rank=4,
        alpha=None,
        write=af.diffusers_tensors,
        metadata={"alpha": "1"},
        scale=0.25,
        warnings=("alpha_from_metadata",),
    ),
    "an alpha in the metadata that is none": lambda: Case(
        af.diffusers_tensors(af.factors(af.TOY_SD1, [KEY])),
        Refusal("alpha_non_finite", "__metadata__.alpha"),
        {"alpha": "inf"},
    ),
    "alpha said by the uploader": lambda: lora(
        KEY,
        rank=4,
        alpha=None,
        write=af.diffusers_tensors,
        scale=0.5,
        said={"alpha": 2.0},  # type: ignore[dict-item]
    ),
    "PEFT without a config": lambda: lora(
        KEY, rank=4, alpha=None, write=af.peft_tensors, scale=1.0, warnings=("alpha_assumed",)
    ),
    "alpha_pattern": lambda: _configured({"r": 16, "lora_alpha": 8, "alpha_pattern": {"attn2.to_k": 32}}, 2.0),
    "rank_pattern": lambda: _configured({"r": 4, "lora_alpha": 8, "rank_pattern": {"to_k": 16}}, 0.5),
    "a config that contradicts the shapes": lambda: _configured(
        {"r": 8, "lora_alpha": 8}, 0.5, warnings=("config_contradicts_shapes",)
    ),
    "fan_in_fan_out": lambda: _configured(
        {"r": 16, "lora_alpha": 16, "fan_in_fan_out": True}, 1.0, warnings=("fan_in_fan_out",)
    ),
    "use_dora without magnitudes": lambda: _configured(
        {"r": 16, "lora_alpha": 16, "use_dora": True}, 1.0, warnings=("dora_without_magnitudes",)
    ),
    "a config beside diffusers' names": lambda: _configured(RS, 4.0, write=af.diffusers_tensors),
    "a config beside kohya's names without alpha": lambda: _configured(RS, 4.0, write=af.kohya_tensors),
    "a config beside kohya's names with alpha": lambda: lora(
        KEY, rank=4, scales={KEY: 0.25}, said={"config": json.dumps(RS)}, warnings=("peft_config_unused",)
    ),
    "a config of diffusers' names in the metadata": lambda: _kept(
        {f"unet.{field}": value for field, value in RS.items()}, af.diffusers_tensors
    ),
    "a config of one model in the metadata": lambda: _kept(
        RS, lambda made: af.peft_tensors(made, component=False), {"layout": "toy_sd1"}
    ),
    "PEFT's alpha 0": lambda: _configured({"r": 16, "lora_alpha": 0}, 0.0, warnings=("alpha_zero",)),
    "the whole LoKr of PEFT with alpha 0": lambda: _lokr_of_peft(0.0, warnings=("alpha_zero",)),
    "the whole LoKr of PEFT": lambda: _lokr_of_peft(3.0),
    "a bias of lora_B": lambda: _lora_bias(KEY, af.peft_tensors, "lora_B.bias"),
    "a bias of lora.up": lambda: _lora_bias(KEY, af.diffusers_tensors, "lora.up.bias"),
    "a bias of lora_linear_layer.up": lambda: _lora_bias(
        f"{TEXT}.self_attn.q_proj", af.diffusers_tensors, "lora_linear_layer.up.bias", width=24
    ),
    "lora_adapter_metadata no JSON": lambda: _stored("{"),
    "lora_adapter_metadata no object": lambda: _stored("[]"),
    "lora_adapter_metadata of words": lambda: _stored('{"unet.lora_alpha": "x"}'),
    "PEFT's IA3 by its config": lambda: _config_refused({"peft_type": "IA3"}, "unsupported_kind:ia3", "peft_type"),
    "PiSSA": lambda: _config_refused(
        {"init_lora_weights": "PiSSA_niter_4"}, "unsupported_kind:pissa_niter_4", "init_lora_weights"
    ),
    "LoftQ": lambda: _config_refused({"init_lora_weights": "loftq"}, "unsupported_kind:loftq", "init_lora_weights"),
    "target_parameters": lambda: _config_refused(
        {"target_parameters": ["x"]}, "unsupported_kind:target_parameters", "target_parameters"
    ),
    "layer_replication": lambda: _config_refused(
        {"layer_replication": [[0, 4]]}, "unsupported_kind:layer_replication", "layer_replication"
    ),
    "VeRA by its config": lambda: _config_refused({"peft_type": "VERA"}, "unsupported_kind:vera", "peft_type"),
    "VeRA by the metadata": lambda: Case(
        {f"{KEY}.strange": torch.ones(2)},
        Refusal("unsupported_kind:vera", "peft_type"),
        {"lora_adapter_metadata": json.dumps({"peft_type": "VERA"})},
    ),
    "KaSA by its config": lambda: _config_refused(
        {"kasa_config": {"beta": 1e-4}}, "unsupported_kind:kasa", "kasa_config"
    ),
    "BD-LoRA": lambda: _config_refused({"use_bdlora": {"nblocks": 2}}, "unsupported_kind:bdlora", "use_bdlora"),
    "rank 0": lambda: Case({DOWN: torch.ones(0, 24), UP: torch.ones(16, 0)}, Refusal("rank_mismatch", UP)),
    "rank above both sides": lambda: lora(KEY, rank=30),
    "rank 4097": lambda: Case(
        {DOWN: torch.ones(4097, 24).half(), UP: torch.ones(16, 4097).half()}, Refusal("rank_too_large", DOWN)
    ),
    "factors that are integers": lambda: Case(
        good() | {DOWN: torch.ones(2, 24, dtype=torch.int32)}, Refusal("unsupported_dtype", DOWN)
    ),
    "fp64 beyond float32": lambda: Case(
        good() | {UP: torch.full((16, 2), 1e300, dtype=torch.float64)}, Refusal("non_finite", UP)
    ),
}


def _scaling_factors(dtype: str) -> bytes:
    """An alpha of a dtype that torch writes no scalar of."""
    import safetensors.torch

    raw = safetensors.torch.save(good() | {ALPHA: torch.tensor(1, dtype=torch.uint8)})
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header[ALPHA]["dtype"] = dtype
    return af.raw_container(header, raw[8 + size :])


def _lokr_of_peft(alpha: float, **expected: object) -> Case:
    w1, w2 = torch.randn(2, 4), torch.randn(8, 6)
    config = json.dumps({"peft_type": "LOKR", "r": 4, "alpha": alpha})
    becomes = Accepted({KEY: alpha / 4 * torch.kron(w1.double(), w2.double())}, scales={KEY: alpha / 4}, **expected)  # type: ignore[arg-type]
    tensors = {f"base_model.model.{KEY[5:]}.lokr_w1": w1, f"base_model.model.{KEY[5:]}.lokr_w2": w2}
    return Case(tensors, becomes, config=config)


def _lora_bias(path: str, write: object, leaf: str, width: int = 16) -> Case:
    bias = torch.arange(float(width))
    return lora(
        path,
        rank=4,
        alpha=None,
        write=write,  # type: ignore[arg-type]
        change=lambda t: t | {f"{path}.{leaf}": bias},
        scale=0.5,
        biases={path: bias.double() / 2},
        said={"config": json.dumps({"r": 4, "lora_alpha": 2, "lora_bias": True}), "layout": "toy_sd1"},
    )
