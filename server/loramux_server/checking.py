"""Whether a server would start with its settings, as far as that can be told in seconds: nothing is loaded or served.

Takes settings; gives what is wrong with them. Whether ports are free it does not ask, since a server that runs with
these settings has them; nor what only the whole base tells: damaged weights, memory, budgets that are too small for it.
"""

from collections.abc import Callable, Iterator

from loramux_server.access import read_access
from loramux_server.device import find_device, find_kernels
from loramux_server.engine.load_base import DTYPES, check_base
from loramux_server.errors import BadBase, BadSetting
from loramux_server.listening import refuse_openness, refuse_strange
from loramux_server.settings import BUILTIN, Settings
from loramux_server.tls import read_identity
from loramux_store.errors import StoreError
from loramux_store.opening import refuse_unusable


def faults(settings: Settings) -> Iterator[str]:
    """Each thing that would end the start."""
    for check in (refuse_openness, _addresses, _tokens, read_identity, _work, _base, _store):
        yield from _fault(check, settings)


def _fault(check: Callable[[Settings], object], settings: Settings) -> Iterator[str]:
    try:
        check(settings)
    except (BadSetting, BadBase, StoreError) as error:
        yield str(error)


def _addresses(settings: Settings) -> None:
    refuse_strange("host", settings.host)
    refuse_strange("metrics_host", settings.http_host)


def _tokens(settings: Settings) -> None:
    if settings.tokens is not None:
        read_access(settings.tokens)


def _work(settings: Settings) -> None:
    device = find_device(settings.device)
    find_kernels(settings.kernels, device, DTYPES[device.type].models, deterministic=settings.deterministic)


def _base(settings: Settings) -> None:
    if settings.base != BUILTIN:
        check_base(settings.base)


def _store(settings: Settings) -> None:
    try:
        refuse_unusable(settings.store)
    except StoreError as error:
        raise BadSetting(f"store: {settings.store}: {error}") from error
