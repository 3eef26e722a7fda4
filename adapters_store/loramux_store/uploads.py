"""The folder of uploads: which there are, who writes to them, how they ended.

An upload is `<key>.json`, what was announced, and `<key>.part`, the bytes so far. Of one that was
published `<key>.done` stays for a while, so that whoever missed the answer can ask for it. The key is
a hash of the id: what a client chose never becomes a path. A part is locked by its one writer, and the
lock goes with the writer's process.
Takes ids and specs; gives locked parts and what is known of them. Knows no formats and no catalog.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from loramux_store.disk import Disk
from loramux_store.errors import InvalidArgument, StoreError, UploadBusy, UploadNotFound, WrongOffset
from loramux_store.record import InterpretOptions, UploadSpec

__all__ = ["Ended", "Part", "Reserved", "Unfinished", "Uploads"]

_ID = re.compile(r"[A-Za-z0-9._-]{8,64}\Z")
_ID_RULE = "8 to 64 of A-Z a-z 0-9 . _ -, best a random UUID"


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What has come of an upload so far."""

    spec: UploadSpec
    received: int
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Ended:
    """Which version an upload became. digest: of the version; numbers begin again where gc has removed an adapter."""

    adapter: str
    number: int
    digest: str
    created: bool


@dataclass(frozen=True, slots=True)
class Reserved:
    """What unfinished uploads will need: how many they are, the bytes announced, those still to come."""

    uploads: int
    announced: int
    remaining: int


@dataclass(frozen=True, slots=True)
class Part:
    """An upload's bytes, locked until the handle is closed."""

    path: Path
    handle: BinaryIO


@dataclass(frozen=True, slots=True)
class _Files:
    part: Path
    spec: Path
    done: Path

    @classmethod
    def of(cls, folder: Path, key: str) -> _Files:
        return cls(*(folder / f"{key}.{kind}" for kind in ("part", "json", "done")))

    def touched(self) -> float:
        """Seconds since 1970 of the last write to any; 0 if there is none."""
        return max((_modified(path) for path in (self.part, self.spec, self.done)), default=0.0)


class Uploads:
    """The folder. An upload untouched for longer than idle_s is no upload any more."""

    def __init__(self, folder: Path, disk: Disk, idle_s: float) -> None:
        self._folder = folder
        self._disk = disk
        self._idle_s = idle_s
        self._door = threading.Lock()  # what is checked of the folder stays true until the upload is there
        self._held = set[Path]()  # parts with a writer here, also once the part has become a blob

    def open(self, upload_id: str, spec: UploadSpec, offset: int | None, check_room: Callable[[], None]) -> Part:
        """The part where it was left, or a new one where check_room raises nothing.

        offset: where the caller goes on; None where it will look.
        Raises: UploadBusy; WrongOffset; InvalidArgument where the id is none, or was begun with another spec.
        """
        files = self._files(upload_id)
        with self._door:
            part = self._lock(files, upload_id)
            try:
                before = None if files.done.exists() else _announced(files)
                if before is None:
                    self._begin(files, part, spec, offset, check_room)
                elif _to_json(before) != _to_json(spec):
                    raise InvalidArgument("upload_id", upload_id, "another one: it was begun with another spec")
                else:
                    _check_offset(offset, _size(files.part))
            except BaseException:
                part.handle.close()
                raise
            self._held.add(part.path)
        return part

    def leave(self, part: Part) -> None:
        """Let another writer have the part."""
        part.handle.close()
        self._held.discard(part.path)

    def find(self, upload_id: str) -> Unfinished | Ended:
        """What is known of an upload; UploadNotFound if nothing is."""
        files = self._files(upload_id)
        if (ended := _ended(files)) is not None:
            return ended
        if (announced := _announced(files)) is not None:
            expires = datetime.fromtimestamp(files.touched(), UTC) + timedelta(seconds=self._idle_s)
            return Unfinished(announced, _size(files.part), expires)
        raise UploadNotFound(upload_id)

    def remove(self, upload_id: str) -> None:
        """Throw away what came. UploadBusy while somebody writes to it, UploadNotFound if there is none."""
        self.find(upload_id)
        files = self._files(upload_id)
        with self._door, self._lock(files, upload_id).handle:
            self._remove(files)

    def end(self, upload_id: str, part: Part, ended: Ended | None) -> None:
        """Forget an upload, but remember how it ended, and let go of its part."""
        files = self._files(upload_id)
        try:
            with suppress(StoreError):  # then it expires; the version, if there is one, is safe
                if ended is not None:
                    self._write(files.done, json.dumps(asdict(ended)))
                self._remove(files, ended=ended is None)
        finally:
            self.leave(part)

    def reserved(self) -> Reserved:
        """What unfinished uploads will need."""
        count = announced = remaining = 0
        for path in self._folder.glob("*.json"):
            files = _Files.of(self._folder, path.stem)
            if (spec := _announced(files)) is not None:
                size, received = spec.size_bytes or 0, _size(files.part)
                count, announced, remaining = count + 1, announced + size, remaining + max(0, size - received)
        return Reserved(count, announced, remaining)

    def idle(self) -> dict[str, int]:
        """Uploads that have been idle for too long: bytes of each part, by the name of its file."""
        found = (_Files.of(self._folder, key) for key in {path.stem for path in self._folder.iterdir()})
        return {files.part.name: _size(files.part) for files in found if time.time() - files.touched() > self._idle_s}

    def expire(self) -> list[int]:
        """Remove what has been idle for too long and nobody holds; the bytes of each part."""
        gone: list[int] = []
        for name in self.idle():
            key = name.removesuffix(".part")
            files = _Files.of(self._folder, key)
            with suppress(UploadBusy), self._door, self._lock(files, key).handle:
                size = _size(files.part)
                self._remove(files)
                gone.append(size)
        return gone

    def _files(self, upload_id: str) -> _Files:
        if not _ID.match(upload_id):
            raise InvalidArgument("upload_id", upload_id, _ID_RULE)
        return _Files.of(self._folder, hashlib.sha256(upload_id.encode()).hexdigest()[:32])

    def _lock(self, files: _Files, upload_id: str) -> Part:
        if files.part in self._held:
            raise UploadBusy(upload_id)
        handle = self._disk.open_part(files.part)
        if self._disk.lock(handle) and _is_at(handle, files.part):
            return Part(files.part, handle)
        handle.close()
        raise UploadBusy(upload_id)

    def _begin(
        self, files: _Files, part: Part, spec: UploadSpec, offset: int | None, check_room: Callable[[], None]
    ) -> None:
        try:
            _check_offset(offset, 0)
            check_room()
            self._disk.truncate(part.handle)  # of a beginning that a crash cut off
            if files.done.exists():
                self._disk.remove(files.done)
            self._write(files.spec, _to_json(spec))
        except BaseException:
            with suppress(StoreError):
                self._disk.remove(files.part)
            raise

    def _write(self, path: Path, text: str) -> None:
        """Whole or not at all."""
        draft = path.with_name(f"{uuid.uuid4().hex}.part")
        try:
            with self._disk.create(draft) as handle:
                self._disk.write(handle, text.encode())
                self._disk.sync(handle)
            self._disk.rename(draft, path)
        except BaseException:
            with suppress(StoreError):
                self._disk.remove(draft)
            raise

    def _remove(self, files: _Files, *, ended: bool = True) -> None:
        """The spec first: without it there is no upload."""
        for path in (files.spec, files.part, *([files.done] if ended else [])):
            self._disk.remove(path)


def _check_offset(offset: int | None, received: int) -> None:
    if offset is not None and offset != received:
        raise WrongOffset(offset, received)


def _to_json(spec: UploadSpec) -> str:
    return json.dumps(asdict(spec), sort_keys=True)


def _announced(files: _Files) -> UploadSpec | None:
    """What was announced; None where nothing was, or by a release that announced other things."""
    if (text := _read(files.spec)) is None:
        return None
    try:
        body: dict[str, Any] = json.loads(text)
        body["options"] = InterpretOptions(**body["options"])
        body["trigger_words"] = tuple(body["trigger_words"])
        return UploadSpec(**body)
    except (ValueError, TypeError, KeyError):
        return None


def _ended(files: _Files) -> Ended | None:
    """How an upload ended; None where it has not, or by a release that told other things."""
    try:
        return Ended(**json.loads(_read(files.done) or ""))
    except (ValueError, TypeError):
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_at(handle: BinaryIO, path: Path) -> bool:
    """Whether the path still means the open file: its last writer may have finished meanwhile."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.lstat())
    except FileNotFoundError:
        return False
