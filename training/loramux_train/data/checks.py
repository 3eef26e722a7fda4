"""What is worth telling of pictures that can all be read: small ones, copies, long captions, class pictures.

Takes the pictures of a survey; tells notes. Decides nothing.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from loramux_train.data.captions import PLACEHOLDER, ROOM, CountTokens, caption_to_measure, fewest_tokens
from loramux_train.data.notes import Notes
from loramux_train.data.picture import Picture
from loramux_train.data_settings import DataSettings

_ENLARGED = 1.25  # from here the eye sees it
_CUT = 0.3  # of a picture's area, from where heads are lost


def tell_sizes(pictures: Iterable[Picture], notes: Notes) -> None:
    """Pictures that are much enlarged, or of which much is cut off."""
    for picture in pictures:
        if picture.enlarged > _ENLARGED:
            notes.tell("warning", "enlarged", f"pictures enlarged more than {_ENLARGED} times", picture.source.path)
        if _cut(picture) > _CUT:
            text = f"pictures that lose more than {_CUT:.0%} of their area to the crop"
            notes.tell("warning", "cropped", text, picture.source.path)


def _cut(picture: Picture) -> float:
    width, height = picture.size
    return 1 - picture.bucket[0] * picture.bucket[1] / (width * height * picture.enlarged**2)


def tell_duplicates(pictures: Iterable[Picture], notes: Notes) -> None:
    """Files of the same bytes."""
    same: defaultdict[str, list[Path]] = defaultdict(list)
    for picture in pictures:
        same[picture.content].append(picture.source.path)
    for paths in same.values():
        if len(paths) > 1:
            notes.tell("warning", "copies", "files that are the same picture, each used", *paths)


def tell_captions(
    pictures: Sequence[Picture], settings: DataSettings, count_tokens: CountTokens | None, notes: Notes
) -> None:
    """Captions of more tokens than one pass of a text encoder reads, and placeholders nothing fills."""
    at_least, count = ("", count_tokens) if count_tokens else ("at least ", fewest_tokens)
    for picture in pictures:
        for caption in picture.source.captions:
            if settings.trigger is None and PLACEHOLDER in caption:
                text = f"captions with {PLACEHOLDER}, but no trigger is set"
                notes.tell("error", "no_trigger", text, picture.source.path)
            spoken = caption if picture.source.prior else caption_to_measure((caption,), settings)
            if (tokens := count(spoken)) > ROOM:
                text = (
                    f"{picture.source.path}: its caption has {at_least}{tokens} tokens; a text encoder reads {ROOM} at "
                    f"a time, the last {at_least}{tokens - ROOM} are cut"
                )
                notes.tell("warning", "long_caption", text)


def tell_prior(pictures: Sequence[Picture], settings: DataSettings, notes: Notes) -> None:
    """Class pictures that cannot do what they are for."""
    if settings.prior is None:
        return
    trained = {caption.casefold() for p in pictures if not p.source.prior for caption in p.source.captions}
    own = [with_ for p in pictures if p.source.prior for with_ in p.source.captions]
    if settings.trigger is None and any(caption.casefold() in trained for caption in own):
        text = "class pictures with the same caption as pictures to train on: the subject needs a word of its own"
        notes.tell("warning", "same_class_words", text, settings.prior.folder)
    if settings.trigger is not None and any(settings.trigger.casefold() in caption.casefold() for caption in own):
        text = f"class pictures whose caption has {settings.trigger!r}, the trigger word, which is the subject's alone"
        notes.tell("warning", "same_class_words", text, settings.prior.folder)
    contents = {p.content for p in pictures if not p.source.prior}
    shared = [p.source.path for p in pictures if p.source.prior and p.content in contents]
    if shared:
        notes.tell("error", "prior_is_trained_on", "class pictures that are also trained on", *shared)
