"""The same file in diffusers and PEFT, on a real tiny pipeline: the same delta on the same module.

Their faults named in formats.md are kept out: no conv_in (blind `_` to `.`), one rank a file where
no alpha is stored.
"""

import re
from pathlib import Path

import adapter_files as af
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from tiny_pipeline import layout_of, path_of, peer_deltas, tiny_pipeline
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


@pytest.mark.parametrize("form", ["kohya", "kohya of diffusers", "diffusers", "peft", "peft with metadata"])
def test_the_same_deltas_as_diffusers(
    store: Store, tmp_path: Path, pipeline: StableDiffusionPipeline, form: str
) -> None:
    layout = layout_of(pipeline)
    store.register_layout(layout)
    kohya = form == "kohya"
    paths = _chosen(layout)
    if form.startswith("kohya"):  # diffusers 0.42.1 makes `self_attn.to_q_lora` of these, and drops it without a word
        paths = [path for path in paths if "self_attn" not in path]
    if form == "diffusers":  # its loader of this generation takes no convolution
        paths = [path for path in paths if layout.modules[path].kind == "linear"]
    made = af.factors(layout, paths, rank=None if kohya else 3, alpha=2.0 if kohya else None)
    metadata = {"format": "pt"}
    if form == "peft with metadata":
        metadata["lora_adapter_metadata"] = _metadata(made)
    write = {"kohya": af.kohya_tensors, "diffusers": af.diffusers_tensors}.get(form, af.peft_tensors)
    tensors = write(made)
    if form == "kohya of diffusers":  # its name of a text encoder is that of the first of two
        tensors = convert_state_dict_to_kohya(af.peft_tensors(made))
        assert any(name.startswith("lora_te1_") for name in tensors)
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


SAVED: dict[str, dict[str, object]] = {
    "alpha": {},
    "rsLoRA": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"attn2.to_k": 2, r".*up_blocks.*to_q": 3, "layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {r"mid_block.*": 5, "to_k": 1, "fc2": 3, "^encoder.layers.0.self_attn.q_proj": 7},
    },
    "magnitudes": {"use_dora": True},
}
ATTENTION = (".to_q", ".to_k", ".to_out.0", ".q_proj")


@pytest.mark.parametrize("said", SAVED)
@pytest.mark.parametrize("targets", [ATTENTION, (*ATTENTION, "ff.net.2", ".conv1", ".fc2")], ids=["attention", "more"])
def test_the_same_weights_as_diffusers_of_what_it_saves(
    store: Store, tmp_path: Path, pipeline: StableDiffusionPipeline, said: str, targets: tuple[str, ...]
) -> None:
    """Its own names, which are attention's alone, beside PEFT's, with the configuration in the metadata."""
    layout = layout_of(pipeline)
    store.register_layout(layout)
    file = _saved(tmp_path, pipeline, targets, SAVED[said])
    published = store.publish(file, UploadSpec("a", layout="tiny"))
    assert published.version is not None
    assert published.report.family == ("diffusers" if targets == ATTENTION else "diffusers+peft")
    assert published.report.warnings == ()
    _, ours = af.compiled_parts(store.compiled(published.version))
    deltas = af.compiled_delta(store.compiled(published.version), layout)

    loading = tiny_pipeline()
    loading.load_lora_weights(str(tmp_path), weight_name=file.name)
    theirs = merged(loading)
    assert set(theirs) == set(ours) == {path for path in layout.modules if path.endswith(targets)}
    for path, (before, after) in theirs.items():
        weight = before + deltas[path]
        if (magnitudes := ours[path].get("m")) is not None:
            norms = weight.flatten(1).norm(dim=1)
            weight = weight * (magnitudes / norms).reshape(-1, *(1,) * (weight.dim() - 1))
        error = (weight - after).norm() / (after - before).norm()
        assert error < PEER, f"{path}: {error:.1e}"


def test_the_same_deltas_as_diffusers_of_a_model_saved_by_itself(
    store: Store, tmp_path: Path, pipeline: StableDiffusionPipeline
) -> None:
    """PEFT's names without component, and a configuration without it too."""
    from peft import LoraConfig

    layout = layout_of(pipeline)
    store.register_layout(layout)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "conv1"], init_lora_weights=False, use_rslora=True)
    pipeline.unet.add_adapter(config)
    pipeline.unet.save_lora_adapter(tmp_path)
    published = store.publish(tmp_path / "pytorch_lora_weights.safetensors", UploadSpec("a", layout="tiny"))
    assert published.version is not None and published.report.warnings == ()
    ours = af.compiled_delta(store.compiled(published.version), layout)

    loading = tiny_pipeline()
    loading.unet.load_lora_adapter(str(tmp_path), prefix=None, weight_name="pytorch_lora_weights.safetensors")
    theirs = peer_deltas(loading)
    assert set(theirs) == set(ours)
    for path, delta in theirs.items():
        assert (ours[path] - delta.double()).norm() / delta.norm() < PEER, path


def _saved(folder: Path, pipeline: StableDiffusionPipeline, targets: tuple[str, ...], said: dict[str, object]) -> Path:
    """What diffusers' training scripts do at the end; alpha is not the rank."""
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    layers: dict[str, object] = {}
    for component in ("unet", "text_encoder"):
        model = getattr(pipeline, component)
        names = [name for name, _ in model.named_modules() if name.endswith(targets)]
        mine = {field: _matching(value, names) for field, value in said.items()}
        config = LoraConfig(r=4, lora_alpha=16, target_modules=names, init_lora_weights=False, **mine)  # type: ignore[arg-type]
        inject_adapter_in_model(config, model)
        for name, parameter in model.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.data *= 1 + torch.rand(parameter.shape)
        state = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
        if component == "text_encoder":  # transformers passes over magnitudes without it
            state = {f"{name}.weight" if name.endswith("_vector") else name: each for name, each in state.items()}
        layers |= {f"{component}_lora_layers": state, f"{component}_lora_adapter_metadata": config.to_dict()}
    StableDiffusionPipeline.save_lora_weights(folder, **layers)  # type: ignore[arg-type]
    return folder / "pytorch_lora_weights.safetensors"


def _matching(value: object, names: list[str]) -> object:
    """A field of a configuration, without the patterns of another model: PEFT warns of them."""
    if not isinstance(value, dict):
        return value
    return {key: each for key, each in value.items() if any(re.match(rf"(.*\.)?({key})$", name) for name in names)}


def merged(pipeline: StableDiffusionPipeline) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The weight of each adapted module before and after the adapter was merged into it."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for component in ("unet", "text_encoder"):
        for name, module in getattr(pipeline, component).named_modules():
            if hasattr(module, "get_delta_weight"):
                before = module.base_layer.weight.detach().double()
                module.merge()
                found[path_of(component, name)] = before, module.base_layer.weight.detach().double()
    return found


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
