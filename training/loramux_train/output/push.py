"""What a run wrote on its way to a shelf: a running server's, or a store's folder.

Takes a file, its name and where it goes; gives NAME@VERSION. The file stays where it is, whatever happens. Knows no
training.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from loramux_client import Client
from loramux_client.errors import LoraMuxClientError, Unavailable
from loramux_client.patience import RETRIES
from loramux_client.shelf import UploadOptions
from loramux_store import InterpretOptions, Layout, Store, UploadSpec
from loramux_store.errors import InvalidArgument, StoreError
from loramux_store.layout import KNOWN_NAMES
from loramux_store.names import check_name
from loramux_train.output.destination import Destination
from loramux_train.output.errors import PushFailed

__all__ = ["Destination", "Item", "Pushed", "Telling", "check_push", "push"]

Telling = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all), from another thread."""

_HEALTH_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Item:
    """A file that is to be a version of `name`. config: PEFT's configuration beside it, or None; word: of an embedding,
    what stands for it in a prompt, or None."""

    name: str
    file: Path
    config: Path | None = None
    word: str | None = None


@dataclass(frozen=True, slots=True)
class Pushed:
    """ref: NAME@VERSION. created: False where the very same file was the latest version already."""

    ref: str
    digest: str
    created: bool
    warnings: tuple[str, ...]


def check_push(to: Destination, items: Iterable[Item]) -> str:
    """What can be known before training: the names, and whether somebody is there. Gives a warning in words, or "": a
    server that is down now may be up by the end.

    Raises:
        PushFailed: a name cannot be one.
    """
    for item in items:
        try:
            check_name(item.name)
        except InvalidArgument as error:
            whose = "" if item.word is None else f"the new word {item.word!r}: "
            raise PushFailed(f"push: {whose}{error.message}") from None
    if to.server is None:
        return ""
    try:
        with Client(to.server, timeout=_HEALTH_TIMEOUT) as client:
            client.health()
    except LoraMuxClientError as error:
        return f"push {to.name}: {to.where} does not answer now: {error.lines()[0]}"
    return ""


def push(item: Item, to: Destination, layout: Layout, told: Telling | None = None, retries: int = RETRIES) -> Pushed:
    """Put it on the shelf as a new version of its name. layout: the base's. An upload to a server that breaks goes on
    where it was; retries: how often in a row without progress, by default for about 40 seconds.

    Raises:
        PushFailed: says why, and where the file is.
    """
    try:
        config = None if item.config is None else item.config.read_text()
        if to.server is not None:
            return _to_server(item, config, to, layout, told, retries)
        return _to_store(item, config, to, layout)
    except LoraMuxClientError as error:
        reason = "\n".join(error.lines())
        again = f"loramux adapters push {item.file} --name {item.name} --server {to.server}"
        hint = f"; when it is there: {again}" if isinstance(error, Unavailable) else ""
        raise PushFailed(_message(item, to, reason) + hint) from error
    except (StoreError, OSError) as error:
        raise PushFailed(_message(item, to, str(error))) from error


def _message(item: Item, to: Destination, reason: str) -> str:
    return f"{item.name} was not pushed to {to.where}: {reason}. The file is {item.file}"


def _to_server(
    item: Item, config: str | None, to: Destination, layout: Layout, told: Telling | None, retries: int
) -> Pushed:
    options = UploadOptions(layout=layout.digest)
    if config is not None:
        options["peft_config"] = config
    if item.word is not None:
        options["trigger"] = item.word
    assert to.server is not None
    with Client(to.server, who=to.who) as client:
        uploaded = client.upload(item.file, item.name, progress=told, retries=retries, **options)
    version = uploaded.version
    assert version is not None  # of uploads that are not only asked about
    ref = f"{version.adapter}@{version.number}"
    return Pushed(ref, version.digest, uploaded.created, uploaded.report.warnings)


def _to_store(item: Item, config: str | None, to: Destination, layout: Layout) -> Pushed:
    assert to.store is not None
    with Store.open(to.store) as store:
        _register(layout, store)
        options = InterpretOptions(peft_config=config, trigger=item.word)
        published = store.publish(item.file, UploadSpec(item.name, layout=layout.digest, options=options))
    version = published.version
    assert version is not None
    ref = f"{version.adapter}@{version.number}"
    return Pushed(ref, version.digest, published.created, published.report.warnings)


def _register(layout: Layout, store: Store) -> None:
    """The base's layout becomes known, under a name that is nobody else's."""
    if all(known.digest != layout.digest for known in store.layouts()):
        taken = layout.name in KNOWN_NAMES
        store.register_layout(Layout(f"base-{layout.name}", layout.modules) if taken else layout)
