"""`loramux serve`: settings, then one line when it serves.

Takes options; gives a running server. It imports torch last, so that bad options are told at once.
"""

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from loramux_server.errors import BadSetting
from loramux_server.flags import Flags, given
from loramux_server.settings import Settings, load

if TYPE_CHECKING:
    from loramux_server.app import Ready


def serve(
    *,
    flags: Annotated[Flags | None, Parameter(name="*")] = None,
    verbose: Annotated[bool, Parameter(alias="-v", negative="", help="Short for --log-level info.")] = False,
) -> int:
    """Serve pictures over gRPC until stopped.

    Every option is also an environment variable, LORAMUX_ and its name in capitals, and a key of the file that --config
    names; options go before the environment, the environment before the file.
    """
    said = ({"log_level": "info"} if verbose else {}) | given(flags)
    try:
        settings = load(**said)
    except BadSetting as error:
        print(error, file=sys.stderr)
        return 2
    return _run(settings)


def _run(settings: Settings) -> int:
    from loramux_server import memory

    if settings.device != "cuda":
        memory.keep_freed()
    from loramux_server import app, logs
    from loramux_server.errors import BadBase, LoraMuxError
    from loramux_store.errors import StoreError

    logs.configure(getattr(logging, settings.log_level.upper()), settings.log_format)
    try:
        asyncio.run(app.serve(settings, _announce))
    except (LoraMuxError, StoreError, OSError, RuntimeError) as error:
        print(f"loramux: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadSetting | BadBase) else 1
    return 0


def _announce(ready: "Ready") -> None:
    print(f"loramux ready grpc={ready.grpc} http={ready.http} base={ready.base}", flush=True)
