"""Caches give what the VAE and the text encoder would, never anything stale, and mend what is damaged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from picture_folders import SCALING, encode, picture, surveyed
from PIL import Image
from torch import Tensor

from loramux_train.data.batches import FolderBatches
from loramux_train.data.buckets import crop
from loramux_train.data.latent_cache import LatentCache, Latents, encoder_of, module_digest
from loramux_train.data.pixels import trained
from loramux_train.data.text_cache import TextCache


class _Counted:
    """A VAE that counts the pictures it is given."""

    def __init__(self) -> None:
        self.pictures = 0

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.pictures += len(pixels)
        return encode(pixels)


def _get(photos: Path, cache: Path | None, vae: Any, digest: str = "vae", flip: bool = False, **others: Any) -> Latents:
    found = surveyed(photos, **others)
    (shown,) = found.pictures
    return LatentCache(cache, digest, vae, found.settings).get(shown, crop(shown.size, shown.bucket), flip)


def _equal(one: Latents, other: Latents) -> bool:
    return torch.equal(one.mean, other.mean) and torch.equal(one.std, other.std)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    picture(tmp_path / "photos" / "a.png", (96, 64), caption="a cat", seed=1)
    return tmp_path / "photos"


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_second_time_is_like_the_first_and_encodes_nothing(tmp_path: Path, photos: Path, dtype: str) -> None:
    vae = _Counted()
    first = _get(photos, tmp_path / "cache", vae, cache_dtype=dtype)
    again = _get(photos, tmp_path / "cache", vae, cache_dtype=dtype)
    assert vae.pictures == 1
    assert _equal(first, again)
    assert first.mean.dtype == again.mean.dtype == torch.float32
    assert _equal(_get(photos, None, encode), first) == (dtype == "fp32")


def test_a_moved_or_renamed_picture_is_not_encoded_again(tmp_path: Path, photos: Path) -> None:
    vae = _Counted()
    _get(photos, tmp_path / "cache", vae)
    photos.rename(tmp_path / "moved")
    (tmp_path / "moved" / "a.png").rename(tmp_path / "moved" / "b.png")
    (tmp_path / "moved" / "a.txt").rename(tmp_path / "moved" / "b.txt")
    _get(tmp_path / "moved", tmp_path / "cache", vae)
    assert vae.pictures == 1


@pytest.mark.parametrize(
    "change",
    [
        {"resolution": 96, "bucket_step": 8},
        {"buckets": False},
        {"digest": "another vae"},
        {"cache_dtype": "fp16"},
        {"ground": (0, 0, 0)},
        {"masks": "alpha"},
        {"flip": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_stale_latents_after_a_change_onetrainer_175(tmp_path: Path, photos: Path, change: dict[str, Any]) -> None:
    vae = _Counted()
    _get(photos, tmp_path / "cache", vae)
    changed = _get(photos, tmp_path / "cache", vae, **change)
    assert vae.pictures == 2
    assert _equal(changed, _get(photos, None, encode, **change))


def test_another_picture_under_the_same_name_is_encoded(tmp_path: Path, photos: Path) -> None:
    vae = _Counted()
    first = _get(photos, tmp_path / "cache", vae)
    picture(photos / "a.png", (96, 64), seed=2)
    assert not _equal(_get(photos, tmp_path / "cache", vae), first)


def test_another_mask_is_read_again(tmp_path: Path, photos: Path) -> None:
    vae = _Counted()
    for level in (0, 255):
        Image.new("L", (96, 64), level).save(photos / "a-masklabel.png")
        latents = _get(photos, tmp_path / "cache", vae, masks="files")
        again = _get(photos, tmp_path / "cache", vae, masks="files")
        assert latents.mask.unique().tolist() == again.mask.unique().tolist() == [level / 255]
    assert vae.pictures == 2


def test_flips_are_not_frozen_into_the_cache_onetrainer_209(tmp_path: Path, photos: Path) -> None:
    found = surveyed(photos, flip=True, batch_size=1)
    vae = _Counted()
    source = FolderBatches(found, LatentCache(tmp_path / "cache", "vae", vae, found.settings), SCALING)
    assert list(source.fill()) == [1]
    assert vae.pictures == 2
    (shown,) = found.pictures
    cut = crop(shown.size, shown.bucket)
    both = [LatentCache(tmp_path / "cache", "vae", vae, found.settings).get(shown, cut, flip) for flip in (False, True)]
    assert vae.pictures == 2
    # This VAE means blocks, so that mirroring commutes but for the order of sums.
    assert torch.allclose(both[1].mean, both[0].mean.flip(-1), atol=1e-6)
    assert not torch.allclose(both[1].mean, both[0].mean, atol=1e-2)
    drawn = [source.batch(position).latents / SCALING.factor + SCALING.shift for position in range(12)]
    nearest = [(latents - both[1].mean).abs().mean() < (latents - both[0].mean).abs().mean() for latents in drawn]
    assert {bool(mirrored) for mirrored in nearest} == {False, True}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, photos: Path, damage: str) -> None:
    vae = _Counted()
    first = _get(photos, tmp_path / "cache", vae)
    (entry,) = (tmp_path / "cache").rglob("*.safetensors")
    whole = entry.read_bytes()
    if damage == "another":  # an entry of another key under this one's name
        _get(photos, tmp_path / "cache", vae, "another vae")
        (other,) = set((tmp_path / "cache").rglob("*.safetensors")) - {entry}
        entry.write_bytes(other.read_bytes())
    else:
        flipped = whole[:-1] + bytes([whole[-1] ^ 1])
        entry.write_bytes({"cut": whole[:-9], "flipped": flipped, "empty": b""}[damage])
    before = vae.pictures
    assert _equal(_get(photos, tmp_path / "cache", vae), first)
    assert vae.pictures == before + 1
    assert _equal(_get(photos, tmp_path / "cache", vae), first)
    assert vae.pictures == before + 1
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize("on_disk", [True, False])
def test_random_crops_are_not_kept(tmp_path: Path, photos: Path, on_disk: bool) -> None:
    found = surveyed(photos, crop="random", buckets=False)
    vae = _Counted()
    cache = LatentCache(tmp_path / "cache" if on_disk else None, "vae", vae, found.settings)
    source = FolderBatches(found, cache, SCALING)
    first = source.batch(0)
    assert torch.equal(source.batch(0).latents, first.latents)
    assert list(source.fill()) == []
    assert vae.pictures == 2
    assert not list((tmp_path / "cache").rglob("*"))


def test_latents_that_are_not_finite_are_refused(tmp_path: Path, photos: Path) -> None:
    def overflowing(pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = encode(pixels)
        return mean / 0, std

    with pytest.raises(ValueError, match=r"a\.png: the VAE gives numbers that are not finite"):
        _get(photos, tmp_path / "cache", overflowing)
    assert not list((tmp_path / "cache").rglob("*"))


def _vae(seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()


def test_diffusers_vae_gives_what_it_gives_alone(tmp_path: Path, photos: Path) -> None:
    vae = _vae()
    latents = _get(photos, tmp_path / "cache", encoder_of(vae), module_digest(vae))
    found = surveyed(photos)
    (shown,) = found.pictures
    pixels = trained(shown, crop(shown.size, shown.bucket), False, found.settings).pixels()
    with torch.no_grad():
        posterior = vae.encode(pixels[None]).latent_dist
    assert torch.equal(latents.mean, posterior.mean[0])
    assert torch.equal(latents.std, posterior.std[0])
    assert latents.std.min() > 0


def test_the_digest_of_a_module_changes_with_any_weight() -> None:
    vae, same, other = _vae(), _vae(), _vae(1)
    assert module_digest(vae) == module_digest(same) != module_digest(other)
    with torch.no_grad():
        next(reversed(list(same.parameters()))).view(-1)[0] += 1
    assert module_digest(vae) != module_digest(same)
    assert module_digest(vae.half()) != module_digest(_vae())


# texts


class _Encoder:
    """Embeds a caption as its letters; counts captions."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, caption: str) -> dict[str, Tensor]:
        self.seen.append(caption)
        letters = [[float(ord(letter)) for letter in caption.ljust(8)[:8]]]
        return {"hidden": torch.tensor(letters)[:, :, None], "pooled": torch.tensor([[len(caption)]])}


def test_captions_are_encoded_once_each(tmp_path: Path) -> None:
    encoder = _Encoder()
    for caption in ("a cat", "", "a cat", "a dog"):
        found = TextCache(tmp_path / "texts", "encoder", encoder).embed(caption)
        expected = _Encoder()(caption)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert encoder.seen == ["a cat", "", "a dog"]


def test_another_encoder_has_embeddings_of_its_own(tmp_path: Path) -> None:
    encoder = _Encoder()
    for digest in ("one", "two", "one"):
        TextCache(tmp_path, digest, encoder).embed("a cat")
    assert encoder.seen == ["a cat", "a cat"]


def test_a_damaged_embedding_is_made_again(tmp_path: Path) -> None:
    encoder = _Encoder()
    first = TextCache(tmp_path, "encoder", encoder).embed("a cat")
    (entry,) = tmp_path.rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:-3])
    again = TextCache(tmp_path, "encoder", encoder).embed("a cat")
    assert torch.equal(first["hidden"], again["hidden"])
    assert encoder.seen == ["a cat", "a cat"]
