"""Uploads that are killed, again and again, to be run as a process of its own: FOLDER FILE ACKNOWLEDGED ROUNDS.

Each round forks a process that goes on where the one before was killed: upload after upload, every one another file
under an id of its own, each noted in ACKNOWLEDGED once the store has said what it became.
"""

import importlib
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

from loramux_store import Store, Unfinished, UploadSpec
from loramux_store.errors import NotFound, UploadNotFound


def content(file: Path, number: int) -> bytes:
    """The file with another last value."""
    return file.read_bytes()[:-4] + struct.pack("<f", 1.0 + number)


def upload(store: Store, data: bytes, upload_id: str) -> int:
    """The number of the version that it became, now or before this process began."""
    try:
        found = store.find_upload(upload_id)
    except UploadNotFound:
        pass
    else:
        if not isinstance(found, Unfinished):
            return found.version.number
    with store.begin_upload(UploadSpec(name="x", size_bytes=len(data)), upload_id) as going:
        while chunk := data[going.received : going.received + 300]:
            going.write(chunk)
        return going.commit().version.number


def check(store: Store) -> None:
    """What the process before this one made last is whole, before anybody could heal it."""
    try:
        version = store.resolve("x")
    except NotFound:
        return
    assert sum(map(len, store.read_blob(version))) == version.size_bytes
    assert store._shelf.compiled_file(version.layout_digest, version.digest).exists()


def work(store: Store, file: Path, acknowledged: Path) -> None:
    with acknowledged.open("a") as notes:
        for number in range(len(acknowledged.read_text().split()), 10**6):
            print(upload(store, content(file, number), f"upload-{number:08}"), file=notes, flush=True)


def start(folder: Path, file: Path, acknowledged: Path) -> int:
    """A process that has opened the store and is about to upload."""
    hears, tells = os.pipe()
    child = os.fork()
    if not child:
        with Store.open(folder) as store:
            check(store)
            os.write(tells, b"!")
            work(store, file, acknowledged)
        os._exit(1)
    os.close(tells)
    assert os.read(hears, 1), "the store was not whole"
    os.close(hears)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended by itself"


def main(folder: Path, file: Path, acknowledged: Path, rounds: int) -> None:
    for module in ("loramux_store.formats.convert", "alembic.command"):  # else each process would import them anew
        importlib.import_module(module)
    acknowledged.touch()
    child, begun = start(folder, file, acknowledged), time.monotonic()
    while not acknowledged.stat().st_size:
        time.sleep(0.001)
    one_upload, times = time.monotonic() - begun, random.Random(rounds)
    kill(child)
    for _ in range(rounds):
        child = start(folder, file, acknowledged)
        time.sleep(times.uniform(0, 1.5 * one_upload))
        kill(child)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
