"""Where the bytes of a download go.

Takes: a path; a version and then chunks. Gives: the file, once all its bytes are there and have the
version's sha256; until then there is only a file of another name beside it. Does not know which call
brings the bytes.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from hashlib import sha256
from os import PathLike
from pathlib import Path
from types import TracebackType

from loramux_client.errors import DataLoss
from loramux_client.shelf import AdapterVersion, Progress


class Target:
    """A context manager: on leaving it without `finish` nothing stays."""

    def __init__(self, path: str | PathLike[str], progress: Progress | None) -> None:
        self._path = Path(path)
        self._draft = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}.partial")
        self._progress = progress
        self._digest = sha256()
        self.received = 0
        self.version: AdapterVersion | None = None

    def __enter__(self) -> Target:
        self._file = self._draft.open("xb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        with suppress(FileNotFoundError):
            self._draft.unlink()

    def source(self, adapter: str) -> str:
        """What to ask for: as said, or, once it is known, the version that the first bytes are of."""
        return adapter if self.version is None else f"{self.version.adapter}@{self.version.number}"

    def take(self, item: AdapterVersion | bytes) -> None:
        """Notes the version or appends a chunk."""
        if isinstance(item, AdapterVersion):
            if self.version is not None and self.version.blob_digest != item.blob_digest:
                raise DataLoss(f"{item.adapter}@{item.number} is another file than before the break")
            self.version = item
            return
        self._file.write(item)
        self._digest.update(item)
        self.received += len(item)
        if self._progress is not None and self.version is not None:
            self._progress(self.received, self.version.size_bytes)

    def finish(self) -> AdapterVersion:
        """Gives the file its name, replacing what had it.

        Raises: DataLoss where the bytes are not those of the version.
        """
        version, found = self.version, self._digest.hexdigest()
        if version is None or found != version.blob_digest:
            expected = "none" if version is None else f"{version.blob_digest} of {version.size_bytes}"
            raise DataLoss(f"{self.received} bytes with sha256 {found} came, expected {expected} bytes")
        self._file.close()
        os.replace(self._draft, self._path)
        return version
