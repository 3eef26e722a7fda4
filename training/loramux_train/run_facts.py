"""What a run says of itself, in its adapter's file and in its report.

Takes settings, the outlook and the data set; gives RunFacts. The same run has the same facts, but for the time it
began. Writes nothing.
"""

import hashlib
import json
import math
from collections import Counter
from datetime import datetime
from importlib.metadata import version
from typing import Any

from PIL import Image

from loramux_train import base
from loramux_train.config import Config
from loramux_train.data_set import DataSet
from loramux_train.errors import BadSetting
from loramux_train.outlook import Outlook
from loramux_train.output.data_uri import data_uri
from loramux_train.output.facts import About, BaseFacts, NetworkFacts, OptimiserFacts, RunFacts

_THUMBNAIL = 256  # pixels, as modelspec advises
_NAMES = {"adamw": "AdamW", "adamw8bit": "AdamW8bit", "prodigy": "Prodigy"}
_NOT_OF_A_RUN = ("output", "started")  # where it goes and when it began


def facts_of(config: Config, outlook: Outlook, data: DataSet, told: dict[str, Any]) -> RunFacts:
    """told: what checkpoints say of the run.

    Raises:
        BadSetting: where the thumbnail cannot be read.
    """
    prediction = "v" if outlook.noise.prediction == "v_prediction" else "epsilon"
    name = base.name_of(config.base.path)
    return RunFacts(
        about=about_of(config),
        base=BaseFacts(name, told["base"]["sha256"], outlook.outline.family, prediction),
        network=_network(config, outlook),
        optimiser=_optimiser(config, outlook),
        data=data.facts,
        session=_session(told),
        started=datetime.fromisoformat(told["started"]),
        software=f"loramux {version('loramux')}",
    )


def about_of(config: Config) -> About:
    """The words for people. BadSetting where the thumbnail cannot be read."""
    said = config.about
    return About(
        name=config.output.name,
        title=said.title,
        author=said.author,
        description=said.description,
        licence=said.licence,
        trigger=config.data.trigger or "",
        usage_hint=said.usage_hint,
        tags=said.tags,
        thumbnail=_thumbnail(config),
    )


def _thumbnail(config: Config) -> str:
    path = config.about.thumbnail
    if path is None:
        return ""
    try:
        with Image.open(path) as picture:
            return data_uri(picture, _THUMBNAIL)
    except OSError as error:
        raise BadSetting(f"about.thumbnail is {path}, which is no picture that can be read: {error}") from error


def _network(config: Config, outlook: Outlook) -> NetworkFacts:
    """Where ranks differ, that of most layers; 0 where only new words are trained."""
    layers = outlook.plan.layers
    convolutions = Counter((each.rank, each.alpha) for each in layers if each.group == "convolution")
    others = Counter((each.rank, each.alpha) for each in layers if each.group != "convolution")
    (rank, alpha), _ = (others or convolutions or Counter({(0, 0.0): 1})).most_common(1)[0]
    (conv_rank, conv_alpha), _ = convolutions.most_common(1)[0] if convolutions else ((None, None), 0)
    adapter = config.adapter
    return NetworkFacts(rank, alpha, conv_rank, conv_alpha, adapter.dora, adapter.rslora, adapter.dropout)


def _optimiser(config: Config, outlook: Outlook) -> OptimiserFacts:
    own, run = config.optimiser, config.run
    parts = {layer.part for layer in outlook.plan.layers}
    mixed: Any = "no" if outlook.precision == "fp32" else outlook.precision
    return OptimiserFacts(
        name=_NAMES[own.name],
        unet_rate=own.rate if "unet" in parts else None,
        text_rate=own.text_encoder_rate if parts - {"unet"} else None,
        scheduler=own.schedule,
        warmup=math.ceil(own.warmup * run.steps),
        max_steps=run.steps,
        batch=config.data.batch_size,
        accumulation=run.accumulation,
        max_grad_norm=own.clip,
        min_snr_gamma=config.loss.min_snr,
        noise_offset=config.loss.noise_offset,
        prior_loss_weight=1.0 if config.data.prior is None else config.data.prior.weight,
        caption_dropout=config.data.caption_dropout,
        mixed_precision=mixed,
        gradient_checkpointing=run.gradient_checkpointing,
        seed=run.seed,
    )


def _session(told: dict[str, Any]) -> str:
    """A number for everything that decides the run: a run that went on has that of one that never stopped."""
    decides = {name: value for name, value in told.items() if name not in _NOT_OF_A_RUN}
    whole = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode())
    return str(int.from_bytes(whole.digest()[:4], "big"))
