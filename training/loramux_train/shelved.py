"""Which files of a run go on a shelf, and what they are called there.

Takes settings, before anything is trained; gives items to push. Writes and pushes nothing.
"""

from collections.abc import Collection

from loramux_train.config import Config
from loramux_train.finishing import adapter_file, bundle_file
from loramux_train.output.errors import Unsayable
from loramux_train.output.push import Item
from loramux_train.tokens.files import embedding_file


def items_of(config: Config, parts: Collection[str], name: str) -> tuple[Item, ...]:
    """The bundle as `name`, where there is one; else the adapter as `name` and each new word as NAME-WORD; a word that
    is all there is as `name`. parts: the models that are trained.

    Raises:
        Unsayable: PEFT's form of several models, which is several adapters.
    """
    tokens = config.tokens
    if tokens.bundle:
        return (Item(name, bundle_file(config)),)
    only = tokens.alone and len(tokens.new) == 1
    words = tuple(
        Item(
            name if only else f"{name}-{token.file_name.lower()}",
            embedding_file(config.output.folder, token),
            word=token.word,
        )
        for token in tokens.new
    )
    return words if tokens.alone else (_adapter(config, parts, name), *words)


def _adapter(config: Config, parts: Collection[str], name: str) -> Item:
    path = adapter_file(config)
    if config.output.form != "peft":
        return Item(name, path)
    if len(parts) > 1:
        raise Unsayable(
            f"push {name}: PEFT's form has a folder for each of {len(parts)} models, and an adapter on the shelf is "
            "one file; save as kohya or diffusers"
        )
    (part,) = parts
    return Item(name, path / part / "adapter_model.safetensors", path / part / "adapter_config.json")
