"""Icons: npm packages of SVG drawings rendered to transparent pictures.

Takes a folder of unpacked `@iconify-json/*` packages; gives RGBA arrays by (style, icon name), cached in one .npz a
style. Knows nothing of captions, augmentation or training.
"""

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loramux_train.builtin.concepts import CONCEPTS, STYLES, Style

Rgba = NDArray[np.uint8]

RENDER_SIZE = 128  # twice the picture size, so that scaling down to 80-100 % of 64 px never blurs

# these make resvg abort the whole process
_UNRENDERABLE = {("noto", "package"), ("noto", "rainbow-flag"), ("glossy", "green-circle")}
_PEOPLE = ("person", "woman", "women", "man", "men", "people", "family", "flag", "clock", "button", "keycap", "hand")


def fetch_packages(folder: Path) -> None:
    """Download and unpack every style's npm package beneath `folder` (skipped if already there)."""
    folder.mkdir(parents=True, exist_ok=True)
    for style in STYLES:
        target = package_folder(folder, style)
        if (target / "icons.json").exists():
            continue
        spec = f"{style.package}@{style.version}"
        packed = subprocess.run(
            ["npm", "pack", spec, "--silent"], cwd=folder, check=True, capture_output=True, text=True
        )
        target.mkdir(exist_ok=True)
        archive = packed.stdout.split()[-1]
        subprocess.run(["tar", "xzf", archive, "-C", target.name, "--strip-components=1"], cwd=folder, check=True)


def package_folder(folder: Path, style: Style) -> Path:
    """Where a style's package is unpacked: the name `npm pack` would give it."""
    return folder / f"{style.package.removeprefix('@').replace('/', '-')}-{style.version}"


class IconSet:
    """One style's drawings by icon name."""

    def __init__(self, folder: Path, style: Style) -> None:
        data: dict[str, Any] = json.loads((package_folder(folder, style) / "icons.json").read_text())
        self.style = style
        self._icons: dict[str, dict[str, Any]] = data["icons"]
        self._aliases: dict[str, dict[str, Any]] = data.get("aliases", {})
        self._size: tuple[int, int] = (data.get("width", 16), data.get("height", 16))

    def names(self) -> set[str]:
        """Every icon that can be rendered, aliases included."""
        known = self._icons.keys() | self._aliases.keys()
        return {name for name in known if (self.style.name, name) not in _UNRENDERABLE}

    def svg(self, name: str) -> str:
        """A whole SVG document of one icon."""
        while name not in self._icons:
            name = self._aliases[name]["parent"]
        icon = self._icons[name]
        width, height = icon.get("width", self._size[0]), icon.get("height", self._size[1])
        body = icon["body"].replace("currentColor", "#000")
        space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {space} viewBox="0 0 {width} {height}" width="{RENDER_SIZE}" height="{RENDER_SIZE}">{body}</svg>'


def render(svg: str) -> Rgba:
    """Rasterise an SVG document to [RENDER_SIZE, RENDER_SIZE, 4]."""
    import resvg_py  # a native extension only this function needs

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def other_icons(sets: list[IconSet], count: int, seed: int) -> list[str]:
    """Icons of no concept that every style has: they teach the VAE pictures the captions never name."""
    shared = set.intersection(*(icons.names() for icons in sets))
    concepts = {concept.icon for concept in CONCEPTS}
    names = sorted(
        name for name in shared - concepts if not any(word in name.split("-") or word in name for word in _PEOPLE)
    )
    chosen = np.random.default_rng(seed).permutation(len(names))[:count]
    return [names[index] for index in sorted(chosen)]


def render_all(packages: Path, cache: Path, others: int = 500, seed: int = 0) -> None:
    """Render every concept and `others` more icons in every style to `cache/STYLE.npz`."""
    cache.mkdir(parents=True, exist_ok=True)
    sets = [IconSet(packages, style) for style in STYLES]
    names = [concept.icon for concept in CONCEPTS] + other_icons(sets, others, seed)
    for icons in sets:
        target = cache / f"{icons.style.name}.npz"
        if target.exists():
            continue
        pictures = np.stack([render(icons.svg(name)) for name in names])
        partial = target.with_suffix(".part.npz")
        np.savez_compressed(partial, names=np.array(names), pictures=pictures)
        partial.replace(target)


def load_icons(cache: Path, style: Style) -> dict[str, Rgba]:
    """The rendered icons of one style by name, concepts first."""
    with np.load(cache / f"{style.name}.npz") as data:
        pictures: Rgba = data["pictures"]
        return {str(name): picture for name, picture in zip(data["names"], pictures, strict=True)}
