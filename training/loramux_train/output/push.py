"""A trained adapter on its way to a shelf: a running server's, or a store's folder.

Takes what was saved and where it goes; gives NAME@VERSION. The file stays where it is, whatever happens. Knows no
training.
"""

from collections.abc import Callable
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
from loramux_train.output.adapter_file import Form, Saved
from loramux_train.output.destination import Destination
from loramux_train.output.errors import PushFailed, Unsayable

__all__ = ["Destination", "Pushed", "Telling", "check_push", "push"]

Telling = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all), from another thread."""

_HEALTH_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Pushed:
    """ref: NAME@VERSION. created: False where the very same file was the latest version already."""

    ref: str
    digest: str
    created: bool
    warnings: tuple[str, ...]


def check_push(to: Destination, form: Form, models: int) -> str:
    """What can be known before training: the name, the form, and whether somebody is there. models: how many are
    trained. Gives a warning in words, or "": a server that is down now may be up by the end.

    Raises:
        PushFailed: the name cannot be one.
        Unsayable: PEFT's form of several models, which is several adapters.
    """
    try:
        check_name(to.name)
    except InvalidArgument as error:
        raise PushFailed(f"push: {error.message}") from None
    if form == "peft" and models > 1:
        raise Unsayable(
            f"push {to.name}: PEFT's form has a folder for each of {models} models, and an adapter on the shelf is one "
            "file; save as kohya or diffusers"
        )
    if to.server is None:
        return ""
    try:
        with Client(to.server, timeout=_HEALTH_TIMEOUT) as client:
            client.health()
    except LoraMuxClientError as error:
        return f"push {to.name}: {to.where} does not answer now: {error.lines()[0]}"
    return ""


def push(saved: Saved, to: Destination, layout: Layout, told: Telling | None = None, retries: int = RETRIES) -> Pushed:
    """Put it on the shelf as a new version of its name. layout: the base's. An upload to a server that breaks goes on
    where it was; retries: how often in a row without progress, by default for about 40 seconds.

    Raises:
        PushFailed: says why, and where the file is.
    """
    file, config = _one_file(saved, to)
    try:
        if to.server is not None:
            return _to_server(file, config, to, layout, told, retries)
        return _to_store(file, config, to, layout)
    except LoraMuxClientError as error:
        reason = "\n".join(error.lines())
        again = f"loramux adapters push {file} --name {to.name} --server {to.server}"
        hint = f"; when it is there: {again}" if isinstance(error, Unavailable) else ""
        raise PushFailed(_message(saved, to, reason) + hint) from error
    except (StoreError, OSError) as error:
        raise PushFailed(_message(saved, to, str(error))) from error


def _message(saved: Saved, to: Destination, reason: str) -> str:
    return f"{to.name} was not pushed to {to.where}: {reason}. The adapter is in {saved.path}"


def _one_file(saved: Saved, to: Destination) -> tuple[Path, str | None]:
    """The weights, and the text of PEFT's configuration."""
    weights = [file for file in saved.files if file.name != "adapter_config.json"]
    if len(weights) != 1:
        raise PushFailed(_message(saved, to, f"PEFT's form has {len(weights)} files of weights"))
    if saved.form != "peft":
        return weights[0], None
    return weights[0], weights[0].with_name("adapter_config.json").read_text()


def _to_server(
    file: Path, config: str | None, to: Destination, layout: Layout, told: Telling | None, retries: int
) -> Pushed:
    options = UploadOptions(layout=layout.digest)
    if config is not None:
        options["peft_config"] = config
    assert to.server is not None
    with Client(to.server, who=to.who) as client:
        uploaded = client.upload(file, to.name, progress=told, retries=retries, **options)
    version = uploaded.version
    assert version is not None  # of uploads that are not only asked about
    ref = f"{version.adapter}@{version.number}"
    return Pushed(ref, version.digest, uploaded.created, uploaded.report.warnings)


def _to_store(file: Path, config: str | None, to: Destination, layout: Layout) -> Pushed:
    assert to.store is not None
    with Store.open(to.store) as store:
        _register(layout, store)
        spec = UploadSpec(to.name, layout=layout.digest, options=InterpretOptions(peft_config=config))
        published = store.publish(file, spec)
    version = published.version
    assert version is not None
    ref = f"{version.adapter}@{version.number}"
    return Pushed(ref, version.digest, published.created, published.report.warnings)


def _register(layout: Layout, store: Store) -> None:
    """The base's layout becomes known, under a name that is nobody else's."""
    if all(known.digest != layout.digest for known in store.layouts()):
        taken = layout.name in KNOWN_NAMES
        store.register_layout(Layout(f"base-{layout.name}", layout.modules) if taken else layout)
