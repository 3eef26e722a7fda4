"""The Dockerfile, read as far as the tests need it: its stages, what they end as, and what they set.

Takes the file. Gives instructions, environment and volumes of a stage with those of the stages below it. It knows no
heredocs and no variables but ${BASE}.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Instruction:
    """A word in capitals, and what follows it in one line."""

    word: str
    rest: str


def read(text: str) -> list[Instruction]:
    """Every instruction, in order, without comments."""
    bare = re.sub(r"^\s*#.*\n", "", text, flags=re.M)
    lines = re.sub(r"\\\n\s*", "", bare).splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in lines if line]


def stages(text: str) -> dict[str, list[Instruction]]:
    """Instructions by stage, each begun by its FROM."""
    found: dict[str, list[Instruction]] = {}
    for each in read(text):
        if each.word == "FROM":
            found[each.rest.split(" AS ")[1]] = []
        if found:
            list(found.values())[-1].append(each)
    return found


def image(target: str) -> list[Instruction]:
    """Instructions that make up the image: those of the stages it stands on, and its own."""
    every = stages((ROOT / "Dockerfile").read_text())
    below = every[target][0].rest.split(" AS ")[0]
    return [*(image(below) if below in every else []), *every[target]]


def last(target: str, word: str) -> str:
    return next(each.rest for each in reversed(image(target)) if each.word == word)


def pairs(target: str, word: str) -> dict[str, str]:
    """All that ENV or LABEL sets."""
    texts = [text for each in image(target) if each.word == word for text in shlex.split(each.rest)]
    return dict(text.split("=", 1) for text in texts)


def volumes(target: str) -> set[str]:
    return {path for each in image(target) if each.word == "VOLUME" for path in json.loads(each.rest)}


def tag(target: str) -> str:
    """What the image is called: version and target."""
    return f"loramux:{pairs(target, 'LABEL')['org.opencontainers.image.version']}-{target}"
