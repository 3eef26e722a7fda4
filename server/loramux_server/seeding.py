"""The built-in adapters on a shelf that is new.

Takes a store and a folder of files; gives nothing. It knows no base.
"""

from pathlib import Path

import structlog

from loramux_store.header import read_container
from loramux_store.record import UploadSpec
from loramux_store.store import Store

_log = structlog.stdlib.get_logger(__name__)


def seed(store: Store, folder: Path, marker: Path) -> None:
    """Puts a folder's adapters on an empty shelf, once: `marker` is written when all of them are there.

    A shelf with only some of them and no marker is one whose seeding was cut off; it is finished.
    """
    files = {file.stem: file for file in sorted(folder.glob("*.safetensors"))}
    shelf = {record.name for record in store.list_adapters(len(files) + 1, "").items}
    if marker.exists() or not shelf <= files.keys():
        return
    for name in files.keys() - shelf:
        metadata = read_container(files[name]).metadata
        trigger = metadata.get("modelspec.trigger_phrase")
        store.publish(
            files[name],
            UploadSpec(
                name=name,
                trigger_words=(trigger,) if trigger else (),
                description=metadata.get("modelspec.description", ""),
            ),
        )
        _log.info("seeded", adapter=name)
    marker.touch()
