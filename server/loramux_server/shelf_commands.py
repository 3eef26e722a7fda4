"""`loramux adapters check|export|merge|fsck|gc|backup|restore`: the store's tools, which need no running server.

Takes files, references and the store's folder; gives files and reports, and an exit status: 0 done, 1 failed, of check
3 refused, of fsck 4 something to mend and 5 something lost. It knows no wire, and imports torch last.
"""

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, ParamSpec

from cyclopts import Parameter

from loramux_client import terminal
from loramux_client.commands.adapter_tables import extent, say_beside
from loramux_client.sidecars import read_sidecars
from loramux_server.errors import LoraMuxError
from loramux_server.settings import Settings
from loramux_store import InterpretOptions, Layout, Store, back_up, known_layout
from loramux_store import restore as restore_backup
from loramux_store.errors import InvalidArgument, StoreError
from loramux_store.layout import known_layouts
from loramux_store.record import Finding
from loramux_store.verdict import Kind, Verdict, judge

P = ParamSpec("P")

REFUSED, TO_MEND, LOST = 3, 4, 5
_DAY_S = 24 * 3600.0
_WHERE_THERE_ARE_SOME = ("embeddings", "messages", "beside")  # keys of a verdict; all others are always there

Place = Annotated[Path | None, Parameter(name="--store", help="Folder of the store. Default: as of `loramux serve`.")]
Form = Annotated[
    Literal["kohya", "diffusers", "peft"], Parameter(help="kohya and diffusers are a file, peft is a folder.")
]
Out = Annotated[Path, Parameter(name=["--out", "-o"], help="What to write; nothing is replaced.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]


def _told(command: Callable[P, int]) -> Callable[P, int]:
    """Errors become one line and status 1."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return command(*args, **kwargs)
        except (StoreError, LoraMuxError) as error:
            terminal.complain(f"loramux: {error}")
        except ModuleNotFoundError as missing:
            if missing.name != "peft":
                raise
            terminal.complain("loramux: this method needs peft, which is not installed: pip install 'loramux[train]'")
        return 1

    return run


@_told
def check(
    file: Path,
    /,
    *,
    adapter_config: Path | None = None,
    family: Literal["sd1", "sd2", "sdxl"] | None = None,
    kind: Kind | None = None,
    base: str | None = None,
    json: Json = False,
) -> int:
    """Say whether a file would be taken, and what it is: exit status 0 if it would, 3 if not.

    No server and no store is asked: the file must fit Stable Diffusion 1, 2 or XL, or the base named. What a push would
    take from the files beside it is said too.

    Parameters
    ----------
    file
        A safetensors file.
    adapter_config
        The adapter_config.json that belongs to it.
    family
        What it must be for.
    kind
        What it must be.
    base
        Only this base: 'builtin', a folder in diffusers layout, or a hub id in Hugging Face's cache.
    """
    if base is not None and family is not None:
        raise InvalidArgument("--family", family, "none beside --base, which names the one layout there is")
    layouts = known_layouts() if base is None else (_layout_of(base),)
    wanted = known_layout(family) if family else layouts[0] if base is not None else None
    config = None if adapter_config is None else adapter_config.read_text("utf-8")
    verdict = judge(file, InterpretOptions(peft_config=config), layouts, wanted, kind)
    beside = read_sidecars(file) if verdict.verdict == "accepted" else None
    if json:
        said = {**asdict(verdict), "beside": beside if beside and (beside.said or beside.warnings) else None}
        terminal.say_json({name: value for name, value in said.items() if value or name not in _WHERE_THERE_ARE_SOME})
        return 0 if beside else REFUSED
    _say_verdict(file, verdict)
    if beside is not None:
        say_beside(beside)
    return 0 if beside else REFUSED


@_told
def export(ref: str, /, *, out: Out, form: Form = "kohya", store: Place = None) -> int:
    """Write a version for other programs, with exactly the same effect.

    Parameters
    ----------
    ref
        NAME or NAME@VERSION.
    """
    from loramux_store.forms.export import export as write

    with _opened(store) as shelf:
        for path in write(shelf, ref, form, out):
            terminal.say(str(path))
    return 0


@_told
def merge(
    *entries: str,
    out: Out,
    method: Literal["concat", "svd", "linear", "ties", "dare_ties", "dare_linear", "magnitude_prune"] = "concat",
    rank: int | None = None,
    density: float | None = None,
    majority_sign: Literal["total", "frequency"] = "total",
    seed: int = 0,
    form: Form = "kohya",
    store: Place = None,
) -> int:
    """Bake a blend into one file, for programs that cannot blend.

    Parameters
    ----------
    entries
        NAME[@VERSION]=WEIGHT, one or more.
    method
        concat is exact; svd the nearest of a rank; the others are PEFT's, and not the blend that the server draws.
    rank
        Of svd.
    density
        Part of the numbers that ties, dare_ties, dare_linear and magnitude_prune keep.
    majority_sign
        How ties and dare_ties elect a sign.
    seed
        Of the numbers that dare_ties and dare_linear drop.
    """
    from loramux_store.merging.entries import Method, parse_entry
    from loramux_store.merging.merge import merge as write

    how = Method(method, rank, density, majority_sign, seed)
    blend = [parse_entry(entry) for entry in entries]
    with _opened(store) as shelf:
        for path in write(shelf, blend, how, form, out):
            terminal.say(str(path))
    return 0


@_told
def fsck(
    *,
    full: Annotated[bool, Parameter(negative="")] = False,
    repair: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    store: Place = None,
) -> int:
    """Compare the catalog with the files: exit status 0 if all is well, 4 if --repair would mend it, 5 if data is lost.

    Safe beside a running server.

    Parameters
    ----------
    full
        Hash every file; else only its size and header are looked at.
    repair
        Make compiled files again, remove what no version needs, move damaged uploads to quarantine/ in the store.
    """
    with _opened(store) as shelf:
        found = shelf.fsck(full=full, repair=repair)
    if json:
        terminal.say_json([asdict(finding) for finding in found])
    else:
        _say_findings(found)
    left = [finding for finding in found if not finding.mended]
    return LOST if any(finding.lost for finding in left) else TO_MEND if left else 0


@_told
def gc(
    *,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    grace_days: float = 30.0,
    json: Json = False,
    store: Place = None,
) -> int:
    """Remove adapters that were deleted long ago, and files that no version needs. Safe beside a running server.

    Parameters
    ----------
    dry_run
        Only list what would be removed.
    grace_days
        Days for which a deleted adapter is kept.
    """
    with _opened(store) as shelf:
        gone = shelf.gc(grace_days * _DAY_S, dry_run=dry_run)
    if json:
        terminal.say_json({**asdict(gone), "bytes": gone.bytes, "dry_run": dry_run})
        return 0
    for name in gone.adapters:
        terminal.say(f"adapter  {name}")
    for path, size in gone.files:
        terminal.say(f"file     {path} ({terminal.size(size)})")
    verb = "would free" if dry_run else "freed"
    terminal.say(f"{verb} {terminal.size(gone.bytes)}: {len(gone.adapters)} adapters, {len(gone.files)} files")
    return 0


@_told
def backup(target: Annotated[Path, Parameter(help="Folder of the backup.")], /, *, store: Place = None) -> int:
    """Back up the store, also beside a running server. A later backup into the same folder copies what is new."""
    made = back_up(_place(store), target)
    copied = f"{made.new_blobs} of them copied, {terminal.size(made.new_bytes)}"
    terminal.say(f"backed up {made.adapters} adapters, {made.blobs} files ({copied}) to {target}")
    return 0


@_told
def restore(source: Annotated[Path, Parameter(help="Folder of the backup.")], /, *, store: Place = None) -> int:
    """Make a store of a backup, where there is none."""
    made = restore_backup(source, _place(store))
    terminal.say(f"restored {made.adapters} adapters, {made.blobs} files to {_place(store)}")
    return 0


def _place(place: Path | None) -> Path:
    return (Settings() if place is None else Settings(store=place)).store


@contextmanager
def _opened(place: Path | None) -> Generator[Store]:
    """The store there; none is made where there is none."""
    folder = _place(place)
    if not (folder / "catalog.sqlite3").is_file():
        raise InvalidArgument("--store", str(folder), "a folder with a catalog.sqlite3 in it")
    with Store.open(folder) as store:
        yield store


def _layout_of(base: str) -> Layout:
    from loramux_server.app import BUILTIN_FOLDER
    from loramux_server.engine.base_layout import read_layout
    from loramux_server.engine.load_base import find_base
    from loramux_server.settings import BUILTIN

    source, name = (BUILTIN_FOLDER / "base", BUILTIN) if base == BUILTIN else find_base(base)
    if not source.is_dir():
        raise InvalidArgument("--base", base, "a folder in diffusers layout")
    return read_layout(source, name)


def _say_verdict(file: Path, verdict: Verdict) -> None:
    if verdict.verdict == "refused":
        terminal.say(f"{file} would be refused")
        for text in verdict.evidence:
            terminal.say(f"  {text}")
        return
    terminal.say(f"{file} would be accepted: {verdict.family}")
    ranks = f", rank {', '.join(map(str, verdict.ranks))}" if verdict.ranks else ""
    if verdict.modules:
        terminal.say(f"  {', '.join(verdict.kinds)} on {verdict.modules} modules{ranks}")
    for embedding in verdict.embeddings:
        bundled = "; bundled with it" if verdict.modules else ""
        terminal.say(f"  embedding of {extent(embedding.vectors)}; acts where {embedding.trigger!r} stands{bundled}")
    for text in verdict.evidence:
        terminal.say(f"  because {text}")
    for key in verdict.ignored:
        terminal.say(f"  ignored {key}")
    for code, text in zip(verdict.warnings, verdict.messages, strict=True):
        terminal.complain(f"  warning: {code}: {text}")


def _say_findings(found: tuple[Finding, ...]) -> None:
    for finding in found:
        state = "mended" if finding.mended else "lost" if finding.lost else "can be mended"
        terminal.say(f"{finding.code:<18}{finding.subject}: {finding.detail} ({state})")
    count = "1 finding" if len(found) == 1 else f"{len(found)} findings"
    terminal.say(count if found else "all is well")
