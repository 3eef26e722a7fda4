"""A disk that stops, as when the machine loses its power.

Takes how many operations it does before; gives a Disk for `Store.open`. Knows no store.
"""

import contextlib
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
from sqlalchemy import event

from loramux_store.disk import Disk

__all__ = ["POINTS", "FailingDisk", "PowerCut"]

POINTS = (
    "create",
    "open_part",
    "truncate",
    "write",
    "sync",
    "publish",
    "make_folder",
    "rename",
    "sync_folder",
    "remove",
)


class PowerCut(BaseException):
    """The machine stops; nothing after it runs."""


class FailingDisk(Disk):
    """Stops before its n-th operation, a commit of the catalog among them, and does nothing from then on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after
        self.done: list[str] = []

    def step(self, name: str) -> None:
        if self.left <= 0:
            raise PowerCut(name)
        self.left -= 1
        self.done.append(name)

    def sync(self, handle: BinaryIO) -> None:
        """Counted, not done: here nothing reads what a disk lost. test_write_order.py has the order."""

    def sync_folder(self, folder: Path) -> None:
        """As sync."""

    @contextlib.contextmanager
    def with_commits(self) -> Any:
        """Counts commits as well."""

        def commit(_: sa.Connection) -> None:
            self.step("commit")

        event.listen(sa.Engine, "commit", commit)
        try:
            yield
        finally:
            event.remove(sa.Engine, "commit", commit)


def _guarded(name: str) -> Any:
    def operation(self: FailingDisk, *args: Any) -> Any:
        self.step(name)
        return done(self, *args)

    done = vars(FailingDisk).get(name, getattr(Disk, name))
    return operation


for _name in POINTS:
    setattr(FailingDisk, _name, _guarded(_name))
