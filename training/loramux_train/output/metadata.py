"""A run's facts as the metadata of safetensors files, all of it text.

Takes RunFacts; gives the keys that people's tools read: `ss_*` as kohya's sd-scripts write them, `modelspec.*` of the
Stability AI model metadata standard 1.0.0, and our own `loramux.*`. The same facts give the same text. Knows no
tensors.
"""

import json
from collections.abc import Mapping
from typing import Any

from loramux_store.layout import Layout
from loramux_train.output.facts import BaseFacts, DataFacts, NetworkFacts, PictureFolder, Progress, RunFacts

__all__ = ["architecture_of", "metadata_of"]

_TAG_BYTES = 1 << 20
"""Of the captions' tags: readers bound a header, and a caption may be a paragraph."""

_KOHYA_NAMES = {
    ("sd1", "epsilon"): "sd_v1",
    ("sd1", "v"): "sd_v1_v",
    ("sd2", "epsilon"): "sd_v2",
    ("sd2", "v"): "sd_v2_v",
    ("sdxl", "epsilon"): "sdxl_base_v1-0",
    ("sdxl", "v"): "sdxl_base_v1-0",
}


def metadata_of(facts: RunFacts, progress: Progress, layout: Layout, form: str) -> dict[str, str]:
    """Everything but what depends on the tensors. form: kohya, diffusers or peft."""
    found: dict[str, str] = {"format": "pt"}
    found |= {f"modelspec.{key}": value for key, value in _modelspec(facts, progress, form).items() if value}
    found |= {f"ss_{key}": _text(value) for key, value in _scripts(facts, progress, layout).items()}
    found |= {f"loramux.{key}": value for key, value in _own(facts, layout).items()}
    # a file name can hold halves of characters, which no header can
    return {key: value.encode("utf-8", "replace").decode() for key, value in found.items()}


def architecture_of(base: BaseFacts) -> str:
    """modelspec's word for a LoRA of this base, as sd-scripts write it."""
    second = "stable-diffusion-v2-768-v" if base.prediction == "v" else "stable-diffusion-v2-512"
    names = {"sd1": "stable-diffusion-v1", "sd2": second, "sdxl": "stable-diffusion-xl-v1-base"}
    return f"{names[base.family]}/lora"


def _modelspec(facts: RunFacts, progress: Progress, form: str) -> dict[str, str]:
    about, (width, height) = facts.about, facts.data.resolution
    original = facts.base.family == "sdxl" and form == "kohya"  # where the names are those of the original code
    return {
        "sai_model_spec": "1.0.0",
        "architecture": architecture_of(facts.base),
        "implementation": "https://github.com/Stability-AI/generative-models" if original else "diffusers",
        "title": about.title or about.name,
        "author": about.author,
        "date": progress.at.isoformat(timespec="seconds"),
        "description": about.description,
        "license": about.licence,
        "resolution": f"{width}x{height}",
        "prediction_type": facts.base.prediction,
        "trigger_phrase": about.trigger,
        "usage_hint": about.usage_hint,
        "tags": ", ".join(about.tags),
        "thumbnail": about.thumbnail,
    }


def _scripts(facts: RunFacts, progress: Progress, layout: Layout) -> dict[str, object]:
    base, network, optimiser, data = facts.base, facts.network, facts.optimiser, facts.data
    rates = [rate for rate in (optimiser.unet_rate, optimiser.text_rate) if rate is not None]
    found: dict[str, object] = {
        "network_module": "lycoris.kohya" if network.dora else "networks.lora",
        "network_dim": network.rank,
        "network_alpha": network.alpha,
        "network_args": _network_args(network),
        "network_dropout": network.dropout,
        "base_model_version": _base_version(base, layout),
        "v2": base.family == "sd2",
        "sd_model_name": base.name,
        "sd_model_hash": base.digest[:10],
        "new_sd_model_hash": base.digest,
        "output_name": facts.about.name,
        "session_id": facts.session,
        "training_comment": facts.software,
        "training_started_at": facts.started.timestamp(),
        "training_finished_at": progress.at.timestamp(),
        "steps": progress.step,
        "epoch": progress.epoch,
        "max_train_steps": optimiser.max_steps,
        "batch_size_per_device": optimiser.batch,
        "total_batch_size": optimiser.batch * optimiser.accumulation,
        "gradient_accumulation_steps": optimiser.accumulation,
        "gradient_checkpointing": optimiser.gradient_checkpointing,
        "learning_rate": max(rates, default=0.0),
        "unet_lr": optimiser.unet_rate,
        "text_encoder_lr": optimiser.text_rate,
        "optimizer": optimiser.name,
        "lr_scheduler": optimiser.scheduler,
        "lr_warmup_steps": optimiser.warmup,
        "min_snr_gamma": optimiser.min_snr_gamma,
        "noise_offset": optimiser.noise_offset,
        "prior_loss_weight": optimiser.prior_loss_weight,
        "caption_dropout_rate": optimiser.caption_dropout,
        "mixed_precision": optimiser.mixed_precision,
        "max_grad_norm": optimiser.max_grad_norm,
        "seed": optimiser.seed,
    }
    return found | _data(data, optimiser.max_steps, optimiser.accumulation)


def _data(data: DataFacts, max_steps: int, accumulation: int) -> dict[str, object]:
    taught = [folder for folder in data.folders if not folder.prior]
    prior = [folder for folder in data.folders if folder.prior]
    epochs = -(-max_steps * accumulation // data.batches_an_epoch) if data.batches_an_epoch else 0
    sizes = sorted(data.buckets.items()) if data.bucketed else ()
    buckets = {str(i): {"resolution": [*size], "count": n} for i, (size, n) in enumerate(sizes)}
    return {
        "num_train_images": sum(folder.pictures * folder.repeats for folder in taught),
        "num_reg_images": sum(folder.pictures * folder.repeats for folder in prior),
        "num_batches_per_epoch": data.batches_an_epoch,
        "num_epochs": epochs,
        "resolution": str(data.resolution),
        "enable_bucket": data.bucketed,
        "bucket_info": {"buckets": buckets} if buckets else None,
        "cache_latents": data.latents_cached,
        "dataset_dirs": _folders(taught),
        "reg_dataset_dirs": _folders(prior),
        "tag_frequency": _tags(data.folders),
    }


def _network_args(network: NetworkFacts) -> dict[str, object]:
    args: dict[str, object] = {}
    if network.conv_rank is not None:
        args |= {"conv_dim": str(network.conv_rank), "conv_alpha": str(network.conv_alpha)}
    return args | ({"algo": "lora", "dora_wd": "True"} if network.dora else {})


def _base_version(base: BaseFacts, layout: Layout) -> str:
    """sd-scripts' word where the shapes are the known ones, else the base's name: nobody should take it for SD1."""
    return _KOHYA_NAMES.get((layout.name, base.prediction), f"loramux_{base.name}")


def _folders(folders: list[PictureFolder]) -> dict[str, object]:
    return {folder.name: {"n_repeats": folder.repeats, "img_count": folder.pictures} for folder in folders}


def _tags(folders: tuple[PictureFolder, ...]) -> dict[str, dict[str, int]]:
    """The commonest first, as many as there is room for."""
    left, found = _TAG_BYTES, dict[str, dict[str, int]]()
    ordered = sorted((-n, folder.name, tag) for folder in folders for tag, n in folder.tags.items())
    for count, folder, tag in ordered:
        left -= len(json.dumps(tag)) + 24  # its count and punctuation
        if left < 0:
            break
        found.setdefault(folder, {})[tag] = -count
    return found


def _own(facts: RunFacts, layout: Layout) -> Mapping[str, str]:
    found = {
        "base_digest": facts.base.digest,
        "layout": layout.digest,
        "software": facts.software,
    }
    return found | ({"rslora": "true"} if facts.network.rslora else {})


def _text(value: Any) -> str:
    """As sd-scripts write it: Python's words for truth and for nothing, JSON for tables."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False) if isinstance(value, dict) else str(value)
