"""A picture that nobody sees, before the server is ready: whoever asks first would wait for what is made once.

Takes an engine and a job without adapters; gives nothing. It goes below all that counts and keeps: no metric moves and
no cache is filled. It knows no request and no queue.
"""

import logging

import torch

from loramux_server.engine import pictures
from loramux_server.engine.blends import PlacedBlend
from loramux_server.engine.bytes_lru import BytesLru
from loramux_server.engine.conditioning import Conditioner, unet_arguments
from loramux_server.engine.engine import Engine
from loramux_server.engine.sampling import ImageSampler, guide
from loramux_server.errors import PictureFailed
from loramux_server.metrics import Metrics
from loramux_server.requests import Job

_log = logging.getLogger(__name__)


def warm_up(engine: Engine, job: Job) -> None:
    """Draws the job's first picture up to its file; before the engine steps anything else.

    Raises:
        PictureFailed: where the base cannot draw it.
    """
    try:
        _draw(engine, job)
    except Exception as error:  # a file's, torch's or a driver's, of many kinds
        _log.exception("the first picture failed")
        raise PictureFailed(
            f"base {engine.base.name} cannot draw: a picture of {job.width}x{job.height} in {job.sampling.steps} step, "
            f"which is tried before the server is ready, failed with {type(error).__name__}: {error}"
        ) from error


@torch.inference_mode()
def _draw(engine: Engine, job: Job) -> None:
    base = engine.base
    start = None if job.source is None else engine.encode(job, job.source)
    conditioner = Conditioner(base, engine.groups, BytesLru("prompt", 0, Metrics()))  # keeps nothing, counts for nobody
    given = conditioner.given(job, [PlacedBlend(())] * (1 + job.guided))
    shape = (1, base.latent_channels, job.height // base.latent_scale, job.width // base.latent_scale)
    sampler = ImageSampler(job.sampling, base.scheduler_config, job.seed, shape, base.device, start)
    while not sampler.finished:
        latents = sampler.model_input().repeat(given.rows, 1, 1, 1).to(base.unet.dtype)
        arguments = unet_arguments([given], base.unet.dtype)
        prediction = base.unet(latents, sampler.timestep.expand(given.rows), **arguments, return_dict=False)[0]
        sampler.advance(guide(prediction.float(), job.sampling))
    pictures.encode(pictures.decode(base.vae, sampler.latents), job.output, "")
