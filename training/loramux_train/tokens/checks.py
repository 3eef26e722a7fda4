"""What would keep new words from learning, said before anything is trained.

Takes settings and captions; raises BadSetting. Knows no loop.
"""

from collections.abc import Sequence
from typing import Any

from loramux_train.config import Config
from loramux_train.errors import BadSetting
from loramux_train.token_settings import NewToken, TokenSettings
from loramux_train.tokens import placing
from loramux_train.tokens.words import Words


def check_settings(config: Config) -> None:
    """Whether other sections fit the new words.

    Raises:
        BadSetting: names the settings.
    """
    tokens, optimiser = config.tokens, config.optimiser
    if tokens.alone and config.targets.text_encoder:
        raise BadSetting("targets.text_encoder is true with tokens.alone, which trains no layer; set one of them false")
    if tokens.bundle and config.output.form != "kohya":
        raise BadSetting(f"tokens.bundle is true with output.form {config.output.form}: only readers of kohya's "
                         "form know bundles; expected kohya")  # fmt: skip
    if tokens.new and optimiser.name == "prodigy" and tokens.rate != optimiser.rate:
        raise BadSetting(f"tokens.rate is {tokens.rate}: prodigy finds one step size for all, expected "
                         f"{optimiser.rate}, the rate")  # fmt: skip


def check_captions(settings: TokenSettings, tokenizers: Sequence[Any], captions: Sequence[str]) -> None:
    """Whether every new word is new, and stands in some caption where it is read.

    Raises:
        BadSetting: names the word, or the caption whose vectors are cut off.
    """
    for token in settings.new:
        for tokenizer in tokenizers:
            _check_new(token, tokenizer)
    words = Words([token.word for token in settings.new])
    found = {piece for caption in captions for piece in words.split(caption) if isinstance(piece, int)}
    for number, token in enumerate(settings.new):
        if number not in found:
            raise BadSetting(f"tokens.new: {token.word!r} stands in no caption, expected it in some; write it there, "
                             "or set data.trigger to it, and data.templates if there are no captions")  # fmt: skip
    for caption in dict.fromkeys(captions):
        over, vectors = max(_lost(settings, words, tokenizer, caption) for tokenizer in tokenizers)
        if vectors:
            raise BadSetting(f"caption {caption!r} has {over} tokens more than a text encoder reads, and vectors of a "
                             "new word are among them; shorten it, or lower vectors in tokens.new")  # fmt: skip


def cut_by_vectors(settings: TokenSettings, tokenizers: Sequence[Any], captions: Sequence[str]) -> tuple[str, ...]:
    """A sentence on captions that a text encoder would read to their ends if new words were not several vectors; none
    where there are no such captions."""
    if not settings.new:
        return ()
    words = Words([token.word for token in settings.new])
    cut = [
        caption
        for caption in dict.fromkeys(captions)
        if all(_fits(tokenizer, caption) for tokenizer in tokenizers)
        and any(_lost(settings, words, tokenizer, caption)[0] for tokenizer in tokenizers)
    ]
    if not cut:
        return ()
    return (f"captions that are cut at their ends, since the vectors of new words take room: {len(cut)}, the first is "
            f"{cut[0]!r}",)  # fmt: skip


def _check_new(token: NewToken, tokenizer: Any) -> None:
    ids: list[int] = tokenizer(token.word, add_special_tokens=False).input_ids
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        raise BadSetting(
            f"tokens.new: {token.word!r} is a word of the base already, and nothing would read it as before; expected "
            f"one that is not, such as '<{token.word.strip('<>')}-1>'"
        )
    if token.start is not None and not tokenizer(token.start, add_special_tokens=False).input_ids:
        raise BadSetting(f"tokens.new: start of {token.word!r} is {token.start!r}, in which the base reads nothing")


def _lost(settings: TokenSettings, words: Words, tokenizer: Any, caption: str) -> tuple[int, bool]:
    """How many tokens of a caption are not read, and whether vectors are among them."""
    counts = [token.vectors for token in settings.new]
    over = placing.sequence(tokenizer, caption, words, counts)[tokenizer.model_max_length - 2 :]
    return len(over), any(token < 0 for token in over)


def _fits(tokenizer: Any, caption: str) -> bool:
    """As it is, without new words."""
    return len(tokenizer(caption, add_special_tokens=False, verbose=False).input_ids) <= tokenizer.model_max_length - 2
