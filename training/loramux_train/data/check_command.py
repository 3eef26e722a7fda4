"""`loramux train check FOLDER`: what a run would learn from, before it starts.

Takes folders and the data settings as options, or settings from elsewhere; gives a report, a sheet, and an exit status:
0 a run would start, 1 failed, 2 misused, 3 a run would be refused. Needs no model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from loramux_client import terminal
from loramux_train.data.captions import CountTokens
from loramux_train.data.notes import Note
from loramux_train.data.report import Report, report
from loramux_train.data.survey import Survey, survey
from loramux_train.data_settings import DataSettings

READY, MISUSED, REFUSED = 0, 2, 3

_TAGS, _TAG_LETTERS = 10, 60  # that are shown, of each

Yes = Parameter(negative="")


def check(
    *folders: Path,
    resolution: int = 512,
    batch_size: int = 4,
    caption: str | None = None,
    repeats: int | None = None,
    trigger: str | None = None,
    caption_extension: Annotated[list[str] | None, Parameter(negative="")] = None,
    caption_column: str = "text",
    caption_lines: Literal["one", "each"] = "one",
    shuffle: Annotated[bool, Yes] = False,
    keep_tags: int = 0,
    flip: Annotated[bool, Yes] = False,
    no_buckets: Annotated[bool, Yes] = False,
    no_upscale: Annotated[bool, Yes] = False,
    masks: Literal["none", "files", "alpha"] = "none",
    prior: Path | None = None,
    prior_prompt: str | None = None,
    validation_share: float = 0.0,
    seed: int = 0,
    skip_broken: Annotated[bool, Yes] = False,
    base: Path | None = None,
    json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False,
    sheet: Path | None = None,
) -> int:
    """Say what would be trained on, and whether a run would start: exit status 0 if it would, 3 if not.

    Parameters
    ----------
    folders
        Folders of pictures, with all folders in them.
    resolution
        Edge of the square whose area no picture exceeds, in pixels.
    batch_size
        Pictures of a batch.
    caption
        Caption of pictures that have none.
    repeats
        Uses of each picture in an epoch. Default: N of a folder N_name, else 1.
    trigger
        Word put for [trigger], and before captions that lack it.
    caption_extension
        Ending of caption files; repeatable. Default: .txt, .caption.
    caption_column
        Column of captions in metadata.jsonl and metadata.csv.
    caption_lines
        Whether a caption file is one caption, or each of its lines is.
    shuffle
        Shuffle tags.
    keep_tags
        Tags that stay in front when shuffled.
    flip
        Mirror uses at even odds.
    no_buckets
        Crop all pictures to squares.
    no_upscale
        Leave small pictures small.
    masks
        Where masks are.
    prior
        Folder of class pictures.
    prior_prompt
        Caption of class pictures that have none.
    validation_share
        Share of pictures kept out of training.
    seed
        Of every random choice.
    skip_broken
        Go on without pictures that cannot be read.
    base
        A base in diffusers layout, whose tokenizer counts tokens. Default: the fewest there can be are told.
    sheet
        Write a picture of every picture as it is trained on.
    """
    told: dict[str, Any] = {
        "folders": [{"path": folder, "repeats": repeats, "caption": caption} for folder in folders],
        "resolution": resolution,
        "batch_size": batch_size,
        "trigger": trigger,
        "caption_column": caption_column,
        "caption_lines": caption_lines,
        "shuffle": shuffle,
        "keep_tags": keep_tags,
        "flip": flip,
        "buckets": not no_buckets,
        "upscale": not no_upscale,
        "masks": masks,
        "prior": None if prior is None else {"folder": prior, "prompt": prior_prompt},
        "validation_share": validation_share,
        "seed": seed,
        "skip_broken": skip_broken,
    }
    if caption_extension:
        told["caption_extensions"] = caption_extension
    try:
        settings = DataSettings.model_validate(told)
    except ValidationError as wrong:
        for line in what_is_wrong(wrong):
            terminal.complain(f"loramux: {line}")
        return MISUSED
    return tell(settings, None if base is None else tokens_of(base), json=json, sheet=sheet)


def what_is_wrong(wrong: ValidationError) -> list[str]:
    """A line for each field: its name, what was expected, what it is."""
    return [
        f"{'.'.join(map(str, error['loc'])) or 'data'}: {error['msg']} (is {error['input']!r})"
        if error["loc"]
        else error["msg"].removeprefix("Value error, ")
        for error in wrong.errors()
    ]


def tell(settings: DataSettings, count_tokens: CountTokens | None, *, json: bool, sheet: Path | None) -> int:
    """Survey, print and draw; the exit status. OSError if the sheet cannot be written."""
    found = _surveyed(settings, count_tokens)
    made = report(found)
    if sheet is not None and found.pictures and made.pictures:
        from loramux_train.data.trained_sheet import trained_sheet

        trained_sheet(found).save(sheet)
    if json:
        terminal.say_json(made)
    else:
        _say(made, found.notes)
    return READY if made.verdict == "ready" else REFUSED


def tokens_of(base: Path) -> CountTokens:
    """Counts with the tokenizer of a base, start and end left out."""
    from transformers import CLIPTokenizer

    folder = base / "tokenizer" if (base / "tokenizer").is_dir() else base
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return lambda caption: len(tokenizer(caption, add_special_tokens=False, verbose=False)["input_ids"])


def _surveyed(settings: DataSettings, count_tokens: CountTokens | None) -> Survey:
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
