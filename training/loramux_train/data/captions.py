"""What a picture's caption becomes at one use: trigger word, shuffled tags, dropped or not.

Takes a caption and a random generator of that use; gives a caption. Also counts tags, for the metadata of an adapter,
and tokens. Knows no files.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from loramux_train.data_settings import DataSettings

PLACEHOLDER = "[trigger]"
ROOM = 75  # tokens of a text encoder's 77 that are not its start and end

CountTokens = Callable[[str], int]  # without start and end

_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|[^\s\w]+|_+", re.I)


def with_trigger(caption: str, settings: DataSettings) -> str:
    """The placeholder filled; the word in front of captions that lack it."""
    word = settings.trigger
    if word is None:
        return caption
    filled = caption.replace(PLACEHOLDER, word)
    if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", filled, re.I):
        return filled
    return word if not filled else f"{word}{settings.separator} {filled}"


def shuffled(caption: str, settings: DataSettings, random: np.random.Generator) -> str:
    """The tags in another order, but for those that stay in front."""
    tags = split_tags(caption, settings.separator)
    front, rest = tags[: settings.keep_tags], tags[settings.keep_tags :]
    return f"{settings.separator} ".join([*front, *(rest[index] for index in random.permutation(len(rest)))])


def split_tags(caption: str, separator: str) -> list[str]:
    """What stands between separators, without empty ones."""
    return [tag.strip() for tag in caption.split(separator) if tag.strip()]


def caption_of_use(captions: tuple[str, ...], prior: bool, settings: DataSettings, random: np.random.Generator) -> str:
    """The caption of one use in training. Class pictures get no trigger word, since it is not theirs."""
    caption = captions[int(random.integers(len(captions)))]
    if not prior:
        caption = with_trigger(caption, settings)
    if settings.shuffle:
        caption = shuffled(caption, settings, random)
    return "" if random.random() < settings.caption_dropout else caption


def caption_to_measure(captions: tuple[str, ...], settings: DataSettings) -> str:
    """The caption of a picture kept for validation, the same at every time."""
    return with_trigger(captions[0], settings)


def tag_counts(captions: Iterable[str], separator: str) -> dict[str, int]:
    """How many captions have a tag, the most frequent first."""
    counts = Counter(tag for caption in captions for tag in dict.fromkeys(split_tags(caption, separator)))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def fewest_tokens(caption: str) -> int:
    """Tokens a caption has at least: CLIP's tokenizer never joins words, digits and signs."""
    return len(_PIECES.findall(caption))
