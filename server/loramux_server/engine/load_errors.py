"""What whoever waits for an adapter hears when it cannot be loaded.

Takes what went wrong and the version; gives an error of the server's tree or the store's. It knows no tier.
"""

import logging

from loramux_server.engine.device_memory import RAN_OUT
from loramux_server.errors import LoraMuxError, OutOfMemory, PictureFailed
from loramux_store.errors import DataLoss, StoreError
from loramux_store.record import VersionRecord

_log = logging.getLogger(__name__)


def told(error: Exception, version: VersionRecord, memory: str) -> Exception:
    """The two trees' own errors, the store's with the adapter's name; others without their insides, which go to the
    log. memory: that which it should have gone into, host or device."""
    name = f"{version.adapter}@{version.number}"
    match error:
        case DataLoss():
            return DataLoss(error.digest, f"{error.cause}; adapter {name} cannot be loaded")
        case StoreError() | LoraMuxError():
            return error
        case _ if isinstance(error, RAN_OUT):
            return OutOfMemory(f"adapter {name} does not fit into {memory} memory")
        case _:
            _log.error("an adapter could not be loaded", exc_info=error)
            return PictureFailed(f"adapter {name} could not be loaded: {type(error).__name__}")
