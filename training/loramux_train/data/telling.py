"""What a run would learn from, told before it starts.

Takes settings; prints a report, draws a sheet, and gives an exit status: 0 a run would start, 3 it would be refused.
Needs no model.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from loramux_client import terminal
from loramux_train.data.captions import CountTokens
from loramux_train.data.notes import Note
from loramux_train.data.report import Report, report
from loramux_train.data.survey import Survey, survey
from loramux_train.data_settings import DataSettings
from loramux_train.errors import BadSetting

READY, REFUSED = 0, 3

_TAGS, _TAG_LETTERS = 10, 60  # that are shown, of each


def tell(found: Survey, refusals: Sequence[str], *, json: bool, sheet: Path | None) -> int:
    """Print and draw; the exit status. refusals: why a run would not start, besides what the survey says. OSError if
    the sheet cannot be written."""
    refused = tuple(Note("error", "run", reason) for reason in refusals)
    made = report(found, refused)
    if sheet is not None and found.pictures and made.pictures:
        from loramux_train.data.trained_sheet import trained_sheet

        trained_sheet(found).save(sheet)
    if json:
        terminal.say_json(made)
    else:
        _say(made, (*refused, *found.notes))
    return READY if made.verdict == "ready" else REFUSED


def check_sheet(sheet: Path) -> None:
    """Whether the sheet could be written there, asked before pictures are read. BadSetting where not."""
    kind = Image.registered_extensions().get(sheet.suffix.lower())
    if kind not in Image.SAVE:
        raise BadSetting(
            f"--sheet {sheet}: {sheet.suffix or 'no ending'} is no kind of picture; expected .png, .jpg or another "
            "that Pillow writes"
        )
    if not sheet.absolute().parent.is_dir():
        raise BadSetting(f"--sheet {sheet}: there is no folder {sheet.absolute().parent}")


def surveyed(settings: DataSettings, count_tokens: CountTokens | None) -> Survey:
    """With a bar while pictures are read."""
    with terminal.progress(TextColumn("reading"), BarColumn(), MofNCompleteColumn()) as bar:
        task = bar.add_task("reading")
        return survey(settings, count_tokens, lambda done, of: bar.update(task, completed=done, total=of))


def _say(made: Report, notes: Sequence[Note]) -> None:
    for note in notes:
        terminal.say(f"{note.weight}: {note.line()}")
    if made.folders:
        columns = ("folder", "for", "pictures", "repeats", "uses an epoch")
        rows = [(f.folder, f.kind, str(f.pictures), str(f.repeats), str(f.uses or "-")) for f in made.folders]
        terminal.say_table(columns, rows)
    if made.buckets:
        rows = [(f"{b.width}x{b.height}", str(b.pictures), str(b.uses), str(b.batches)) for b in made.buckets]
        terminal.say_table(("bucket", "pictures", "uses", "batches"), rows)
    if made.tags:
        shown = ", ".join(f"{_short(tag)} ({count})" for tag, count in list(made.tags.items())[:_TAGS])
        terminal.say(f"tags: {shown}" + (f" and {len(made.tags) - _TAGS} more" if len(made.tags) > _TAGS else ""))
    captions = f"{made.own_captions} with captions of their own, {made.folder_captions} with the folder's"
    terminal.say(f"pictures: {made.pictures} to train on, {captions}; {made.class_pictures} of the class")
    terminal.say(f"validation: {made.validation_pictures}")
    terminal.say(f"steps an epoch: {made.steps_per_epoch}, of up to {made.batch_size} pictures")
    terminal.say(f"verdict: {made.verdict}")


def _short(tag: str) -> str:
    return tag if len(tag) <= _TAG_LETTERS else tag[: _TAG_LETTERS - 1] + "…"
