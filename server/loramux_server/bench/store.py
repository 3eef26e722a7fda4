"""Publishing a small file (checks, conversion, three fsyncs, a catalog row) against hashing its bytes once; a large
one, and loading it; hostile headers; a catalog of many adapters: a page of it, and opening it."""

import hashlib
import itertools
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from loramux_server.bench import hostile, ingest
from loramux_server.bench.harness import Row, medians, ratio
from loramux_store.layout import known_layout
from loramux_store.paging import MAX_PAGE
from loramux_store.record import AcceptReport, AdapterRecord, MatchedModule, Page, UploadSpec
from loramux_store.report_json import report_to_json
from loramux_store.store import Store

_RANK = 64
_PAGE = 50
_SAID = "What owners write of an adapter is a sentence or two, as this is."
_MATCHED = tuple(
    MatchedModule(f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_{number}", "linear", 8, 8.0, 1.0)
    for number in range(20)
)


def measure(adapters: int = 100_000) -> list[Row]:
    """Files for Stable Diffusion 1.5's cross-attention and for SDXL, hostile ones; a catalog of so many adapters."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [
            _publishing(folder),
            *ingest.measure(folder),
            *hostile.measure(),
            *measure_listing(folder / "many", adapters),
        ]


def _publishing(folder: Path) -> Row:
    numbers = itertools.count()
    file = folder / "adapter.safetensors"
    with Store.open(folder / "store") as store:

        def publish() -> None:
            number = next(numbers)
            _write(file, number)
            published = store.publish(file, UploadSpec(name="bench"))
            assert published.created and published.version is not None and published.version.rank == _RANK

        def digest() -> str:
            _write(file, next(numbers))
            return hashlib.sha256(file.read_bytes()).hexdigest()

        value = ratio(publish, digest)
        return Row(f"publish / write and hash, {file.stat().st_size / 1e6:.1f} MB", value, "x")


def measure_listing(folder: Path, adapters: int) -> list[Row]:
    """Pages by name and time, the first and one half way; opening includes the first page."""
    Store.open(folder).close()
    _fill(folder, adapters)

    def start() -> None:
        with Store.open(folder) as store:
            assert len(store.list_adapters(_PAGE).items) == _PAGE

    with Store.open(folder) as store:
        newest = partial(store.list_adapters, order_by="update_time desc")
        pages = {
            "by name": partial(store.list_adapters, _PAGE),
            "by name, half way": partial(store.list_adapters, _PAGE, _token(store.list_adapters, adapters // 2)),
            "newest first, half way": partial(newest, _PAGE, _token(newest, adapters // 2)),
            "by kind and label": partial(store.list_adapters, _PAGE, filter="kind=lora labels.team=7"),
            "by a word that none has": partial(store.list_adapters, _PAGE, filter="none"),
        }
        assert [len(page().items) for page in pages.values()] == [_PAGE] * 4 + [0]
        taken = medians({**pages, "start": start})
    what = f"page of {_PAGE} of {adapters:,} adapters"
    listed = [Row(f"{what}, {name}", 1000 * taken[name], "ms", "<=20" if "word" not in name else "") for name in pages]
    return [*listed, Row(f"open a store of {adapters:,} adapters", taken["start"], "s", "<=2")]


def _token(listed: Callable[[int, str], Page[AdapterRecord]], after: int) -> str:
    token = ""
    for _ in range(0, after, MAX_PAGE):
        token = listed(min(after, MAX_PAGE), token).next_page_token
    return token


def _fill(folder: Path, adapters: int) -> None:
    """Rows of so many adapters, each of a version with a report of some kilobytes; no files."""
    report = AcceptReport("sd1", known_layout("sd1").digest, (), "kohya", _MATCHED, (), ())
    text, numbers = report_to_json(report), range(1, adapters + 1)
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]
    with closing(sqlite3.connect(folder / "catalog.sqlite3", isolation_level=None)) as catalog:
        catalog.execute("BEGIN IMMEDIATE")
        layout = known_layout("sd1")
        catalog.execute("INSERT INTO layouts VALUES (?, ?, ?, 0)", (layout.digest, layout.name, layout.to_json()))
        catalog.executemany("INSERT INTO blobs VALUES (?, 1000, 0)", ((digest,) for digest in digests))
        catalog.executemany(
            "INSERT INTO adapters (id, name, labels, trigger_words, description, latest, create_us, update_us, search) "
            "VALUES (?, ?, ?, '[]', ?, 1, ?, ?, ?)",
            (
                (n, f"adapter-{n * 7919 % adapters:06}", f'{{"team": "{n % 10}"}}', _SAID, n, n * 31 % adapters, _SAID)
                for n in numbers
            ),
        )
        catalog.executemany(
            "INSERT INTO versions (adapter_id, number, digest, blob_digest, layout_digest, kind, rank, device_bytes, "
            "bundled, notes, create_us) VALUES (?, 1, ?, ?, ?, 'lora', 8, 1000, '[]', '[[], \"\", \"\", \"\"]', ?)",
            ((n, digest, digest, layout.digest, n) for n, digest in zip(numbers, digests, strict=True)),
        )
        catalog.executemany("INSERT INTO version_details VALUES (?, 1, '{}', ?)", ((n, text) for n in numbers))
        catalog.execute("COMMIT")


def _write(file: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"unet.down_blocks.0.attentions.{i}.transformer_blocks.0.attn2.to_{part}.lora_{side}.weight": torch.randn(
            shape, generator=generator
        )
        for i in (0, 1)
        for part in "kv"
        for side, shape in (("A", (_RANK, 768)), ("B", (320, _RANK)))
    }
    save_file(tensors, file)
