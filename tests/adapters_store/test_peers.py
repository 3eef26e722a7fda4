"""The same file in diffusers and PEFT, on a real tiny pipeline: the same delta on the same module.

Their faults named in formats.md are kept out: no conv_in (blind `_` to `.`), one rank a file where
no alpha is stored.
"""

from pathlib import Path

import adapter_files as af
import pytest
from diffusers import StableDiffusionPipeline
from tiny_pipeline import layout_of, peer_deltas, tiny_pipeline
from transformers import CLIPTextModel

from loramux_store import InterpretOptions, Layout, Store, UploadSpec

# Theirs is the difference of two float32 forwards: the peer multiplies in float32.
PEER = 3e-6


@pytest.fixture
def pipeline() -> StableDiffusionPipeline:
    return tiny_pipeline()


def _chosen(layout: Layout) -> list[str]:
    wanted = (".to_q", ".to_k", ".to_v", ".to_out.0", "ff.net.0.proj", "proj_in", ".conv1", "q_proj", "fc2")
    return [path for path in layout.modules if path.endswith(wanted)]


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft", "peft with metadata"])
def test_the_same_deltas_as_diffusers(
    store: Store, tmp_path: Path, pipeline: StableDiffusionPipeline, form: str
) -> None:
    layout = layout_of(pipeline)
    store.register_layout(layout)
    kohya = form == "kohya"
    paths = _chosen(layout)
    if kohya:  # diffusers 0.42.1 makes `self_attn.to_q_lora` of these, and drops it without a word
        paths = [path for path in paths if "self_attn" not in path]
    if form == "diffusers":  # its loader of this generation takes no convolution
        paths = [path for path in paths if layout.modules[path].kind == "linear"]
    made = af.factors(layout, paths, rank=None if kohya else 3, alpha=2.0 if kohya else None)
    metadata = {"format": "pt"}
    if form == "peft with metadata":
        metadata["lora_adapter_metadata"] = _metadata(made)
    write = {"kohya": af.kohya_tensors, "diffusers": af.diffusers_tensors}.get(form, af.peft_tensors)
    tensors = write(made)
    file = af.write(tmp_path / "a.safetensors", tensors, metadata)
    published = store.publish(file, UploadSpec("a", layout="tiny"))
    assert published.version is not None
    ours = af.compiled_delta(store.compiled(published.version), layout)

    pipeline.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name="a")
    theirs = peer_deltas(pipeline)
    assert set(theirs) == set(ours) == set(paths)
    for path, delta in theirs.items():
        error = (ours[path] - delta.double()).norm() / delta.norm()
        assert error < PEER, f"{path}: {error:.1e}"


def _metadata(made: dict[str, af.Factors]) -> str:
    import json

    body: dict[str, object] = {}
    for component in ("unet", "text_encoder"):
        names = [path.partition(".")[2] for path in made if path.startswith(f"{component}.")]
        body |= {
            f"{component}.r": 3,
            f"{component}.lora_alpha": 6,
            f"{component}.use_rslora": component == "unet",
            f"{component}.target_modules": names,
            f"{component}.alpha_pattern": {"^" + names[0]: 9},
            f"{component}.peft_type": "LORA",
        }
    if not hasattr(CLIPTextModel, "text_model"):
        # this transformers builds no text_model, and PEFT matches the names it builds
        return json.dumps(body).replace("text_model.", "")
    return json.dumps(body)


def test_the_same_deltas_as_peft(store: Store, tmp_path: Path, pipeline: StableDiffusionPipeline) -> None:
    """A folder that PEFT itself wrote: its config as an option, ranks and alphas by pattern."""
    from peft import LoraConfig, get_peft_model

    layout = layout_of(pipeline)
    store.register_layout(layout)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["to_q", "to_k", "to_out.0", "conv1"],
        rank_pattern={"attn2.to_k": 2, r".*up_blocks.*to_q": 3},
        alpha_pattern={r"down_blocks\.\d+\..*conv1": 5, "to_k": 1},
        init_lora_weights=False,
    )
    wrapped = get_peft_model(pipeline.unet, config)
    wrapped.save_pretrained(str(tmp_path / "peft"))
    published = store.publish(
        tmp_path / "peft" / "adapter_model.safetensors",
        UploadSpec("a", options=InterpretOptions((tmp_path / "peft" / "adapter_config.json").read_text())),
    )
    assert published.version is not None
    assert published.report.warnings == ()
    ours = af.compiled_delta(store.compiled(published.version), layout)
    theirs = {
        f"unet.{name}": module.get_delta_weight("default").detach()
        for name, module in wrapped.base_model.model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert set(ours) == set(theirs)
    for path, delta in theirs.items():
        assert (ours[path] - delta.double()).norm() / delta.norm() < PEER, path


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "LoKr of factors"])
def test_the_same_deltas_as_pefts_loha_and_lokr(
    store: Store, tmp_path: Path, pipeline: StableDiffusionPipeline, kind: str
) -> None:
    """Linear layers and convolutions, the latter with a core; alpha is in the config only."""
    from peft import LoHaConfig, LoKrConfig, get_peft_model

    layout = layout_of(pipeline)
    store.register_layout(layout)
    shared = {"target_modules": ["to_q", "to_k", "proj_in", "conv1"], "init_weights": False, "r": 2, "alpha": 3}
    if kind == "LoHa":
        config = LoHaConfig(**shared, use_effective_conv2d=True, alpha_pattern={"to_k": 5})
    else:
        config = LoKrConfig(**shared, use_effective_conv2d=True, decompose_both=kind != "LoKr", decompose_factor=4)
    wrapped = get_peft_model(pipeline.unet, config)
    wrapped.save_pretrained(str(tmp_path / "peft"))
    published = store.publish(
        tmp_path / "peft" / "adapter_model.safetensors",
        UploadSpec("a", options=InterpretOptions((tmp_path / "peft" / "adapter_config.json").read_text())),
    )
    assert published.version is not None
    ours = af.compiled_delta(store.compiled(published.version), layout)
    theirs = {
        f"unet.{name}": module.get_delta_weight("default").detach()
        for name, module in wrapped.base_model.model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert set(ours) == set(theirs)
    for path, delta in theirs.items():
        wanted = delta.double().reshape(layout.modules[path].shape)
        assert (ours[path] - wanted).norm() / wanted.norm() < PEER, path
