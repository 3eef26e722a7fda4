"""`loramux adapters check|export|merge|fsck|gc`, as typed."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_bases import write_tiny_sdxl

from loramux_client import cli
from loramux_server.app import BUILTIN_FOLDER
from loramux_server.engine.base_layout import read_layout
from loramux_server.engine.load_base import load_base
from loramux_server.engine.lora_layers import wrap
from loramux_server.errors import BadBase
from loramux_store import Layout, Store, UploadSpec, known_layout

STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k"


def write_lora(file: Path, width: int = 1280, rank: int = 2) -> Path:
    generator = torch.Generator().manual_seed(rank)
    factors = {
        "down": torch.randn(rank, width, generator=generator),
        "up": torch.randn(width, rank, generator=generator),
    }
    safetensors.torch.save_file({f"{STEM}.lora_{name}.weight": t for name, t in factors.items()}, file)
    return file


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    with Store.open(root) as store:
        for rank, name in enumerate(("ink", "moss"), 2):
            file = write_lora(tmp_path / f"{name}.safetensors", rank=rank)
            store.publish(file, UploadSpec(name, layout="sd1"))
    return root


def run(*words: object) -> int:
    return cli.main(["adapters", *map(str, words)])


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_check_says_what_lies_beside_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lora(tmp_path / "a.safetensors")
    (tmp_path / "a.civitai.info").write_text("[]")
    (tmp_path / "a.json").write_text('{"activation text": "inky", "preferred weight": 0.7}')
    assert run("check", file, "--family", "sd1") == 0
    shown = capsys.readouterr()
    assert "trigger words of a.json: inky" in shown.out and "default weight of a.json: 0.7" in shown.out
    assert "warning: a.civitai.info: no JSON object: not used" in shown.err
    assert run("check", file, "--family", "sd1", "--json") == 0
    beside = told(capsys)["beside"]
    assert (beside["trigger_words"], beside["default_weight"], beside["description"]) == (["inky"], 0.7, "")
    assert beside["sources"] == {"trigger_words": "a.json", "default_weight": "a.json"}
    assert beside["warnings"] == ["a.civitai.info: no JSON object: not used"]
    assert run("check", file, "--family", "sd1", "--kind", "embedding", "--json") == 3
    assert "beside" not in told(capsys)


def test_check_tells_what_is_bundled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lora(tmp_path / "a.safetensors")
    safetensors.torch.save_file(
        safetensors.torch.load_file(file) | {"bundle_emb.a cat.emb_params": torch.zeros(2, 768)}, file
    )
    assert run("check", file, "--json") == 3  # its layout is open
    assert told(capsys)["reason"] == "family_ambiguous"
    assert run("check", file, "--family", "sd1", "--json") == 0
    body = told(capsys)
    assert body["embeddings"] == [{"trigger": "a cat", "vectors": 2, "widths": {"text_encoder": 768}}]
    assert body["warnings"] == ["zero_vectors"] and body["messages"] == ["every vector is zero of 'a cat'"]
    assert run("check", file, "--family", "sd1") == 0
    shown = capsys.readouterr()
    assert "embedding of 2 vectors; acts where 'a cat' stands; bundled with it" in shown.out
    assert "warning: zero_vectors: every vector is zero of 'a cat'" in shown.err


def test_check_prints_a_verdict_and_exits_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lora(tmp_path / "a.safetensors")
    assert run("check", file, "--family", "sd1", "--json") == 0
    body = told(capsys)
    assert list(body) == [
        "verdict", "reason", "key", "family", "evidence", "modules", "kinds", "ranks", "warnings", "ignored",
    ]  # fmt: skip
    assert (body["verdict"], body["family"], body["modules"], body["kinds"]) == ("accepted", "sd1", 1, ["lora"])
    assert (body["ranks"], body["warnings"], body["ignored"]) == ([2], [], [])
    assert run("check", file, "--family", "sd1", "--kind", "embedding", "--json") == 3
    assert told(capsys)["reason"] == "kind_mismatch"
    assert run("check", file) == 3  # SD1 and SD2 have such a module
    assert "family_ambiguous" in capsys.readouterr().out
    config = tmp_path / "adapter_config.json"
    config.write_text("[]")
    assert run("check", file, "--family", "sd1", "--adapter-config", config) == 3
    assert run("check", tmp_path / "none") == 1
    assert run("check", file, "--family", "sd3") == 2
    assert run("check", file, "--family", "sd1", "--base", "builtin") == 1


def test_check_knows_the_built_in_base(capsys: pytest.CaptureFixture[str]) -> None:
    """Without being told of it, like a server."""
    assert read_layout(BUILTIN_FOLDER / "base", "it").name == "builtin"
    for file in (BUILTIN_FOLDER / "adapters").glob("*.safetensors"):
        assert run("check", file, "--json") == 0
        assert told(capsys)["family"] == "builtin"


def test_check_against_a_base_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_tiny_sdxl(tmp_path / "tiny")
    layout = read_layout(base, "tiny")
    width = layout.modules["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"].shape[0]
    assert run("check", write_lora(tmp_path / "a.safetensors", width), "--base", base, "--json") == 0
    assert told(capsys)["family"] == "tiny"
    assert run("check", write_lora(tmp_path / "b.safetensors"), "--base", base, "--json") == 3
    assert told(capsys)["reason"] == "shape_mismatch"
    assert run("check", tmp_path / "a.safetensors", "--base", tmp_path / "a.safetensors") == 1
    assert "a folder in diffusers layout" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny", "builtin"])
def test_a_layout_read_without_weights_is_that_of_the_loaded_base(tmp_path: Path, name: str) -> None:
    """Under its known name where it has one."""
    folder = tmp_path / "tiny"
    if name == "tiny":
        write_tiny_sdxl(folder)
    else:
        shutil.copytree(BUILTIN_FOLDER / "base", folder)
    found = read_layout(folder, "tiny")
    groups = wrap(load_base(folder, "tiny", torch.device("cpu")).models).values()
    assert found == Layout(name, {path: layer.spec for group in groups for path, layer in group.layers.items()})
    assert known_layout("sd1").digest != found.digest
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(BadBase, match=r"text_encoder/config\.json"):
        read_layout(folder, "tiny")


def test_export_and_merge_write_files_that_check_takes(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, both = tmp_path / "out.safetensors", tmp_path / "both.safetensors"
    assert run("export", "ink@1", "-o", out, "--store", shelf) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert run("merge", "ink=0.5", "moss=-2", "-o", both, "--store", shelf) == 0
    capsys.readouterr()
    for file, rank in ((out, 2), (both, 5)):  # what they say of themselves tells SD1 from SD2
        assert run("check", file, "--json") == 0
        body = told(capsys)
        assert (body["family"], body["ranks"]) == ("sd1", [rank])
    tensors = safetensors.torch.load_file(both)
    delta = tensors[f"{STEM}.lora_up.weight"] @ tensors[f"{STEM}.lora_down.weight"]
    parts = [safetensors.torch.load_file(tmp_path / f"{name}.safetensors") for name in ("ink", "moss")]
    ink, moss = (part[f"{STEM}.lora_up.weight"] @ part[f"{STEM}.lora_down.weight"] for part in parts)
    assert torch.allclose(delta, 0.5 * ink - 2 * moss, rtol=0, atol=1e-5 * float(delta.abs().max()))


def test_what_cannot_be_written_is_one_line(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"mine")
    cases = [
        ("export", "nope", "-o", tmp_path / "a"),
        ("export", "ink", "-o", there),
        ("merge", "ink", "-o", tmp_path / "a"),
        ("merge", "-o", tmp_path / "a"),
        ("merge", "ink=1", "moss=1", "-o", tmp_path / "a", "--method", "linear"),
        ("merge", "ink=1", "-o", tmp_path / "a", "--method", "ties"),
    ]
    for words in cases:
        assert run(*words, "--store", shelf) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("loramux: ")
    assert there.read_bytes() == b"mine" and not (tmp_path / "a").exists()


def test_methods_of_pefts_say_what_they_need(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name == "peft" or name.startswith("peft.")]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "peft":
                raise ModuleNotFoundError("No module named 'peft'", name="peft")

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert run("merge", "ink=1", "-o", tmp_path / "a", "--method", "linear", "--store", shelf) == 1
    assert "pip install 'loramux[train]'" in capsys.readouterr().err
    assert run("merge", "ink=1", "-o", tmp_path / "a", "--store", shelf) == 0


def test_fsck_exits_by_what_is_left(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fsck", "--store", shelf) == 0
    assert capsys.readouterr().out == "all is well\n"
    compiled = min((shelf / "compiled").rglob("*.safetensors"))
    compiled.unlink()
    assert run("fsck", "--store", shelf, "--json") == 4
    (finding,) = told(capsys)
    assert (finding["code"], finding["lost"], finding["mended"]) == ("compiled_missing", False, False)
    assert run("fsck", "--repair", "--store", shelf) == 0
    assert compiled.exists() and "(mended)" in capsys.readouterr().out
    blob = min(path for path in (shelf / "blobs").rglob("*") if path.is_file())
    blob.unlink()
    assert run("fsck", "--full", "--repair", "--store", shelf) == 5
    assert "(lost)" in capsys.readouterr().out


def test_gc_tells_then_takes(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(shelf) as store:
        store.delete_adapter("moss")
    assert run("gc", "--dry-run", "--json", "--store", shelf) == 0
    assert told(capsys) == {"adapters": [], "files": [], "bytes": 0, "dry_run": True}
    assert run("gc", "--dry-run", "--grace-days", "0", "--json", "--store", shelf) == 0
    body = told(capsys)
    assert body["adapters"] == ["moss"] and len(body["files"]) == 2
    assert body["bytes"] == sum((shelf / path).stat().st_size for path, _ in body["files"]) > 0
    assert run("gc", "--grace-days", "0", "--store", shelf) == 0
    assert "1 adapters, 2 files" in capsys.readouterr().out
    assert not any((shelf / path).exists() for path, _ in body["files"])


@pytest.mark.parametrize("command", [["export", "a", "-o", "b"], ["merge", "a=1", "-o", "b"], ["fsck"], ["gc"]])
def test_no_store_is_made_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert run(*command, "--store", tmp_path / "none") == 1
    assert "expected a folder with a catalog.sqlite3" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
