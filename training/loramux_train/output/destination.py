"""Where an adapter is put on a shelf. Knows no tensors and no files."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Destination"]


@dataclass(frozen=True, slots=True)
class Destination:
    """name: on the shelf. server: HOST:PORT, or store: a folder; one of them. who: told to the audit log."""

    name: str
    server: str | None = None
    store: Path | None = None
    who: str | None = None

    @property
    def where(self) -> str:
        """In words."""
        return f"the server at {self.server}" if self.server is not None else f"the store {self.store}"
