"""The table of cases: which model a file is for (formats.md 4.5, 3.3)."""

import adapter_files as af
import torch
from cases import BLOCK, KEY, ONES, TEXT, Accepted, Case, Elsewhere, Refusal, Rows, draw, lora, renamed

from loramux_store import Layout, known_layout

__all__ = ["MODELS"]

ATTN1 = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FORMATS = "tests/adapters_store/test_formats.py"


def _real(name: str, path: str, **more: object) -> Case:
    return lora(path, layout=known_layout(name), rank=1, **more)  # type: ignore[arg-type]


def _hinted(metadata: dict[str, str], name: str) -> Case:
    """A file that fits SD1 and SD2 equally."""
    made = af.factors(known_layout("sd1"), [ATTN1], rank=1, alpha=1.0)
    becomes = Accepted({ATTN1: af.dense(made[ATTN1])}, layout=name, evidence=next(iter(metadata)))
    return Case(af.kohya_tensors(made), becomes, metadata)


def _wrong_prefix(layout: str | None = None) -> Case:
    made = af.factors(known_layout("sdxl"), ["text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj"], rank=1)
    tensors = {n.replace("text_encoder_2", "text_encoder"): t for n, t in af.peft_tensors(made).items()}
    key = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    return Case(tensors, Refusal("shape_mismatch", key, "looks like text_encoder_2 of sdxl"), layout=layout)


def _anima() -> Case:
    stems = ("lora_unet_blocks_0_cross_attn_k_proj", "lora_te_layers_0_self_attn_q_proj")
    shapes = {"down": (1, 1024), "up": (1024, 1)}
    tensors = {f"{stem}.lora_{end}.weight": ONES(shape) for stem in stems for end, shape in shapes.items()}
    return Case(tensors, Refusal("family_unknown", stems[1]))


def _refiner(stem: str, down: str, up: str, layout: str | None = None) -> Case:
    """SDXL's refiner: 4 deep, its context 1280."""
    tensors = {f"{stem}.{down}.weight": ONES(1, 1280), f"{stem}.{up}.weight": ONES(768, 1)}
    return Case(tensors, Refusal("unsupported_family:sdxl_refiner", f"{stem}.{down}.weight"), layout=layout)


def _dense_evidence(layout: Layout) -> Case:
    """The same by a full difference and by LoKr, of one module each: their shapes say the width too."""
    out, source = layout.modules[KEY].shape
    stem = f"lora_unet_{KEY[5:].replace('.', '_')}"
    other = f"lora_unet_{BLOCK[5:].replace('.', '_')}_attn2_to_v"
    w1, w2, diff = draw(2, 4), draw(out // 2, source // 4), draw(out, source)
    deltas = {KEY: diff.double(), f"{BLOCK}.attn2.to_v": torch.kron(w1.double(), w2.double())}
    tensors = {f"{stem}.diff": diff, f"{other}.lokr_w1": w1, f"{other}.lokr_w2": w2}
    return Case(tensors, Accepted(deltas, layout=layout.name))


MODELS: Rows = {
    "B2 blocks two deep are SDXL's": lambda: lora(
        f"{BLOCK}.attn1.to_q", f"{BLOCK[:-1]}1.attn1.to_q", layout=af.TOY_SDXL
    ),
    "B4 attn1 alone": lambda: Case(
        af.kohya_tensors(af.factors(known_layout("sd1"), [ATTN1], rank=1)),
        Refusal("family_ambiguous", f"lora_unet_{ATTN1[5:].replace('.', '_')}", "sd1, sd2"),
    ),
    "B4 ss_base_model_version sd_v1": lambda: _hinted({"ss_base_model_version": "sd_v1"}, "sd1"),
    "B4 ss_base_model_version sd_v2_v": lambda: _hinted({"ss_base_model_version": "sd_v2_v"}, "sd2"),
    "B4 modelspec.architecture v1": lambda: _hinted({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd1"),
    "B4 modelspec.architecture v2": lambda: _hinted(
        {"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "sd2"
    ),
    "B4 ss_v2 True": lambda: _hinted({"ss_v2": "True"}, "sd2"),
    "B4 ss_v2 False": lambda: _hinted({"ss_v2": "False"}, "sd1"),
    "B4 said by the uploader": Elsewhere(f"{FORMATS}::test_layout_option_breaks_a_tie"),
    "B6 the second encoder's weights under the first's name": _wrong_prefix,
    "B6 the same, said to be SD1": lambda: _wrong_prefix("sd1"),
    "B8 the metadata lies": lambda: _real(
        "sdxl",
        KEY,
        write=lambda made: af.kohya_tensors(made, sgm=True),
        metadata={"ss_base_model_version": "sd_v1"},
        warnings=("metadata_contradicts_shapes",),
    ),
    "B10 Anima": _anima,
    # rules of section 3.3 that no report is about
    "SD1 by the width of the context": lambda: _real("sd1", KEY, evidence="not sd2"),
    "SD2 by the width of the context": lambda: _real("sd2", KEY),
    "SDXL by the width of the context": lambda: _real("sdxl", KEY),
    "by differences and Kronecker products": lambda: _dense_evidence(af.TOY_SD2),
    "proj_in, a convolution in SD1": lambda: _real("sd1", "unet.down_blocks.0.attentions.0.proj_in"),
    "proj_in, linear in SD2": lambda: _real("sd2", "unet.down_blocks.0.attentions.0.proj_in"),
    "attention in the last block up is not SDXL's": lambda: lora(
        "unet.up_blocks.3.attentions.0.transformer_blocks.0.attn2.to_k", evidence="not toy_sdxl"
    ),
    "attention in the first block up is SDXL's": lambda: lora(
        "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", layout=af.TOY_SDXL
    ),
    "add_embedding is SDXL's": lambda: lora("unet.add_embedding.linear_1", layout=af.TOY_SDXL),
    "a text encoder of SD2's width": lambda: _real("sd2", "text_encoder.text_model.encoder.layers.22.mlp.fc1"),
    "te1 alone is SDXL's": lambda: lora(
        "text_encoder.text_model.encoder.layers.1.mlp.fc1",
        layout=af.TOY_SDXL,
        write=lambda made: af.kohya_tensors(made, two_encoders=True),
        evidence="the first of two",
    ),
    "te1 alone is SD1's where the metadata says so": lambda: _real(
        "sd1",
        f"{TEXT}.mlp.fc1",
        change=renamed("lora_te_", "lora_te1_"),
        metadata={"ss_base_model_version": "sd_v1"},
        evidence="ss_base_model_version",
    ),
    "te1 of SD1 beside its UNet": lambda: lora(KEY, f"{TEXT}.mlp.fc1", change=renamed("lora_te_", "lora_te1_")),
    "te1 of SD2": lambda: _real("sd2", f"{TEXT}.mlp.fc1", change=renamed("lora_te_", "lora_te1_")),
    "te1 and te of one module": lambda: Case(
        {
            f"lora_te{number}_text_model_encoder_layers_1_mlp_fc1.lora_{end}.weight": ONES(shape)
            for number in ("", "1")
            for end, shape in (("down", (1, 1024)), ("up", (4096, 1)))
        },
        Refusal("duplicate_module", "lora_te_text_model_encoder_layers_1_mlp_fc1"),
    ),
    "te2 of SD1": lambda: Case(
        renamed("lora_te_", "lora_te2_")(af.kohya_tensors(af.factors(af.TOY_SD1, [KEY, f"{TEXT}.mlp.fc1"]))),
        Refusal("unknown_keys", "lora_te2_text_model_encoder_layers_1_mlp_fc1"),
    ),
    "a 24th layer, which SD2's text encoder lacks": lambda: Case(
        {
            f"lora_te_text_model_encoder_layers_{layer}_mlp_fc2.lora_{end}.weight": ONES(shape)
            for layer in (22, 23)
            for end, shape in (("down", (1, 4096)), ("up", (1024, 1)))
        },
        Refusal("unknown_keys", "lora_te_text_model_encoder_layers_23_mlp_fc2"),
    ),
    "SDXL's refiner": lambda: _refiner(
        "lora_unet_input_blocks_4_1_transformer_blocks_3_attn2_to_k", "lora_down", "lora_up"
    ),
    "SDXL's refiner in diffusers' names": lambda: _refiner(
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "lora_A", "lora_B"
    ),
    "SDXL's refiner, said to be SDXL": lambda: _refiner(
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "lora.down", "lora.up", layout="sdxl"
    ),
}
