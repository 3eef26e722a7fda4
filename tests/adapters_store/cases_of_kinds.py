"""The table of cases: convolutions, CP, LyCORIS' kinds, DoRA, what is no adapter (formats.md 4.3, 4.4, 4.8)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import adapter_files as af
import adapter_kinds as kinds
import torch
from cases import (
    ALPHA,
    BLOCK,
    CONV,
    DOWN,
    KEY,
    ONES,
    STEM,
    UP,
    Accepted,
    Case,
    Elsewhere,
    Refusal,
    Rows,
    Tensors,
    draw,
    good,
    kinded,
    lora,
    of_kinds,
    stem_of,
)  # fmt: skip

__all__ = ["DECOMPOSED", "FOREIGN", "KINDS"]

SQUARE = f"{BLOCK}.attn1.to_q"
CONV_IN = "lora_unet_conv_in"


def _refused(tensors: Tensors, reason: str, key: str, says: str = "", layout: str | None = None) -> Case:
    return Case(tensors, Refusal(reason, key, says), layout=layout)


def _conv(down: tuple[int, ...], up: tuple[int, ...]) -> Tensors:
    stem = "lora_unet_down_blocks_0_resnets_0_conv1"
    return {f"{stem}.lora_down.weight": ONES(down), f"{stem}.lora_up.weight": ONES(up)}


def _loha(stem: str, inner: tuple[int, ...], outer: tuple[int, ...]) -> Tensors:
    return {f"{stem}.hada_w{side}_{end}": ONES(shape) for side in "12" for end, shape in (("a", outer), ("b", inner))}


def _leaves(stem: str, *leaves: str, shape: tuple[int, ...] = (2, 2)) -> Tensors:
    return {f"{stem}.{leaf}": ONES(shape) for leaf in leaves}


def _cp(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Case:
    """A CP file of a mid that is not symmetric."""
    made = af.factors(af.TOY_SD1, ["unet.conv_in", CONV], rank=3, tucker=True, alpha=2.0)
    tensors = {name: change(name, tensor) for name, tensor in af.kohya_tensors(made).items()}
    deltas = {path: af.dense(module) for path, module in made.items()}
    return Case(tensors, Accepted(deltas), layout="toy_sd1")


def _flat(tensors: Tensors) -> Tensors:
    return {name: tensor.flatten(1) if tensor.ndim > 2 else tensor for name, tensor in tensors.items()}


def _flat_core() -> Case:
    """LoKr's second factor of a convolution with four dimensions, as the functional API writes it."""
    w1, a, b = draw(2, 4), draw(8, 2), draw(2, 4, 3, 3)
    delta = torch.einsum("ac,br,rdhw->abcdhw", *(t.double() for t in (w1, a, b))).reshape(16, 16, 3, 3)
    stem = stem_of(CONV)
    tensors = {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2_a": a, f"{stem}.lokr_w2_b": b}
    return Case(tensors, Accepted({CONV: delta}, warnings=("alpha_assumed",)), layout="toy_sd1")


def _loha_of_two_ranks() -> Case:
    """r1 is not r2, and the alpha is divided by that of w1_b."""
    factors = {"w1_a": draw(16, 2), "w1_b": draw(2, 24), "w2_a": draw(16, 3), "w2_b": draw(3, 24, seed=1)}
    a1, b1, a2, b2 = (tensor.double() for tensor in factors.values())
    tensors = {f"{STEM}.hada_{leaf}": tensor for leaf, tensor in factors.items()} | {ALPHA: torch.tensor(1.0)}
    return Case(tensors, Accepted({KEY: 0.5 * ((a1 @ b1) * (a2 @ b2))}, scales={KEY: 0.5}), layout="toy_sd1")


def _bias_alone() -> Case:
    return Case({f"{STEM}.diff_b": draw(16)}, Accepted({}, biases={KEY: draw(16).double()}), layout="toy_sd1")


def _norm(stem: str, weight: str, bias: str) -> Case:
    tensors = {f"{stem}.{weight}": draw(8), f"{stem}.{bias}": draw(8, seed=1)}
    return Case(tensors, Accepted({}, biases={"unet.conv_norm_out": draw(8, seed=1).double()}), layout="toy_sd1")


def _extra_of_full(leaf: str, scale: float, **expected: object) -> Case:
    case = of_kinds({KEY: kinds.full})
    assert isinstance(case.content, Mapping) and isinstance(case.becomes, Accepted)
    deltas = {path: scale * delta for path, delta in case.becomes.deltas.items()}
    becomes = replace(case.becomes, deltas=deltas, **expected)  # type: ignore[arg-type]
    return replace(case, content={**case.content, f"{STEM}.{leaf}": torch.tensor(0.25)}, becomes=becomes)


def _both_in_one_file() -> Case:
    """module_algo_map: each module of another kind, one of them decomposed."""
    return of_kinds(
        {
            KEY: kinds.loha(2, 1.0),
            SQUARE: kinds.lokr((2, 4), None, None),
            f"{BLOCK}.attn1.to_k": kinds.full,
            f"{BLOCK}.attn1.to_v": kinds.lora(2, 1.0),
            CONV: kinds.decomposed(kinds.lora(2, 1.0), "output"),
        }
    )


KINDS: Rows = {
    "C2 a flat down for 3x3 with a mid": lambda: _cp(lambda name, t: t.flatten(1) if "lora_down" in name else t),
    "C2 a flat down for 3x3 without": lambda: _refused(
        _conv((4, 8), (8, 4, 1, 1)), "shape_mismatch", "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"
    ),
    "C4 LoHa without cores": lambda: of_kinds({CONV: kinds.loha(2, 1.0), KEY: kinds.loha(2, 3.0)}),
    "C4 LoHa with one of two cores": lambda: _refused(
        _loha(CONV_IN, (2, 4), (2, 8)) | {f"{CONV_IN}.hada_t1": ONES(2, 2, 3, 3)},
        "incomplete_pair",
        f"{CONV_IN}.hada_t1",
        "hada_t2",
    ),
    "C6 LoHa of cores, o not r": lambda: of_kinds(
        {CONV: kinds.loha_tucker(3, 2.0), "unet.conv_in": kinds.loha_tucker(2, 2.0)}
    ),
    "C8 LoKr whose first side is the larger": lambda: of_kinds({KEY: kinds.lokr((8, 8), None, None)}),
    "C10 IA3": lambda: _refused(
        {f"{STEM}.weight": ONES(16), f"{STEM}.on_input": torch.tensor(0)}, "unsupported_kind:ia3", f"{STEM}.on_input"
    ),
    "C12 early OFT": lambda: _refused(
        _leaves(STEM, "oft_diag", shape=(2, 2, 2)), "unsupported_kind:oft", f"{STEM}.oft_diag"
    ),
    "C14 broken rank 1": lambda: _refused(
        _conv((9, 320, 1, 1), (1, 320, 1, 1)),
        "rank_mismatch",
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight",
    ),
    "C16 fused": lambda: _refused({DOWN: ONES(6, 24), UP: ONES(48, 2)}, "rank_mismatch", UP, "rank 6"),
    "C18 a bias beside a LoRA": lambda: of_kinds(
        {KEY: kinds.lora(2, 1.0, bias=True), CONV: kinds.lora(3, 1.0, bias=True)}
    ),
    # rules of sections 1.6, 2.2 to 2.5 that no report is about
    "CP with a mid that is not symmetric": lambda: _cp(lambda _, tensor: tensor),
    "1x1 convolutions stored flat": lambda: lora(
        "unet.down_blocks.0.attentions.0.proj_in", KEY, change=_flat
    ),
    "linear layers stored as 1x1 convolutions": lambda: lora(
        KEY, SQUARE, change=lambda t: {n: v[..., None, None] if v.ndim == 2 else v for n, v in t.items()}
    ),
    "LoHa of two ranks": _loha_of_two_ranks,
    "LoHa of a rank that is not worth rows": lambda: of_kinds({KEY: kinds.loha(6, 3.0), CONV: kinds.loha(6, 3.0)}),
    "LoKr, second side in factors": lambda: of_kinds({KEY: kinds.lokr((2, 4), None, 1, 0.5)}),
    "LoKr, first side in factors": lambda: of_kinds({KEY: kinds.lokr((8, 8), 1, None, 0.5)}),
    "LoKr, both in factors": lambda: of_kinds(
        {KEY: kinds.lokr((4, 8), 1, 2, 3.0), CONV: kinds.lokr((4, 4), 1, 2, 3.0)}
    ),
    "LoKr with a core": lambda: of_kinds({CONV: kinds.lokr((2, 4), None, 2, 5.0, tucker=True)}),
    "LoKr, a factor of a convolution with four dimensions": _flat_core,
    "LoKr of two whole sides with an infinite alpha": lambda: of_kinds(
        {KEY: kinds.lokr((2, 4), None, None, float("inf"))}, scales={KEY: 1.0}
    ),
    "a full difference and one of the bias": lambda: of_kinds({KEY: kinds.full, CONV: kinds.full}),
    "alpha beside a full difference": lambda: _extra_of_full(
        "alpha", 1.0, ignored=(ALPHA,), warnings=("ignored",)
    ),
    "scale beside a full difference": lambda: _extra_of_full("scale", 0.25),
    "a difference of a bias alone": _bias_alone,
    "a normalisation": lambda: _norm("lora_unet_conv_norm_out", "w_norm", "b_norm"),
    "a normalisation by sgm names, as diff": lambda: _norm("lora_unet_out_0", "diff", "diff_b"),
    "kinds mixed in one file": _both_in_one_file,
    "LoHa without a factor": lambda: _refused(
        {f"{STEM}.hada_w1_a": ONES(16, 1), f"{STEM}.hada_w1_b": ONES(1, 24)},
        "incomplete_pair", f"{STEM}.hada_w1_a", "hada_w2_a",
    ),
    "LoHa of two ranks in one pair": lambda: _refused(
        _loha(STEM, (2, 24), (16, 3)), "rank_mismatch", f"{STEM}.hada_w1_a"
    ),
    "LoHa of another width": lambda: _refused(_loha(STEM, (2, 25), (16, 2)), "shape_mismatch", f"{STEM}.hada_w1_b"),
    "LoKr whose sides make another shape": lambda: _refused(
        {f"{STEM}.lokr_w1": ONES(2, 2), f"{STEM}.lokr_w2": ONES(8, 8)}, "shape_mismatch", f"{STEM}.lokr_w2", "[16, 24]"
    ),
    "LoKr with a side whole and in factors": lambda: _refused(
        _leaves(STEM, "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2"), "mixed_kinds", f"{STEM}.lokr_w1"
    ),
    "LoKr with one side": lambda: _refused(
        _leaves(STEM, "lokr_w1"), "incomplete_pair", f"{STEM}.lokr_w1", "lokr_w2"
    ),
    "LoKr with a core and no factors": lambda: _refused(
        _leaves(STEM, "lokr_w1", "lokr_w2") | {f"{STEM}.lokr_t2": ONES(2, 2, 1, 1)},
        "incomplete_pair", f"{STEM}.lokr_t2", "lokr_w2_a",
    ),
    "a core beside a linear layer": lambda: _refused(
        good() | {f"{STEM}.lora_mid.weight": ONES(2, 2, 1, 1)}, "shape_mismatch", f"{STEM}.lora_mid.weight"
    ),
    "a mid of two dimensions": lambda: _refused(
        good() | {f"{STEM}.lora_mid.weight": ONES(2, 2)}, "shape_mismatch", f"{STEM}.lora_mid.weight"
    ),
    "half a pair": lambda: _refused({DOWN: ONES(2, 24)}, "incomplete_pair", DOWN, "up"),
    "two kinds in one module": lambda: _refused(
        good() | {f"{STEM}.diff": ONES(16, 24)}, "mixed_kinds", f"{STEM}.diff"
    ),
    "a full difference of another shape": lambda: _refused(
        {f"{STEM}.diff": ONES(16, 33)}, "shape_mismatch", f"{STEM}.diff"
    ),
    "a bias of another width": lambda: _refused(
        good() | {f"{STEM}.diff_b": ONES(15)}, "shape_mismatch", f"{STEM}.diff_b"
    ),
    "factors of a normalisation": lambda: _refused(
        {
            "lora_unet_conv_norm_out.lora_down.weight": ONES(1, 8),
            "lora_unet_conv_norm_out.lora_up.weight": ONES(8, 1),
        },
        "shape_mismatch", "lora_unet_conv_norm_out.lora_down.weight",
    ),
    "a normalisation's delta on a convolution": lambda: _refused(
        {f"{CONV_IN}.w_norm": ONES(8)}, "shape_mismatch", f"{CONV_IN}.w_norm"
    ),
    "a normalisation that the model lacks": lambda: _refused(
        good() | {"lora_unet_x.w_norm": ONES(8)}, "unknown_keys", "lora_unet_x"
    ),
    "all zero": lambda: lora(
        KEY, change=lambda t: t | {UP: torch.zeros_like(t[UP])}, scale=0.0, warnings=("all_zero",)
    ),
}  # fmt: skip


def _decomposed(path: str, make: kinds.Make, leaf: str, shape: tuple[int, ...], axis: str) -> Case:
    sample = make(af.TOY_SD1.modules[path].shape, torch.Generator().manual_seed(1))
    m = (torch.rand(shape, generator=torch.Generator().manual_seed(2)) + 0.5).half().float()
    whole = kinds.Sample({**sample.leaves, leaf: m}, sample.delta, sample.bias, axis, m.flatten().double())
    return kinded({path: whole})


_LORA = kinds.lora(2, 1.0)
_PEFT, _LYCORIS = "lora_magnitude_vector", "dora_scale"

DECOMPOSED: Rows = {
    "D2 linear, inputs": lambda: _decomposed(KEY, _LORA, _LYCORIS, (1, 24), "input"),
    "D2 linear, outputs": lambda: _decomposed(KEY, _LORA, _LYCORIS, (16, 1), "output"),
    "D2 square, inputs": lambda: _decomposed(SQUARE, _LORA, _LYCORIS, (1, 16), "input"),
    "D2 square, outputs": lambda: _decomposed(SQUARE, _LORA, _LYCORIS, (16, 1), "output"),
    "D2 convolution, inputs": lambda: _decomposed(CONV, _LORA, _LYCORIS, (1, 16, 1, 1), "input"),
    "D2 convolution, outputs": lambda: _decomposed(CONV, _LORA, _LYCORIS, (16, 1, 1, 1), "output"),
    "D2 one dimension": lambda: _decomposed(SQUARE, _LORA, _LYCORIS, (16,), "output"),
    "D2 PEFT's": lambda: _decomposed(KEY, _LORA, _PEFT, (16,), "output"),
    "D2 PEFT's with .weight": lambda: _decomposed(KEY, _LORA, f"{_PEFT}.weight", (16,), "output"),
    "D4 the norm is that of V": Elsewhere(
        "tests/server/test_side_operations.py::test_pictures_equal_the_dense_reference_all_in_one_stream"
    ),
    "D6 LoCon and dora_scale": lambda: _decomposed(
        "unet.down_blocks.0.resnets.0.conv1", _LORA, _LYCORIS, (1, 8, 1, 1), "input"
    ),
    "D8 LoHa": lambda: _decomposed(KEY, kinds.loha(1, 1.0), _LYCORIS, (1, 24), "input"),
    "D8 LoHa with cores": lambda: _decomposed(CONV, kinds.loha_tucker(2, 1.0), _LYCORIS, (16, 1, 1, 1), "output"),
    "D8 LoKr": lambda: _decomposed(KEY, kinds.lokr((2, 4), None, None), _LYCORIS, (16, 1), "output"),
    "D10 a square convolution of PEFT": lambda: _decomposed(CONV, _LORA, _PEFT, (1, 16, 1, 1), "output"),
    "D10 a square convolution of LyCORIS": lambda: _decomposed(CONV, _LORA, _LYCORIS, (1, 16, 1, 1), "input"),
    # rules of section 1.8 that no report is about
    "magnitudes of some modules": lambda: _both_in_one_file(),
    "a full difference with magnitudes": lambda: of_kinds({KEY: kinds.decomposed(kinds.full, "input")}),
    "magnitudes of no axis": lambda: _refused(
        good() | {f"{STEM}.dora_scale": ONES(1, 16)}, "shape_mismatch", f"{STEM}.dora_scale"
    ),
    "magnitudes of one dimension are of outputs": lambda: _refused(
        good() | {f"{STEM}.dora_scale": ONES(24)}, "shape_mismatch", f"{STEM}.dora_scale"
    ),
    "magnitudes twice": lambda: _refused(
        good() | {f"{STEM}.dora_scale": ONES(16, 1), f"{STEM}.{_PEFT}": ONES(16)}, "shape_mismatch", f"{STEM}.{_PEFT}"
    ),
    "magnitudes of nothing": lambda: _refused(
        {f"{STEM}.dora_scale": ONES(1, 24)}, "incomplete_pair", f"{STEM}.dora_scale"
    ),
    "magnitudes that are not finite": lambda: _refused(
        good() | {f"{STEM}.dora_scale": ONES(1, 24) * torch.inf}, "non_finite", f"{STEM}.dora_scale"
    ),
}


def _foreign(kind: str, key: str, *more: str, shape: tuple[int, ...] = (2, 2)) -> Callable[[], Case]:
    return partial(_refused, {name: ONES(shape) for name in (key, *more)}, f"unsupported_kind:{kind}", key)


def _family(family: str, key: str) -> Callable[[], Case]:
    return partial(_refused, {key: ONES(2, 2)}, f"unsupported_family:{family}", key)


FOREIGN: Rows = {
    "X2 ControlNet-LLLite": _foreign("lllite", "lllite_unet_x.down.0.weight"),
    "X4 positional LoRA of the UNet": _foreign("positional_lora", "unet:0:down", "unet:0:up"),
    "X4 positional LoRA with metadata": lambda: replace(
        _foreign("positional_lora", "text_encoder:0:down", "text_encoder:0:up")(),
        metadata={"unet": '["CrossAttention"]', "unet:0:rank": "2"},
    ),
    "X6 a permuted projection is a DiT's": _family("dit", "transformer.context_refiner.0.attn.to_q.lora_A.weight"),
    "X8 XLabs": _family("flux", "double_blocks.0.processor.qkv_lora1.down.weight"),
    "X14 A, A and L, A": Elsewhere(
        "tests/server/test_bug_classes.py::test_a_b_a_draws_a_and_the_base_stays_the_base"
    ),
    "X16 weights of parts": Elsewhere(
        "tests/server/test_bases.py::test_each_part_takes_adapters_and_has_its_own_weight"
    ),
    # sections 1.0, 1.9 and 1.14
    "Flux of kohya": _family("flux", "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"),
    "Flux of BFL": _family("flux", "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"),
    "Flux's single blocks": _family("flux", "lora_unet_single_blocks_0_linear1.lora_down.weight"),
    "Flux of diffusers": _family("flux", "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"),
    "Flux's T5": _family("dit", "lora_te3_encoder_block_0_layer_0_SelfAttention_k.lora_down.weight"),
    "OneTrainer's DiT": _family("dit", "lora_transformer_x.lora_down.weight"),
    "SD3 of kohya": _family("sd3", "lora_unet_joint_blocks_0_x_block_attn_qkv.alpha"),
    "SD3's context_embedder": _family("sd3", "lora_unet_context_embedder.lora_down.weight"),
    "SD3's add_q_proj": _family("sd3", "base_model.model.transformer_blocks.0.attn.add_q_proj.lora_A.weight"),
    "Cascade": _family("cascade", "lora_prior_unet_x.alpha"),
    "Cascade's encoder": _family("cascade", "lora_prior_te_x.alpha"),
    "HunyuanVideo of ComfyUI": _family("hunyuan_video", "diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight"),
    "HunyuanVideo's MLP": _family("hunyuan_video", "lora_unet_double_blocks_0_txt_mlp_fc1.lora_down.weight"),
    "Wan of ComfyUI": _family("wan", "diffusion_model.blocks.0.self_attn.q.lora_A.weight"),
    "Wan of musubi": _family("wan", "lora_unet_blocks_0_cross_attn_k_img.lora_down.weight"),
    "Wan's feed-forward layers": _family("wan", "lora_unet_blocks_0_ffn_0.alpha"),
    "Z-Image": _family("dit", "diffusion_model.layers.0.attention.to_q.lora_A.weight"),
    "Lumina of kohya": _family("dit", "lora_unet_layers_0_attention_qkv.lora_down.weight"),
    "Hunyuan-DiT of kohya": _family("dit", "lora_unet_blocks_0_attn1_Wqkv.lora_down.weight"),
    "Qwen and LTX of ComfyUI": _family("dit", "diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight"),
    "Flux of SimpleTuner": _family("dit", "lycoris_transformer_blocks_0_attn_to_q.lokr_w1"),
    "SD3 or Flux in PEFT's names": _family("dit", "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight"),
    "PixArt in PEFT's names, bare": _family("dit", "transformer_blocks.0.attn1.to_q.lora_A.weight"),
    "AuraFlow, bare": _family("dit", "joint_transformer_blocks.0.attn.to_q.lora_A.weight"),
    "encoder T5 as a second one": _family("dit", "lora_te2_encoder_block_0_layer_0_SelfAttention_k.alpha"),
    "encoder T5 as a third one": _family("dit", "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q.lora_A"),
    "encoder T5 as the only one": _family("dit", "text_encoder.encoder.block.0.layer.0.SelfAttention.q.lora_A"),
    "PEFT's IA3": _foreign("ia3", "base_model.model.x.to_k.ia3_l"),
    "AdaLoRA of PEFT": lambda: _refused(
        {f"base_model.model.{KEY[5:]}.lora_{end}": ONES(shape) for end, shape in
         (("A", (2, 24)), ("B", (16, 2)), ("E", (2, 1)))},
        "unsupported_kind:adalora", f"base_model.model.{KEY[5:]}.lora_E",
    ),
    "KaSA of PEFT": lambda: _refused(
        {f"base_model.model.{KEY[5:]}.{leaf}": ONES(shape) for leaf, shape in
         (("lora_A.weight", (2, 24)), ("lora_B.weight", (16, 2)), ("lora_diag", (2,)))},
        "unsupported_kind:kasa", f"base_model.model.{KEY[5:]}.lora_diag",
    ),
    "VeRA of PEFT": _foreign("vera", "base_model.model.x.to_k.vera_lambda_b", "base_model.vera_A"),
    "a part of a VeRA by itself": _foreign("vera", "base_model.model.x.to_k.vera_lambda_b", shape=(24,)),
    "HRA of PEFT": _foreign("hra", "base_model.model.x.to_k.hra_u"),
    "RandLoRA of PEFT": _foreign("randlora", "base_model.model.x.to_k.randlora_lambda"),
    "normalisations of PEFT": _foreign("ln_tuning", "base_model.model.x.norm1.ln_tuning_layers.weight"),
    "GLoRA": _foreign("glora", f"{STEM}.a1.weight", f"{STEM}.a2.weight", f"{STEM}.b1.weight", f"{STEM}.b2.weight"),
    "OFT of LyCORIS": _foreign("oft", f"{STEM}.oft_blocks", f"{STEM}.rescale", shape=(2, 2, 2)),
    "OFT of kohya": _foreign("oft", "oft_unet_x.oft_blocks", shape=(2, 2, 2)),
    "OFT by its prefix alone": _foreign("oft", "oft_unet_x.something"),
    "OFT of PEFT": _foreign("oft", "base_model.model.x.to_k.oft_R.default.weight"),
    "BOFT of LyCORIS": _foreign("boft", f"{STEM}.oft_blocks", shape=(1, 2, 2, 2)),
    "BOFT of PEFT": _foreign("boft", "base_model.model.x.to_k.boft_R", "base_model.model.x.to_k.boft_s"),
    "weights in place of the base's": lambda: _refused(
        good() | {f"{STEM}.set_weight": ONES(2)}, "unsupported_kind:set_weight", f"{STEM}.set_weight"
    ),
    "a larger base": lambda: _refused(
        good() | {f"{STEM}.reshape_weight": ONES(2)}, "unsupported_kind:set_weight", f"{STEM}.reshape_weight"
    ),
    "control-LoRA": _foreign("control_lora", "lora_controlnet", "a.up"),
    "ControlNet": _foreign(
        "controlnet", "controlnet_cond_embedding.conv_in.weight", "down_blocks.0.attentions.0.proj_in.weight"
    ),
    "ControlNet of the original code": _foreign(
        "controlnet", "control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"
    ),
    "ControlNet of the original code, bare": _foreign("controlnet", "zero_convs.0.0.weight", "input_blocks.0.0.weight"),
    "IP-Adapter": _foreign("ip_adapter", "image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"),
    "IP-Adapter with LoRAs of FaceID": _foreign(
        "ip_adapter",
        "image_proj.proj.0.weight",
        "ip_adapter.0.to_q_lora.down.weight",
        "ip_adapter.0.to_q_lora.up.weight",
    ),
    "InstantID": _foreign("ip_adapter", "image_proj.latents", "ip_adapter.1.to_k_ip.weight"),
    "a part of an IP-Adapter by itself": lambda: _refused(
        {"ip_adapter.1.to_k_ip.bias2": ONES(320, 24)}, "unsupported_kind:ip_adapter", "ip_adapter.1.to_k_ip.bias2"
    ),
    "T2I-Adapter": _foreign("t2i_adapter", "adapter.body.0.in_conv.weight", "adapter.conv_in.weight"),
    "T2I-Adapter of the original code": _foreign("t2i_adapter", "body.0.block1.weight", "conv_in.weight"),
    "Custom Diffusion": _foreign(
        "custom_diffusion", f"{BLOCK[5:]}.attn2.processor.to_k_custom_diffusion.weight"
    ),
    "hypernetwork": _foreign("hypernetwork", "320.0.linear.0.bias", "320.0.linear.0.weight"),
    "a whole model": _foreign("full_checkpoint", "model.diffusion_model.out.0.weight"),
    "a whole model's UNet": _foreign("full_checkpoint", "down_blocks.0.resnets.0.conv1.weight"),
    "the first layer of a whole model's UNet": _foreign("full_checkpoint", "conv_in.weight"),
    "a text encoder, CLIP": _foreign(
        "full_checkpoint", "text_model.encoder.layers.0.layer_norm1.weight", "text_model.final_layer_norm.bias"
    ),
    "a text encoder, CLIP as transformers 5 names it": _foreign(
        "full_checkpoint", "encoder.layers.0.layer_norm1.weight", "final_layer_norm.bias"
    ),
    "a text encoder, T5": _foreign(
        "full_checkpoint", "encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.block.0.layer.0.layer_norm.weight"
    ),
    "VAE": _foreign("vae", "encoder.conv_in.weight"),
    "VAE of the original code": _foreign("vae", "decoder.up.0.block.0.norm1.weight"),
    "VAE, a tiny one": _foreign("vae", "encoder.layers.1.conv.0.weight"),
    "VAE of a checkpoint": _foreign("vae", "first_stage_model.decoder.conv_in.weight"),
    "nothing known": lambda: _refused({"something.else": ONES(2, 2)}, "family_unknown", "something.else"),
}  # fmt: skip
