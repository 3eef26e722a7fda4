"""What people have, by name, in fp16 and on the shapes of Stable Diffusion 1.5: accepted, and exact."""

from pathlib import Path

import adapter_files as af
import adapter_kinds as kinds
import pytest
import torch
from lycoris.functional import factorization

from loramux_store import Store, UploadSpec, known_layout
from loramux_store.formats import operation
from loramux_store.record import VersionRecord

# Factors made of factors are rounded to float32 once: half an ulp, 6e-8, for each of a few.
ROUNDED = 6e-7

BLOCK = "unet.down_blocks.{}.attentions.0.transformer_blocks.0.{}"
ATTENTION = [BLOCK.format(0, f"attn{at}.{name}") for at in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")]
PATHS = [
    BLOCK.format(0, "attn1.to_q"),  # [320, 320]
    BLOCK.format(1, "attn2.to_k"),  # [640, 768]
    BLOCK.format(0, "ff.net.0.proj"),  # [2560, 320]
    "unet.down_blocks.0.attentions.0.proj_in",  # [320, 320, 1, 1]
    "unet.down_blocks.0.resnets.0.conv1",  # [320, 320, 3, 3]
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",  # [768, 768]
]


def lokr(factor: int, rank: int | None = None) -> kinds.Make:
    """LyCORIS' factors of a shape; the second side whole or of a rank."""

    def make(shape: tuple[int, ...], generator: torch.Generator) -> kinds.Sample:
        first = factorization(shape[0], factor)[0], factorization(shape[1], factor)[0]
        return kinds.lokr(first, None, rank, None if rank is None else 1.0)(shape, generator)

    return make


HAVE: dict[str, tuple[kinds.Make, list[str], str]] = {
    "LoKr of factor 8, second side whole": (lokr(8), PATHS, "kronecker"),
    "LoKr of factor 16, second side whole": (lokr(16), PATHS, "kronecker"),
    "LoKr of factor 8, second side of rank 4": (lokr(8, 4), PATHS, "rows"),
    "LoHa of dimension 8": (kinds.loha(8, 4.0), PATHS, "rows"),
    "LoHa of dimension 32": (kinds.loha(32, 1.0), PATHS, "hadamard"),
    "full differences of attention": (kinds.full, ATTENTION, "dense+bias"),
    "LoRA of rank 128": (kinds.lora(128, 64.0), PATHS, "rows"),
    "DoRA of rank 16, outputs": (kinds.decomposed(kinds.lora(16, 8.0), "output"), PATHS, "rows"),
    "DoRA of rank 16, inputs": (kinds.decomposed(kinds.lora(16, 8.0), "input"), PATHS, "rows"),
    "DoRA over LoKr of factor 8": (kinds.decomposed(lokr(8), "input"), PATHS, "kronecker"),
    "DoRA over LoHa of dimension 8": (kinds.decomposed(kinds.loha(8, 4.0), "output"), PATHS, "rows"),
}


@pytest.mark.parametrize("name", HAVE)
def test_what_people_have(store: Store, tmp_path: Path, name: str) -> None:
    make, paths, applied = HAVE[name]
    layout = known_layout("sd1")
    generator = torch.Generator().manual_seed(1)
    made = {path: make(layout.modules[path].shape, generator) for path in paths}
    tensors = {key: t.half() for path, each in made.items() for key, t in kinds.stem_tensors(path, each).items()}
    published = store.publish(af.write(tmp_path / "a.safetensors", tensors), UploadSpec("a"))
    report, version = published.report, published.version
    assert version is not None and report.layout_name == "sd1" and not report.ignored
    assert not [warning for warning in report.warnings if not warning.startswith("alpha_assumed")]
    assert {module.operation for module in report.matched} == {applied}
    deltas = af.compiled_delta(store.compiled(version), layout)
    _, parts = af.compiled_parts(store.compiled(version))
    assert deltas.keys() == made.keys()
    for path, sample in made.items():
        assert sample.delta.norm() > 0
        assert (deltas[path] - sample.delta).norm() <= ROUNDED * sample.delta.norm(), path
        for part, wanted in (("m", sample.magnitude), ("bias", sample.bias)):
            assert (part in parts[path]) == (wanted is not None)
            assert wanted is None or torch.equal(parts[path][part], wanted)
    assert {module.module: module.axis for module in report.matched} == {p: s.axis for p, s in made.items()}


def test_a_version_stays_what_its_record_says(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a release that made 81 rank rows of a LoHa of dimension 9: its file, made again, is what catalog and engine
    go by, and so is that of the same bytes pushed today. Other bytes are a side operation."""
    path, layout = PATHS[0], known_layout("sd1")

    def publish(name: str, seed: int) -> tuple[VersionRecord, kinds.Sample]:
        sample = kinds.loha(9, 3.0)(layout.modules[path].shape, torch.Generator().manual_seed(seed))
        file = af.write(tmp_path / "a.safetensors", kinds.stem_tensors(path, sample))
        version = store.publish(file, UploadSpec(name, layout="sd1")).version
        assert version is not None
        return version, sample

    with monkeypatch.context() as before:
        before.setattr(operation, "MAX_CHEAP", operation.MAX_ROWS)
        old, sample = publish("a", 1)
    whole = store.compiled(old).read_bytes()
    again, other = publish("b", 1), publish("c", 2)
    assert (old.rank, again[0].rank, other[0].rank) == (81, 81, 0)
    for spoiled in (whole, b"", whole[: len(whole) // 2]):
        store.compiled(old).write_bytes(spoiled)
        assert store.resolve("a").ranks == {path: 81}
        assert store.compiled(old).read_bytes() == store.compiled(again[0]).read_bytes() == whole
    assert not store.fsck(full=True)
    for version, made in ((old, sample), again, other):
        delta = af.compiled_delta(store.compiled(version), layout)[path]
        assert (delta - made.delta).norm() <= ROUNDED * made.delta.norm()
