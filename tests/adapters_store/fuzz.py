"""A fuzzer that looks for inputs that reach new code, on the targets of fuzz_targets: `make fuzz` runs it.

`python fuzz.py [SECONDS]`; what follows goes to libFuzzer. It starts from `corpus/` and ends with an error, and the
input in `out/fuzz`, at the first thing that does not hold, at an input that takes longer than TIMEOUT_S, and where the
process grows beyond RSS_MB. Inputs that reach new code are kept in `out/fuzz/corpus`.
"""

import importlib
import pkgutil
import re
import sys
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]

TIMEOUT_S = 5
RSS_MB = 1500
"""torch and the instrumented packages take 500 of them."""

HERE = Path(__file__).parent
OUT = HERE.parent.parent / "out" / "fuzz"

sys.path += [str(HERE), str(HERE.parent / "shared")]

with atheris.instrument_imports(include=["loramux_store"]):
    import fuzz_seeds
    import fuzz_targets

    from loramux_store import formats

    for _module in pkgutil.iter_modules(formats.__path__):  # some are imported when the first file is converted
        importlib.import_module(f"{formats.__name__}.{_module.name}")


def feed(data: bytes) -> int:
    """0 to keep an input that reaches new code; -1 where it says nothing to any target."""
    return 0 if fuzz_targets.run(data) else -1


def main() -> None:
    """Until the time is over."""
    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    found = OUT / "corpus"
    found.mkdir(parents=True, exist_ok=True)
    limits = [
        f"-max_total_time={seconds}",
        f"-timeout={TIMEOUT_S}",
        f"-rss_limit_mb={RSS_MB}",
        "-max_len=16384",
        "-len_control=0",
    ]
    places = [f"-artifact_prefix={OUT}/", f"-dict={_words()}", str(found), str(fuzz_seeds.CORPUS)]
    atheris.Setup([sys.argv[0], *limits, *sys.argv[2:], *places], feed)
    atheris.Fuzz()


def _words() -> Path:
    """What the seeds are written with, for libFuzzer to put together anew."""
    words = {word for seed in fuzz_seeds.seeds().values() for word in re.findall(rb"[\w.]{2,60}", seed)}
    path = OUT / "words"
    path.write_text("".join(f'"{word.decode()}"\n' for word in sorted(words)))
    return path


if __name__ == "__main__":
    main()
