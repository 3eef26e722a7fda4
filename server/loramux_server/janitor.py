"""Keeps the store free of what crashes and abandoned uploads leave.

Takes the store; checks its catalog once at the start, and removes leftovers then and every so often, on a thread of its
own, and counts both. It knows no requests.
"""

import asyncio
import contextlib

import structlog

from loramux_server.metrics import Metrics
from loramux_store.errors import StoreError
from loramux_store.store import Store

PERIOD_S = 600.0
_log = structlog.stdlib.get_logger(__name__)


async def keep_clean(store: Store, metrics: Metrics, stop: asyncio.Event, period_s: float = PERIOD_S) -> None:
    """Until `stop`. A disk that fails is told in the log, and tried again the next time."""
    await _check(store, metrics)
    while not stop.is_set():
        try:
            gone = await asyncio.to_thread(store.reclaim)
        except (StoreError, OSError) as error:
            _log.error("leftovers could not be reclaimed", error=str(error))
        else:
            metrics.reclaimed_bytes.inc(gone.bytes)
            if gone.files:
                _log.info("reclaimed", files=gone.files, bytes=gone.bytes)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=period_s)


async def _check(store: Store, metrics: Metrics) -> None:
    """The catalog alone: a server starts and serves meanwhile, and what is damaged may never be asked for."""
    try:
        faults = await asyncio.to_thread(store.catalog_faults)
    except (StoreError, OSError) as error:
        faults = [str(error)]
    metrics.catalog_faults.set(len(faults))
    for fault in faults:
        _log.error("the catalog is damaged", fault=fault)
