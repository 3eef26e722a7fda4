"""The offline verdict says what an upload would."""

import json
from pathlib import Path

import adapter_files as af
import adapter_kinds as kinds
import pytest
import torch
from safetensors.torch import load_file

from loramux_store import InterpretOptions, Store, UploadSpec, known_layout
from loramux_store.errors import Refused
from loramux_store.layout import known_layouts
from loramux_store.verdict import judge

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
PLAIN = InterpretOptions()


def lora(folder: Path, layout: str = "sd1", **tensors: torch.Tensor) -> Path:
    made = af.factors(known_layout(layout), [PATH], rank=3, alpha=2.0)
    return af.write(folder / "a.safetensors", af.kohya_tensors(made) | tensors)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_what_is_accepted_is_described(tmp_path: Path, family: str) -> None:
    file = lora(tmp_path, family, **{"x.position_ids": torch.zeros(1)})
    verdict = judge(file, PLAIN, known_layouts())
    assert (verdict.verdict, verdict.reason, verdict.key, verdict.family) == ("accepted", None, None, family)
    assert (verdict.modules, verdict.kinds, verdict.ranks) == (1, ("lora",), (3,))
    assert verdict.warnings == ("ignored",) and verdict.ignored == ("x.position_ids",)
    assert verdict.evidence[0].endswith(f"fit {family} by name and shape")


def test_what_is_refused_is_refused_for_the_reason_of_an_upload(tmp_path: Path) -> None:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k"
    cases = {
        "shape": af.kohya_tensors(af.factors(af.TOY_SD1, [PATH])),
        "pair": {f"{stem}.lora_down.weight": torch.ones(2, 1280)},
        "values": {f"{stem}.lora_down.weight": torch.full((2, 1280), torch.nan)},
        "flux": {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.ones(2, 8)},
    }
    cases["values"][f"{stem}.lora_up.weight"] = torch.ones(1280, 2)
    seen: set[str | None] = set()
    for name, tensors in cases.items():
        file = af.write(tmp_path / f"{name}.safetensors", tensors)
        with Store.open(tmp_path / "store") as store, pytest.raises(Refused) as refused:
            store.publish(file, UploadSpec("a", layout="sd1"))
        verdict = judge(file, PLAIN, known_layouts(), known_layout("sd1"))
        assert (verdict.verdict, verdict.reason) == ("refused", refused.value.reason)
        assert verdict.key == refused.value.detail["key"]
        assert verdict.evidence == (str(refused.value),)
        seen.add(verdict.reason)
    assert len(seen) == len(cases)
    assert judge(tmp_path / "flux.safetensors", PLAIN, known_layouts()).family == "flux"


def test_family_and_kind_are_held_against_the_file(tmp_path: Path) -> None:
    file = lora(tmp_path)
    assert judge(file, PLAIN, known_layouts(), known_layout("sdxl")).reason == "family_mismatch"
    assert judge(file, PLAIN, known_layouts(), known_layout("sd1"), "lora").verdict == "accepted"
    other = judge(file, PLAIN, known_layouts(), kind="embedding")
    assert other.reason == "kind_mismatch" and other.key in load_file(file)
    embedding = af.write(tmp_path / "cat.safetensors", {"emb_params": torch.randn(2, 768)})
    found = judge(embedding, PLAIN, known_layouts(), kind="embedding")
    assert (found.verdict, found.kinds, found.modules) == ("accepted", ("embedding",), 0)
    assert judge(embedding, PLAIN, known_layouts(), kind="lora").reason == "kind_mismatch"


def test_only_the_layouts_given_count(tmp_path: Path) -> None:
    toy = af.write(tmp_path / "toy.safetensors", af.kohya_tensors(af.factors(af.TOY_SD1)))
    assert judge(toy, PLAIN, [af.TOY_SD1], af.TOY_SD1).family == "toy_sd1"
    assert judge(toy, PLAIN, known_layouts()).reason == "shape_mismatch"


def test_a_peft_config_is_read_and_a_bad_one_is_told(tmp_path: Path) -> None:
    file = af.write(tmp_path / "a.safetensors", af.peft_tensors(af.factors(known_layout("sd1"), [PATH], rank=3)))
    assert judge(file, PLAIN, known_layouts()).warnings == ("alpha_assumed",)
    good = InterpretOptions(peft_config=json.dumps({"r": 3, "lora_alpha": 6}))
    assert judge(file, good, known_layouts()).warnings == ()
    bad = judge(file, InterpretOptions(peft_config="{"), known_layouts())
    assert (bad.reason, bad.key) == ("invalid_argument", "options.peft_config")
    oft = judge(file, InterpretOptions(peft_config='{"peft_type": "OFT"}'), known_layouts())
    assert oft.reason == "unsupported_kind:oft"


def test_every_kind_is_named(tmp_path: Path) -> None:
    layout = known_layout("sd1")
    made = {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k": kinds.lokr((8, 8), None, None),
        PATH: kinds.loha(2, 1.0),
    }
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for path, make in made.items():
        tensors |= kinds.stem_tensors(path, make(layout.modules[path].shape, generator))
    verdict = judge(af.write(tmp_path / "a.safetensors", tensors), PLAIN, [layout])
    assert verdict.kinds == ("loha", "lokr") and 4 in verdict.ranks
