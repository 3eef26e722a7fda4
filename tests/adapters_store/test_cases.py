"""Every case of formats.md section 4, and one for each rule of sections 1 to 3 that has none there: one table.

The rows lie in the modules cases_of_*: a file, and what must become of it. What is accepted is held against float64
algebra, what is refused against its reason and the key at fault, and the store keeps nothing of it. A case that takes
more than one file names the test that has it.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import adapter_files as af
import pytest
import torch
from cases import Accepted, Case, Elsewhere, Refusal, Rows
from cases_of_containers import CONTAINERS
from cases_of_embeddings import EMBEDDINGS
from cases_of_kinds import DECOMPOSED, FOREIGN, KINDS
from cases_of_loras import NAMES, SCALES
from cases_of_models import MODELS
from torch import Tensor

from loramux_store import InterpretOptions, Published, Store, UploadSpec
from loramux_store.errors import InvalidArgument, Refused

TABLES = (NAMES, SCALES, KINDS, DECOMPOSED, FOREIGN, MODELS, EMBEDDINGS, CONTAINERS)
ROWS: Rows = {name: row for table in TABLES for name, row in table.items()}
HERE = {name: row for name, row in ROWS.items() if not isinstance(row, Elsewhere)}

SECTION_4 = {
    *("N2", "N4", "N6", "N8", "N10", "N12", "N14", "N16", "N18"),
    *("Z1", "A2", "A4", "A6", "A8", "A10", "A12", "A14", "A16", "A18", "A20"),
    *("C2", "C4", "C6", "C8", "C10", "C12", "C14", "C16", "C18"),
    *("D2", "D4", "D6", "D8", "D10", "B2", "B4", "B6", "B8", "B10"),
    *("T2", "T4", "T6", "T8", "T10", "T12", "T14"),
    *("H2", "H4", "H6", "H8", "H10", "H12", "H14", "H16", "H18", "H20", "H22", "H24"),
    *("X2", "X4", "X6", "X8", "X10", "X12", "X14", "X16"),
}

# A factor made of others is rounded to float32 once: half an ulp, 6e-8, for each of a few factors. Others are kept.
ROUNDED = 6e-7

ROOT = Path(__file__).parents[2]


def spec_of(case: Case) -> UploadSpec:
    options = InterpretOptions(peft_config=case.config, alpha=case.alpha, trigger=case.trigger)
    return UploadSpec("adapter", layout=case.layout, options=options)


def file_of(case: Case, folder: Path) -> Path:
    file = folder / "a.safetensors"
    if isinstance(case.content, bytes):
        file.write_bytes(case.content)
        return file
    return af.write(file, case.content, case.metadata)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Store]]:
    """One for what is accepted, one for what is refused, which so stays empty."""
    folder = tmp_path_factory.mktemp("cases")
    with Store.open(folder / "accepted") as accepting, Store.open(folder / "refused") as refusing:
        for layout in af.TOYS:
            accepting.register_layout(layout)
            refusing.register_layout(layout)
        yield accepting, refusing


@pytest.mark.parametrize("name", HERE)
def test_case(stores: tuple[Store, Store], tmp_path: Path, name: str) -> None:
    accepting, refusing = stores
    case = HERE[name]()
    file, spec = file_of(case, tmp_path), spec_of(case)
    if isinstance(case.becomes, Accepted):
        check_accepted(accepting, accepting.publish(file, spec), case.becomes)
        return
    with pytest.raises(Refused) as caught:
        refusing.publish(file, spec)
    check_refused(caught.value, case.becomes)
    assert refusing.list_adapters(10).items == () and refusing.stats().blobs == 0
    assert not list(refusing._shelf.uploads.iterdir())


def check_refused(refused: Refused, expected: Refusal) -> None:
    assert refused.reason == expected.reason, str(refused)
    assert refused.detail.get("key") == expected.key, refused.detail
    assert expected.says in f"{refused} {refused.detail}"


def check_accepted(store: Store, published: Published, expected: Accepted) -> None:
    version, report = published.version, published.report
    assert version is not None
    assert report.layout_name == expected.layout
    assert tuple(warning.partition(":")[0] for warning in report.warnings) == expected.warnings
    assert tuple(key for key, _ in report.ignored) == expected.ignored
    assert all(why for _, why in report.ignored)
    assert expected.evidence in " ".join(report.evidence)
    bundled = {embedding.trigger for embedding in report.bundled}
    assert bundled == expected.bundled.keys()
    if bundled:
        check_vectors(af.compiled_vectors(store.compiled(version)), expected.bundled)
    if expected.vectors:
        check_embedding(store, published, expected)
        return
    layout = store.layout(version.layout_digest)
    same(af.compiled_delta(store.compiled(version), layout), expected.deltas)
    _, parts = af.compiled_parts(store.compiled(version))
    same({path: found["bias"] for path, found in parts.items() if "bias" in found}, expected.biases)
    same({path: found["m"] for path, found in parts.items() if "m" in found}, expected.magnitudes)
    modules = {module.module: module for module in report.matched}
    assert {path: module.axis for path, module in modules.items() if module.axis} == expected.axes
    for path, scale in expected.scales.items():
        assert modules[path].scale == pytest.approx(scale, rel=1e-15)


def check_embedding(store: Store, published: Published, expected: Accepted) -> None:
    assert published.version is not None and published.report.embedding is not None
    assert published.report.embedding.trigger == expected.trigger
    compiled = af.compiled_vectors(store.compiled(published.version))
    check_vectors(compiled, {published.report.embedding.trigger: expected.vectors})


def check_vectors(got: dict[str, dict[str, Tensor]], wanted: Mapping[str, Mapping[str, Tensor]]) -> None:
    assert {trigger: set(each) for trigger, each in got.items()} == {name: set(each) for name, each in wanted.items()}
    for trigger, by_encoder in wanted.items():
        for encoder, vectors in by_encoder.items():
            assert torch.equal(got[trigger][encoder], vectors.float())


def same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for path, delta in wanted.items():
        assert (got[path] - delta).norm() <= ROUNDED * delta.norm(), path


# -- the table is whole ---------------------------------------------------------------------------


def test_the_table_has_every_case_of_section_4_and_no_other_id() -> None:
    found = {match[1] for name in ROWS if (match := re.match(r"([NZACDBTHX]\d+) ", name))}
    assert found == SECTION_4
    assert len(ROWS) == sum(len(table) for table in TABLES), "two rows of one name"


def test_no_two_rows_are_the_same_file() -> None:
    made = [row() for row in HERE.values()]
    prints = Counter(
        (case.content if isinstance(case.content, bytes) else _print(case.content), case.becomes, str(case.metadata),
         case.layout, case.config, case.alpha, case.trigger)
        for case in made
        if isinstance(case.becomes, Refusal)
    )  # fmt: skip
    assert [print_[1] for print_, count in prints.items() if count > 1] == []


def _print(content: dict[str, Tensor]) -> str:
    return str([(name, tensor.dtype, tensor.shape) for name, tensor in content.items()])


def test_the_tests_that_rows_name_exist() -> None:
    for row in ROWS.values():
        if isinstance(row, Elsewhere):
            file, _, test = row.test.partition("::")
            assert f"def {test}(" in (ROOT / file).read_text("utf-8"), row.test


def test_every_reason_in_the_code_is_the_reason_of_some_row() -> None:
    """Also every foreign kind, family and container that the code knows by name."""
    from loramux_store import sniff
    from loramux_store.formats import foreign, leaf

    reasons = set(_reasons())
    given = {case.becomes.reason for row in HERE.values() if isinstance((case := row()).becomes, Refusal)}
    tested_elsewhere = {"kind_mismatch"}  # of a verdict: no file has it by itself
    exact = {reason for reason in reasons if not reason.endswith(":")}
    assert len(exact) > 35 and exact - given - tested_elsewhere == set()
    kinds = {*foreign._MESSAGES, *leaf._KINDS.values()}
    families = {family for family, *_ in foreign._FAMILIES}
    containers = {*sniff._CONTAINERS.values(), "onnx"}
    prefixed = {"unsupported_kind:": kinds, "unsupported_family:": families, "unsupported_container:": containers}
    assert {reason for reason in reasons if reason.endswith(":")} == prefixed.keys()
    assert {prefix + name for prefix, names in prefixed.items() for name in names} - given == set()


def _reasons() -> Iterator[str]:
    """The first argument of every Refused in the code; of one that is put together, how it begins."""
    for file in (ROOT / "adapters_store" / "loramux_store").rglob("*.py"):
        for function in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            chosen = {
                target.id: node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refused":
                    first = node.args[0]
                    yield from _words(chosen.get(first.id, first) if isinstance(first, ast.Name) else first)


def _words(reason: ast.expr) -> Iterator[str]:
    match reason:
        case ast.Constant(value=str(word)):
            yield word
        case ast.IfExp(body=body, orelse=orelse):
            yield from _words(body)
            yield from _words(orelse)
        case ast.JoinedStr(values=[ast.Constant(value=str(word)), *_]):
            yield word
        case _:
            raise AssertionError(f"no reason can be read from line {reason.lineno}")


# -- cases of more than one file ------------------------------------------------------------------


def test_nothing_can_unpickle() -> None:
    """H16: what could is not even named in what a server runs."""
    rooms = ("adapters_store", "server", "client", "kernels", "proto")
    sources = [file for room in rooms for file in (ROOT / room).rglob("*.py")]
    assert len(sources) > 100
    unpickling = re.compile(r"torch\.load\(|^\s*(import|from) (pickle|joblib|dill|shelve)\b", re.MULTILINE)
    assert [str(file) for file in sources if unpickling.search(file.read_text("utf-8"))] == []


def test_a_pickle_beside_a_broken_file_is_not_looked_at(store: Store, tmp_path: Path) -> None:
    """H24."""
    ran = tmp_path / "ran"
    hostile = b"cposix\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR."
    for name in ("a.bin", "a.pt", "pytorch_lora_weights.bin"):
        (tmp_path / name).write_bytes(hostile)
    (tmp_path / "a.safetensors").write_bytes(af.raw_container({"a": {}}, b"")[:-1])
    with pytest.raises(Refused):
        store.publish(tmp_path / "a.safetensors", UploadSpec("a"))
    assert not ran.exists() and store.stats().blobs == 0


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("not json", InvalidArgument),
        ("[" * 100_000, InvalidArgument),
        ("[]", InvalidArgument),
        ('{"lora_alpha": NaN}', InvalidArgument),
        ('{"lora_alpha": "8"}', InvalidArgument),
        ('{"lora_alpha": true}', InvalidArgument),
        ('{"alpha_pattern": {"(a+)+": 1}}', InvalidArgument),  # could backtrack for ever
        ('{"alpha_pattern": {"a.*b.*c.*d": 1}}', InvalidArgument),
        ('{"use_dora": "yes"}', InvalidArgument),
        ('{"peft_type": "IA3"}', Refused),
    ],
)
def test_configs_that_cannot_be_followed(store: Store, config: str, error: type[Exception]) -> None:
    """Said before any byte is taken."""
    with pytest.raises(error):
        store.begin_upload(UploadSpec("x", options=InterpretOptions(peft_config=config)))
    assert list(store._shelf.uploads.iterdir()) == []


def test_network_file_systems_are_refused(tmp_path: Path) -> None:
    from loramux_store.disk import refuse_network
    from loramux_store.errors import UnsafeFilesystem

    mounts = tmp_path / "mountinfo"
    line = "1 0 0:1 / {} rw - {} x rw\n"
    mounts.write_text(line.format("/", "ext4") + line.format(tmp_path, "nfs4"))
    with pytest.raises(UnsafeFilesystem, match="nfs4"):
        refuse_network(tmp_path / "store", mounts)
    mounts.write_text(line.format("/", "nfs4") + line.format(tmp_path, "ext4"))
    refuse_network(tmp_path / "store", mounts)


def test_listing_imports_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, pathlib; from loramux_store import Store\n"
        f"with Store.open(pathlib.Path({str(tmp_path / 's')!r})) as s: s.list_adapters(5), s.stats()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_reason_is_documented() -> None:
    """In docs/errors.md; of a reason that is put together, how it begins."""
    documented = (ROOT / "docs" / "errors.md").read_text("utf-8").partition("## Reasons of files")[2]
    told = {reason.partition(":")[0] for reason in re.findall(r"`([a-z][a-z_0-9:A-Z]*)`", documented)}
    reasons = {reason.partition(":")[0] for reason in _reasons()}
    classes = {"too_large", "checksum_mismatch"}  # of errors.TooLarge and errors.ChecksumMismatch
    assert reasons | classes == told - {"loramux"}
