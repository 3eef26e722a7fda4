"""What the fuzzer checks, in short: its corpus, and some hundred inputs made of it. `make fuzz` goes on from there."""

import os
import subprocess
import sys
from pathlib import Path

import fuzz_seeds
import fuzz_targets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SEEDS = fuzz_seeds.seeds()
REFUSED = {"not-finite", "refused-kinds", "full-checkpoint"}
WORDS = st.sampled_from(
    [b"alpha", b"lora_A.weight", b"dora_scale", b"bundle_emb.", b"\xff", b"\\ud800", b"F16", b"9" * 19]
)


def test_the_corpus_is_what_its_script_makes() -> None:
    assert {path.name: path.read_bytes() for path in fuzz_seeds.CORPUS.iterdir()} == SEEDS


@pytest.mark.parametrize("name", SEEDS)
def test_a_seed(name: str) -> None:
    assert fuzz_targets.run(SEEDS[name])


@pytest.mark.parametrize("name", [name for name in SEEDS if name.startswith("file-")])
def test_most_seeds_are_accepted(name: str) -> None:
    asked = fuzz_targets.lines_to_file(SEEDS[name][1:])
    assert asked is not None
    kind, why = fuzz_targets.outcome(asked)
    assert (kind == "refused") == (name.removeprefix("file-") in REFUSED), why


@pytest.mark.parametrize("examples", [300, pytest.param(20_000, marks=pytest.mark.long)])
def test_inputs_made_of_seeds(examples: int) -> None:
    @settings(max_examples=examples, derandomize=True, database=None)
    @given(seed=st.sampled_from(sorted(SEEDS)), data=st.data())
    def check(seed: str, data: st.DataObject) -> None:
        fuzz_targets.run(_changed(SEEDS[seed], data))

    check()


def test_a_config_nested_as_deep_as_json_is_read() -> None:
    """Somewhere below the limit of recursion json still reads what repr cannot say."""
    for depth in range(700, 1000):
        fuzz_targets.config(b'{"r":' + b"[" * depth + b"]" * depth + b"}")


STAND_IN = """
from contextlib import nullcontext

def instrument_imports(include):
    return nullcontext()

def Setup(arguments, feed):
    global given, asked
    given, asked = arguments, feed

def Fuzz():
    import fuzz_seeds
    ends = [asked(seed) for seed in fuzz_seeds.seeds().values()]
    assert "-max_total_time=7" in given and set(ends) == {0} and asked(b"") == -1
"""


def test_the_fuzzer_starts(tmp_path: Path) -> None:
    """With a stand-in for atheris, which is installed where `make fuzz` is called."""
    (tmp_path / "atheris.py").write_text(STAND_IN)
    script, path = Path(fuzz_targets.__file__).with_name("fuzz.py"), os.environ.get("PYTHONPATH", "")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{path}"}
    subprocess.run([sys.executable, script, "7"], env=environment, check=True)


def _changed(seed: bytes, data: st.DataObject) -> bytes:
    """Some places of a seed, but not the target that it is for."""
    whole = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(1, len(whole)))
        end = min(len(whole), at + data.draw(st.integers(0, 12)))
        match data.draw(st.sampled_from(["bit", "drop", "twice", "word", "bytes", "digit"])):
            case "bit" if at < len(whole):
                whole[at] ^= 1 << data.draw(st.integers(0, 7))
            case "drop":
                del whole[at:end]
            case "twice":
                whole[at:at] = whole[at:end]
            case "word":
                whole[at:end] = data.draw(WORDS)
            case "digit":
                whole[at:end] = data.draw(st.sampled_from([b"0", b"1", b"2", b"-1", b"1e400"]))
            case _:
                whole[at:end] = data.draw(st.binary(max_size=9))
    return bytes(whole)
