"""What would keep new words from learning, said before anything is trained.

Takes settings and captions; raises BadSetting. Knows no loop.
"""

import warnings
from collections.abc import Sequence

from loramux_train.base import Base
from loramux_train.config import Config
from loramux_train.errors import BadSetting
from loramux_train.tokens.vectors import Tokens


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


def check_captions(tokens: Tokens, base: Base, captions: Sequence[str]) -> None:
    """Whether every new word stands in some caption where it is read. Captions that are cut after it are warned of.

    Raises:
        BadSetting: names the word, or the caption whose vectors are cut off.
    """
    found = {piece for caption in captions for piece in tokens.words.split(caption) if isinstance(piece, int)}
    for number, token in enumerate(tokens.settings.new):
        if number not in found:
            raise BadSetting(f"tokens.new: {token.word!r} stands in no caption, expected it in some; write it there, "
                             "or set data.trigger to it, and data.templates if there are no captions")  # fmt: skip
    cut = 0
    for caption in dict.fromkeys(captions):
        over, vectors = max(tokens.lost(tokenizer, caption) for tokenizer in base.tokenizers)
        cut += over > 0
        if vectors:
            raise BadSetting(f"caption {caption!r} has {over} tokens more than a text encoder reads, and vectors of a "
                             "new word are among them; shorten it, or lower vectors in tokens.new")  # fmt: skip
    if cut:
        warnings.warn(f"{cut} captions have more tokens than a text encoder reads, with the vectors of new words; "
                      "their ends are cut", stacklevel=2)  # fmt: skip
