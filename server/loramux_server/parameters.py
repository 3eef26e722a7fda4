"""What a picture was made with, as the text that people's tools read out of picture files.

Takes a job, a picture's index and what the base is; gives the text: the prompt with `<lora:name:weight>` tags, the
negative prompt, and a line of `Key: value` pairs with the names that Stable Diffusion web interfaces gave them.
Embeddings have no tags: their triggers stand in the prompts. It knows no file format.
"""

import json

from loramux_server.requests import Job, Sampler, SigmaSchedule, Weighted

_SAMPLERS = {
    Sampler.DDIM: "DDIM",
    Sampler.PNDM: "PLMS",
    Sampler.EULER: "Euler",
    Sampler.EULER_ANCESTRAL: "Euler a",
    Sampler.DPMPP_2M: "DPM++ 2M",
    Sampler.HEUN: "Heun",
    Sampler.DPMPP_2M_SDE: "DPM++ 2M SDE",
    Sampler.DPMPP_SDE: "DPM++ SDE",
    Sampler.UNIPC: "UniPC",
    Sampler.LCM: "LCM",
}
_SCHEDULES = {
    SigmaSchedule.KARRAS: "Karras",
    SigmaSchedule.EXPONENTIAL: "Exponential",
    SigmaSchedule.BETA: "Beta",
}
_SHORT = 10  # hexadecimal digits of a digest, as web interfaces show them


def text_of(job: Job, index: int, base_name: str, base_digest: str, server_version: str) -> str:
    """The text for picture `index` of a job."""
    tags = "".join(f" <lora:{w.version.adapter}:{w.weight:g}>" for w in _loras(job))
    lines = [f"{job.prompt}{tags}"]
    if job.guided and job.negative_prompt:
        lines.append(f"Negative prompt: {job.negative_prompt}")
    embeddings = _embeddings(job)
    pairs = _pairs(job, index) | {
        "Model hash": base_digest[:_SHORT],
        "Model": base_name,
        "Lora hashes": _hashes(job),
        "TI hashes": _quoted({trigger: w.version.blob_digest[:12] for trigger, w in embeddings.items()}),
        # web interfaces have no weights of embeddings
        "TI weights": _quoted({trigger: f"{w.weight:g}" for trigger, w in embeddings.items() if w.weight != 1}),
        "Version": f"LoRAMux {server_version}",
    }
    lines.append(", ".join(f"{key}: {value}" for key, value in pairs.items() if value))
    return "\n".join(lines)


def _pairs(job: Job, index: int) -> dict[str, str]:
    sampling = job.sampling
    return {
        "Steps": str(sampling.steps),
        "Sampler": _SAMPLERS[sampling.sampler],
        "Schedule type": _SCHEDULES.get(sampling.sigma_schedule, ""),
        "Timesteps": f'"{", ".join(map(str, sampling.timesteps))}"' if sampling.timesteps else "",
        "CFG scale": f"{sampling.guidance_scale:g}",
        "CFG Rescale": f"{sampling.guidance_rescale:g}" if sampling.guidance_rescale else "",
        "Seed": str(job.seed + index),
        "Size": f"{job.width}x{job.height}",
        "Denoising strength": f"{sampling.strength:g}" if sampling.strength is not None else "",
        "Mask blur": f"{job.source.mask_blur:g}" if job.source and job.source.mask_blur else "",
        "Size conditioning": _sizes(job),
        # web interfaces count the layers from the end, and the last is 1
        "Clip skip": str(job.text_mode.clip_skip + 1) if job.text_mode.clip_skip else "",
    }


def _sizes(job: Job) -> str:
    """What SDXL was told of each row's size, where that is not the picture's own: before resizing, cut off, after."""
    own = (job.height, job.width, 0, 0, job.height, job.width)
    told = [sizes for sizes in (job.sizes, job.negative_sizes) if sizes is not None]
    if all(sizes.numbers == own for sizes in told):
        return ""
    texts = [
        f"{s.original_width}x{s.original_height} {s.crop_left},{s.crop_top} {s.target_width}x{s.target_height}"
        for s in dict.fromkeys(told)
    ]
    return f'"{"; negative ".join(texts)}"'


def _hashes(job: Job) -> str:
    return _quoted({w.version.adapter: w.version.blob_digest[:12] for w in _loras(job)})


def _loras(job: Job) -> list[Weighted]:
    return [weighted for weighted in job.blend if weighted.version.embedding is None]


def _embeddings(job: Job) -> dict[str, Weighted]:
    """Those of both prompts, by trigger."""
    listed = (*job.blend, *(job.negative_blend or ()))
    return {w.version.embedding.trigger: w for w in listed if w.version.embedding is not None}


def _quoted(values: dict[str, str]) -> str:
    listed = ", ".join(f"{key}: {value}" for key, value in values.items())
    return json.dumps(listed, ensure_ascii=False) if listed else ""
