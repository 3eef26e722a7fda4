"""Latents become pictures: large ones in tiles, in fp32 whatever the other models compute in."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loramux_server.engine import load_base as loading
from loramux_server.engine import pictures
from loramux_server.engine.base_parts import Dtypes
from loramux_server.engine.load_base import load_base
from loramux_server.requests import GenerationRequest, Sampler


def test_only_large_pictures_are_decoded_in_tiles(
    make_server: Any, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae: Any = make_server(tiny_base).app.engine.base.vae
    latents, tiled = torch.randn(1, 4, 40, 24), []
    decode = vae.tiled_decode
    monkeypatch.setattr(vae, "tiled_decode", lambda *a, **k: (tiled.append(1), decode(*a, **k))[1])
    whole = np.asarray(pictures.decode(vae, latents))
    assert not tiled and whole.shape == (80, 48, 3)
    monkeypatch.setattr(pictures, "TILED_ABOVE", 80 * 48)
    assert np.array_equal(np.asarray(pictures.decode(vae, latents)), whole) and not tiled
    monkeypatch.setattr(pictures, "TILED_ABOVE", 80 * 48 - 1)
    pieces = np.asarray(pictures.decode(vae, latents))
    vae.enable_tiling()
    with torch.inference_mode():
        want = (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0)
    vae.disable_tiling()
    assert tiled and np.abs(pieces.astype(int) - (want.numpy() * 255).round().astype(int)).max() <= 1


def test_a_vae_may_say_where_its_latents_lie(tiny_sdxl: Path, tmp_path: Path) -> None:
    file = Path(shutil.copytree(tiny_sdxl, tmp_path / "base")) / "vae/config.json"
    means, stds = [0.1, -0.2, 0.3, 0.4], [1.0, 2.0, 0.5, 1.5]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"latents_mean": means, "latents_std": stds}))
    vae: Any = load_base(tmp_path / "base", "tiny", torch.device("cpu")).vae
    latents = torch.randn(1, 4, 16, 16)
    with torch.inference_mode():
        scaled = latents * torch.tensor(stds).view(1, 4, 1, 1) / vae.config.scaling_factor
        want = vae.decode(scaled + torch.tensor(means).view(1, 4, 1, 1)).sample
    want = ((want / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255).round()
    assert np.abs(np.asarray(pictures.decode(vae, latents)).astype(int) - want).max() <= 1


@pytest.mark.parametrize("base", ["tiny_sd2", "tiny_sdxl", "tiny_lcm"])
def test_models_in_half_precision_draw_with_a_vae_in_full(
    base: str, make_server: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU has, with bf16 for fp16: every input of the UNet must come in the UNet's dtype."""
    asked = GenerationRequest("a (red:1.3) apple", sampler=Sampler.DDIM, steps=3, seed=7)
    (want,) = make_server(request.getfixturevalue(base)).draw([asked])
    monkeypatch.setitem(loading.DTYPES, "cpu", Dtypes(models=torch.bfloat16, vae=torch.float32))
    server = make_server(request.getfixturevalue(base))
    loaded = server.app.engine.base
    dtypes = {parameter.dtype for model in loaded.models.values() for parameter in model.parameters()}
    assert dtypes == {torch.bfloat16} and loaded.vae.dtype == torch.float32
    (got,) = server.draw([asked])
    assert 0 < np.abs(got.astype(int) - want.astype(int)).mean() <= 8


def test_the_dtypes_of_each_device() -> None:
    assert {device: (each.models, each.vae) for device, each in loading.DTYPES.items()} == {
        "cpu": (torch.float32, torch.float32),
        "cuda": (torch.float16, torch.float32),
    }
