"""Sentences for pictures without captions, as textual inversion learns from them (Gal et al. 2022): many ways to say
that a picture shows one thing, so that the word comes to mean the thing and not the sentence.

Holds text only; `[trigger]` stands for the word.
"""

from collections.abc import Mapping

_THING = (
    "[trigger]",
    "this is [trigger]",
    "a picture of [trigger]",
    "a photograph of [trigger]",
    "one [trigger], seen whole",
    "[trigger] from close by",
    "[trigger] in full view",
    "[trigger] by itself",
    "[trigger] in the middle",
    "[trigger], cropped tightly",
    "[trigger] in good light",
    "[trigger] in dim light",
    "[trigger] from an odd angle",
    "a plain shot of [trigger]",
    "a snapshot that shows [trigger]",
    "a sharp image of [trigger]",
    "a soft image of [trigger]",
    "a small picture of [trigger]",
    "a large picture of [trigger]",
    "the [trigger] again",
    "our [trigger]",
    "somebody's [trigger]",
    "a look at [trigger]",
    "here stands [trigger]",
)
_STYLE = (
    "[trigger]",
    "in the manner of [trigger]",
    "a picture in [trigger] style",
    "a drawing in [trigger] style",
    "a painting in [trigger] style",
    "art after [trigger]",
    "an image done as [trigger]",
    "a scene as [trigger] would show it",
    "a sketch that follows [trigger]",
    "the look of [trigger]",
    "a work in [trigger] style, seen whole",
    "a detail of a work in [trigger] style",
    "something drawn in [trigger] style",
    "colours and lines of [trigger]",
    "a bright picture in [trigger] style",
    "a dark picture in [trigger] style",
    "a small work in [trigger] style",
    "a large work in [trigger] style",
)

TEMPLATES: Mapping[str, tuple[str, ...]] = {"object": _THING, "style": _STYLE}
"""By the setting `data.templates`."""
