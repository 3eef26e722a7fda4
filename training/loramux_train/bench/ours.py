"""The trainer's own side: what `loramux train run` does between two steps, without its files.

Takes a folder of pictures; gives steps.
"""

from pathlib import Path

import torch
from accelerate import Accelerator

from loramux_train import base, config
from loramux_train.bench.setting import BATCH, CAPTIONS, RANK, RATE, known_batch
from loramux_train.data_source import open_folders
from loramux_train.injection import inject
from loramux_train.objective import weighed_error
from loramux_train.outlook import outlook_of
from loramux_train.training import Training


class Ours:
    """A run that can be stepped."""

    def __init__(self, folder: Path) -> None:
        given = {
            "data": {"folders": [{"path": str(folder)}], "batch_size": BATCH, "caption_dropout": 0.0, "resolution": 64},
            "adapter": {"rank": RANK},
            "targets": {"modules": "attn"},
            "optimiser": {"rate": RATE, "warmup": 0.0},
            "run": {"steps": 1_000_000},
        }
        made, cpu = config.resolved(config.parse(given)), torch.device("cpu")
        outlook = outlook_of(made)
        data = open_folders(made, outlook, cpu, quiet=True)
        frozen = base.load(outlook.outline, torch.float32, cpu)
        injected = inject(frozen.parts(), outlook.plan, made.adapter, made.run.seed)
        self._noise = outlook.noise
        self._training = Training(frozen, injected, self._noise, data.batches, made.recipe, Accelerator(cpu=True))
        self.trained = list(injected.parameters.values())

    def known_loss(self) -> float:
        """Before any step."""
        latents, noise, timesteps = known_batch()
        training = self._training
        with torch.no_grad():
            context = training.text.embed(CAPTIONS).context
            predicted = training.base.unet(self._noise.noised(latents, noise, timesteps), timesteps, context).sample
        target = self._noise.target(latents, noise, timesteps)
        return float(weighed_error(predicted, target, torch.ones(BATCH), None))

    def step(self) -> float:
        """One update; the loss."""
        return self._training.step().loss
