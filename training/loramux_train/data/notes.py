"""What is to be told of a folder: notes of three weights, and the error a run stops with.

Takes what was found; gives lines that name files and say what to do. Knows not who finds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loramux_train.errors import TrainError

Weight = Literal["error", "warning", "info"]

SHOWN = 5  # names a line shows before it counts the rest


@dataclass(frozen=True, slots=True)
class Note:
    """One thing to tell: a word for programs, the sentence, and the files it is about."""

    weight: Weight
    code: str
    text: str
    paths: tuple[Path, ...] = ()

    def line(self) -> str:
        """The sentence, with the first names."""
        if not self.paths:
            return self.text
        names = ", ".join(str(path) for path in self.paths[:SHOWN])
        rest = len(self.paths) - SHOWN
        return f"{self.text}: {names}" + (f" and {rest} more" if rest > 0 else "")


class DataError(TrainError):
    """Training data that no run may start with. `notes` are its reasons, all of them."""

    def __init__(self, notes: tuple[Note, ...]) -> None:
        self.notes = notes
        super().__init__("\n".join(note.line() for note in notes))


class Notes:
    """Collects notes; files with the same fault become one note."""

    def __init__(self) -> None:
        self._paths: dict[tuple[Weight, str, str], dict[Path, None]] = {}

    def tell(self, weight: Weight, code: str, text: str, *paths: Path) -> None:
        """One more note, or more files of one."""
        self._paths.setdefault((weight, code, text), {}).update(dict.fromkeys(paths))

    def collected(self) -> tuple[Note, ...]:
        """Errors first, then warnings, then the rest."""
        order = ("error", "warning", "info")
        notes = [Note(*key, tuple(paths)) for key, paths in self._paths.items()]
        return tuple(sorted(notes, key=lambda note: order.index(note.weight)))
