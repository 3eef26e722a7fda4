"""Refusals of formats.md section 4 that no other file here has, by their ids."""

import json
from collections.abc import Callable
from pathlib import Path

import adapter_files as af
import pytest
import torch
from torch import Tensor

from loramux_store import InterpretOptions, Store, UploadSpec, known_layout
from loramux_store.errors import InvalidArgument, Refused

BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
KEY = f"{BLOCK}.attn2.to_k"
STEM = f"lora_unet_{KEY[5:].replace('.', '_')}"
DOWN, UP, ALPHA = f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight", f"{STEM}.alpha"
Tensors = dict[str, Tensor]


def good(path: str = KEY, rank: int = 2) -> Tensors:
    return af.kohya_tensors(af.factors(af.TOY_SD1, [path], rank=rank, alpha=1.0))


def conv(down: tuple[int, ...], up: tuple[int, ...]) -> Tensors:
    stem = "lora_unet_down_blocks_0_resnets_0_conv1"
    return {f"{stem}.lora_down.weight": torch.ones(down), f"{stem}.lora_up.weight": torch.ones(up)}


def loha(stem: str, inner: tuple[int, int], outer: tuple[int, int]) -> Tensors:
    return {
        f"lora_unet_{stem}.hada_w{side}_{end}": torch.ones(shape)
        for side in "12"
        for end, shape in (("a", outer), ("b", inner))
    }


def peft_pair(infix: str, path: str) -> Tensors:
    return af.peft_tensors(af.factors(af.TOY_SD1, [path]), infix=f"{infix}.")


CASES: dict[str, tuple[Callable[[], Tensors], str, str]] = {
    "A14 alpha of two": (lambda: good() | {ALPHA: torch.ones(2)}, "alpha_bad_shape", STEM),
    "alpha bool": (lambda: good() | {ALPHA: torch.tensor(True)}, "alpha_bad_shape", STEM),
    "alpha inf": (lambda: good() | {ALPHA: torch.tensor(float("inf")).half()}, "alpha_non_finite", STEM),
    "alpha beyond float32": (
        lambda: good() | {ALPHA: torch.tensor(1e300, dtype=torch.float64)},
        "alpha_non_finite",
        KEY,
    ),
    "C2 without mid": (lambda: conv((4, 8), (8, 4, 1, 1)), "shape_mismatch", "conv1"),
    "C14 broken rank 1": (lambda: conv((9, 320, 1, 1), (1, 320, 1, 1)), "rank_mismatch", "320"),
    "C16 fused": (lambda: {DOWN: torch.ones(6, 24), UP: torch.ones(48, 2)}, "rank_mismatch", "rank 6"),
    "C4 one core of two": (
        lambda: loha("conv_in", (2, 4), (2, 8)) | {"lora_unet_conv_in.hada_t1": torch.ones(2, 2, 3, 3)},
        "incomplete_pair",
        "hada_t2",
    ),
    "LoHa without a factor": (
        lambda: {f"{STEM}.hada_w1_a": torch.ones(16, 1), f"{STEM}.hada_w1_b": torch.ones(1, 24)},
        "incomplete_pair",
        "hada_w2_a",
    ),
    "LoHa of two ranks in one pair": (
        lambda: loha(STEM[10:], (2, 24), (16, 3)),
        "rank_mismatch",
        "hada_w1_b",
    ),
    "LoHa of another width": (lambda: loha(STEM[10:], (2, 25), (16, 2)), "shape_mismatch", "hada_w1_b"),
    "LoKr whose sides make another shape": (
        lambda: {f"{STEM}.lokr_w1": torch.ones(2, 2), f"{STEM}.lokr_w2": torch.ones(8, 8)},
        "shape_mismatch",
        "[16, 24]",
    ),
    "LoKr with a side whole and in factors": (
        lambda: {f"{STEM}.{leaf}": torch.ones(2, 2) for leaf in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2")},
        "mixed_kinds",
        "lokr_w1_a",
    ),
    "LoKr with one side": (lambda: {f"{STEM}.lokr_w1": torch.ones(2, 2)}, "incomplete_pair", "lokr_w2"),
    "two kinds in one module": (
        lambda: good() | {f"{STEM}.diff": torch.ones(16, 24)},
        "mixed_kinds",
        "diff",
    ),
    "full difference of another shape": (
        lambda: {f"{STEM}.diff": torch.ones(16, 33)},
        "shape_mismatch",
        "diff",
    ),
    "bias of another width": (lambda: good() | {f"{STEM}.diff_b": torch.ones(15)}, "shape_mismatch", "diff_b"),
    "magnitudes of no axis": (
        lambda: good() | {f"{STEM}.dora_scale": torch.ones(1, 16)},
        "shape_mismatch",
        "dora_scale",
    ),
    "magnitudes twice": (
        lambda: good() | {f"{STEM}.dora_scale": torch.ones(16, 1), f"{STEM}.lora_magnitude_vector": torch.ones(16)},
        "shape_mismatch",
        "magnitude",
    ),
    "magnitudes of nothing": (lambda: {f"{STEM}.dora_scale": torch.ones(1, 24)}, "incomplete_pair", "dora_scale"),
    "factors of a normalisation": (
        lambda: {
            "lora_unet_conv_norm_out.lora_down.weight": torch.ones(1, 8),
            "lora_unet_conv_norm_out.lora_up.weight": torch.ones(8, 1),
        },
        "shape_mismatch",
        "conv_norm_out",
    ),
    "a normalisation's delta on a convolution": (
        lambda: {"lora_unet_conv_in.w_norm": torch.ones(8)},
        "shape_mismatch",
        "w_norm",
    ),
    "IA3": (
        lambda: {f"{STEM}.weight": torch.ones(16), f"{STEM}.on_input": torch.tensor(0)},
        "unsupported_kind:ia3",
        "on_input",
    ),
    "GLoRA": (lambda: {f"{STEM}.a1.weight": torch.ones(2, 24)}, "unsupported_kind:glora", "a1.weight"),
    "C12 oft_diag": (lambda: {f"{STEM}.oft_diag": torch.ones(2, 2, 2)}, "unsupported_kind:oft", "oft_diag"),
    "boft": (lambda: {f"{STEM}.oft_blocks": torch.ones(1, 2, 2, 2)}, "unsupported_kind:boft", "oft_blocks"),
    "a normalisation that the model lacks": (
        lambda: good() | {"lora_unet_x.w_norm": torch.ones(8)},
        "unknown_keys",
        "lora_unet_x",
    ),
    "set_weight": (
        lambda: good() | {f"{STEM}.set_weight": torch.ones(2)},
        "unsupported_kind:set_weight",
        "overwrite",
    ),
    "control lora": (
        lambda: {"lora_controlnet": torch.ones(1), "a.up": torch.ones(1)},
        "unsupported_kind:control_lora",
        "lora_controlnet",
    ),
    "checkpoint": (
        lambda: {"model.diffusion_model.out.0.weight": torch.ones(8)},
        "unsupported_kind:full_checkpoint",
        "whole model",
    ),
    "diffusers UNet": (
        lambda: {"down_blocks.0.resnets.0.conv1.weight": torch.ones(1)},
        "unsupported_kind:full_checkpoint",
        "whole model",
    ),
    "vae": (lambda: {"encoder.conv_in.weight": torch.ones(1)}, "unsupported_kind:vae", "VAE"),
    "an embedding beside a LoRA": (
        lambda: good() | {"<cat>": torch.ones(24)},
        "unsupported_kind:embedding",
        "file of its own",
    ),
    "only a counter": (
        lambda: {"text_model.embeddings.position_ids": torch.ones(77)},
        "family_unknown",
        "counters",
    ),
    "X8 XLabs": (
        lambda: {"double_blocks.0.processor.qkv_lora1.down.weight": torch.ones(1, 1)},
        "unsupported_family:flux",
        "double_blocks",
    ),
    "SD3": (
        lambda: {"lora_unet_joint_blocks_0_x_block_attn_qkv.alpha": torch.tensor(1.0)},
        "unsupported_family:sd3",
        "joint_blocks",
    ),
    "diffusers DiT": (
        lambda: {"transformer.x.lora_A.weight": torch.ones(1, 1)},
        "unsupported_family:dit",
        "transformer",
    ),
    "Cascade": (lambda: {"lora_prior_unet_x.alpha": torch.tensor(1.0)}, "unsupported_family:cascade", "prior"),
    "B10 Anima": (
        lambda: {
            "lora_unet_blocks_0_cross_attn_k_proj.lora_down.weight": torch.ones(1, 24),
            "lora_unet_blocks_0_cross_attn_k_proj.lora_up.weight": torch.ones(24, 1),
        },
        "family_unknown",
        "blocks_0_cross_attn",
    ),
    "N14 a foreign key": (lambda: good() | {"stray": torch.ones(1)}, "unknown_keys", "stray"),
    "a module that the model lacks": (
        lambda: good() | {n.replace("down_blocks_1", "down_blocks_7"): t for n, t in good().items()},
        "unknown_keys",
        "down_blocks_7",
    ),
    "two names, one module": (
        lambda: good() | {n.replace("down_blocks_1_attentions_0", "input_blocks_4_1"): t for n, t in good().items()},
        "duplicate_module",
        "to_k",
    ),
    "two leaves, one part": (
        lambda: good() | {f"{STEM}.lora_A.weight": torch.ones(2, 24)},
        "duplicate_module",
        "lora_A",
    ),
    "two PEFT adapters": (
        lambda: peft_pair("one", KEY) | peft_pair("two", f"{BLOCK}.attn2.to_v"),
        "multiple_adapters",
        "two",
    ),
    "integers": (
        lambda: good() | {DOWN: torch.ones(2, 24, dtype=torch.int32)},
        "unsupported_dtype",
        "I32",
    ),
    "rank 0": (lambda: {DOWN: torch.ones(0, 24), UP: torch.ones(16, 0)}, "rank_mismatch", "rank 0"),
    "rank 4097": (
        lambda: {DOWN: torch.ones(4097, 24).half(), UP: torch.ones(16, 4097).half()},
        "rank_too_large",
        "4097",
    ),
    "fp64 beyond float32": (
        lambda: good() | {UP: torch.full((16, 2), 1e300, dtype=torch.float64)},
        "non_finite",
        "lora_up",
    ),
    "B6 weights of the other encoder": (
        lambda: {
            name.replace("text_encoder_2", "text_encoder"): tensor
            for name, tensor in af.peft_tensors(
                af.factors(
                    known_layout("sdxl"),
                    ["text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj"],
                    rank=1,
                )
            ).items()
        },
        "shape_mismatch",
        "looks like text_encoder_2",
    ),
    "B4 without metadata": (
        lambda: af.kohya_tensors(
            af.factors(
                known_layout("sd1"),
                ["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"],
                rank=1,
            )
        ),
        "family_ambiguous",
        "sd1, sd2",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refusals(store: Store, tmp_path: Path, case: str) -> None:
    make, reason, said = CASES[case]
    file = af.write(tmp_path / "a.safetensors", make())
    with pytest.raises(Refused) as caught:
        store.publish(file, UploadSpec("x"))
    assert caught.value.reason == reason, str(caught.value)
    assert said in f"{caught.value} {caught.value.detail}"
    assert store.stats().blobs == 0
    assert not [path for path in (tmp_path / "store").rglob("*.part")]


def test_family_mismatch_names_both(store: Store, tmp_path: Path) -> None:
    """N12."""
    file = af.write(tmp_path / "a.safetensors", good())
    with pytest.raises(Refused) as caught:
        store.publish(file, UploadSpec("x", layout="toy_sd2"))
    assert caught.value.reason == "family_mismatch"
    assert caught.value.detail == {"expected": "toy_sd2", "got": "toy_sd1"}


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("not json", InvalidArgument),
        ("[" * 100_000, InvalidArgument),
        ("[]", InvalidArgument),
        ('{"lora_alpha": NaN}', InvalidArgument),
        ('{"lora_alpha": "8"}', InvalidArgument),
        ('{"lora_alpha": true}', InvalidArgument),
        ('{"alpha_pattern": {"(a+)+": 1}}', InvalidArgument),  # could backtrack for ever
        ('{"alpha_pattern": {"a.*b.*c.*d": 1}}', InvalidArgument),
        ('{"use_dora": "yes"}', InvalidArgument),
        ('{"peft_type": "IA3"}', Refused),
        ('{"init_lora_weights": "pissa"}', Refused),
        ('{"init_lora_weights": "PiSSA_niter_4"}', Refused),
        ('{"target_parameters": ["x"]}', Refused),
    ],
)
def test_configs_that_cannot_be_followed(store: Store, config: str, error: type[Exception]) -> None:
    """Said before any byte is taken."""
    with pytest.raises(error):
        store.begin_upload(UploadSpec("x", options=InterpretOptions(peft_config=config)))
    assert list(store._shelf.uploads.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"unet.lora_alpha": "x"}'])
def test_a_broken_config_in_the_file(store: Store, tmp_path: Path, text: str) -> None:
    tensors = af.peft_tensors(af.factors(af.TOY_SD1, [KEY]))
    file = af.write(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": text})
    with pytest.raises(Refused) as caught:
        store.publish(file, UploadSpec("x"))
    assert caught.value.reason == "adapter_config_invalid"


NAMES = ["", "../x", "a\0", "x" * 513, "😀", "__proto__", "constructor", "a\u202eb", "a\u200bb", "a\\..\\b", "e\u0301"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_hostile_names(store: Store, name: str) -> None:
    """H18."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    with pytest.raises(Refused) as caught, store.begin_upload(UploadSpec("x")) as upload:
        upload.write(af.raw_container({name: entry}, b"1234"))
        upload.commit()
    assert caught.value.reason == "name_illegal"


def test_names_that_are_one_after_normalisation(store: Store) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = {"\u00e9": entry, "e\u0301": entry | {"data_offsets": [4, 8]}}
    with pytest.raises(Refused) as caught, store.begin_upload(UploadSpec("x")) as upload:
        upload.write(af.raw_container(header, b"12345678"))
        upload.commit()
    assert caught.value.reason == "duplicate_key"


def test_accepted_oddities(store: Store, tmp_path: Path) -> None:
    """H10 and H12: misaligned floats, a space after the brace, a header padded with spaces."""
    import safetensors.torch

    raw = safetensors.torch.save(good())
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    padded = b"{ " + json.dumps(header).encode()[1:] + b" " * 13
    file = tmp_path / "odd.safetensors"
    file.write_bytes(af.raw_container(padded, raw[8 + size :]))
    assert store.publish(file, UploadSpec("x")).created


def test_network_file_systems_are_refused(tmp_path: Path) -> None:
    from loramux_store.disk import refuse_network
    from loramux_store.errors import UnsafeFilesystem

    mounts = tmp_path / "mountinfo"
    line = "1 0 0:1 / {} rw - {} x rw\n"
    mounts.write_text(line.format("/", "ext4") + line.format(tmp_path, "nfs4"))
    with pytest.raises(UnsafeFilesystem, match="nfs4"):
        refuse_network(tmp_path / "store", mounts)
    mounts.write_text(line.format("/", "nfs4") + line.format(tmp_path, "ext4"))
    refuse_network(tmp_path / "store", mounts)


def test_listing_imports_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, pathlib; from loramux_store import Store\n"
        f"with Store.open(pathlib.Path({str(tmp_path / 's')!r})) as s: s.list_adapters(5), s.stats()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
