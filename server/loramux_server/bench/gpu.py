"""The measurements of benchmarks/gpu.sh: `python -m loramux_server.bench.gpu check` and `... measure FILE SECONDS`.

Takes a card; gives one JSON file, written anew after every part so that what was measured survives a time limit.
Needs torch and triton alone; PEFT is compared with where it is installed. It knows no command line of the server's.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from loramux_server.bench import card, kernels, plans, shapes
from loramux_server.bench.harness import Row, report
from loramux_server.bench.kernels import Setting
from loramux_server.bench.layer import Compute, check, make_blends, make_layer
from loramux_server.bench.shapes import LayerShape

# Ragged in every direction, and small enough for a memory checker.
_TINY = (LayerShape("tiny", "linear", 1, 37, 80, 96), LayerShape("tiny", "qkv", 3, 37, 80, 96, 3, 3, stacked=True))

Part = tuple[str, Callable[[], list[Row]]]
"""Name and measurement."""


def main(arguments: Sequence[str]) -> int:
    """0 when it has run, 1 when a part has failed, 2 where nothing can run."""
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    match list(arguments):
        case ["check"]:
            check_tiny(device)
        case ["measure", file, seconds]:
            return 0 if measure(Path(file), float(seconds), parts(device), card.described(device)) else 1
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


@torch.inference_mode()
def check_tiny(device: torch.device) -> None:
    """Every variant once on tiny layers, against plain torch."""
    for shape in _TINY:
        layer = make_layer(shape, 2, torch.float16, device)
        for blend in make_blends(2, kernels.RANKS, device):
            check(layer, blend, card.sides(layer, blend, shape))


def parts(device: torch.device) -> list[Part]:
    """What is measured, the most telling first."""
    everything = [shapes.of_model(model) for model in (shapes.SD15, shapes.SDXL)]
    found: list[Part] = []
    for rows in (2, 16):
        setting = Setting(rows, device, torch.float16, seconds=0)
        found.append((f"plain GEMM, {setting}", lambda setting=setting: plain_rows(setting)))
        for layers in everything:
            name = f"{layers[0].model}, {setting}"
            found.append((name, lambda setting=setting, layers=layers: kernels.measure_at(setting, [layers])))
    return found


def measure(file: Path, seconds: float, todo: Sequence[Part], machine: dict[str, object]) -> bool:
    """Runs the parts that begin within so many seconds; the file names the others, and what failed and why. Whether
    nothing failed."""
    started = time.monotonic()
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for name, part in todo:
        if time.monotonic() - started >= seconds:
            missing[name] = "no time left"
            continue
        try:
            rows += part()
        except Exception as error:  # the card's time is dear: the other parts are measured
            traceback.print_exc()
            missing[name] = f"{type(error).__name__}: {error}"
        print(f"{time.monotonic() - started:5.0f} s  {name}", file=sys.stderr, flush=True)
        _write(file, rows, {**machine, "not measured": missing})
    _write(file, rows, {**machine, "not measured": missing})
    return not any(why != "no time left" for why in missing.values())


def _write(file: Path, rows: Sequence[Row], machine: dict[str, object]) -> None:
    file.write_text(json.dumps(report("benchmarks/gpu.sh", rows, machine), indent=1) + "\n")


def plain_rows(setting: Setting) -> list[Row]:
    """Triton's base product alone over the vendor's, best tile, at every distinct shape: which of `vendor` and
    `split` can win is decided here."""
    limit = card.shared_memory_limit(setting.device)
    launches = {shape.size: shape for shape in (*shapes.SHAPES, *shapes.stacked(shapes.SHAPES))}
    return [row for shape in launches.values() for row in plain_rows_of(shape, setting, limit)]


@torch.inference_mode()
def plain_rows_of(shape: LayerShape, setting: Setting, shared_memory: int) -> list[Row]:
    """The same of one shape."""
    (blend,) = make_blends(setting.rows, [(16,)], setting.device)

    def build(checked: bool) -> dict[str, Compute]:
        layer = make_layer(shape, setting.rows, setting.dtype, setting.device)
        tiles = plans.gemm_tiles(card.call_of(layer, blend, shape), shape.tokens, shared_memory)
        sides = {f"{t.block_m}x{t.block_n}x{t.block_k}": card.plain_gemm(layer, blend, t) for t in tiles}
        if checked:
            want = layer.base().float()
            assert all((side().float() - want).norm() < 2e-3 * want.norm() for side in sides.values())
        return {"base": layer.base, **sides}

    taken = card.time_sides(build, card.copies(shape, setting.rows, setting.device), setting.rounds)
    base = taken.pop("base")
    best = min(taken, key=lambda name: taken[name])
    what = f"{shape.model} {shape.name}, {shape.tokens}x{shape.k}x{shape.outputs}, {setting}"
    return [Row(f"{what}: plain Triton GEMM ({best}) / vendor's", taken[best] / base, "x")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
