"""Timing on an NVIDIA card: captured graphs over inputs that do not stay in its cache, and the Triton variants.

Takes builders of callables; gives seconds a call. Imports triton where a variant is asked for. It knows no model.
"""

import math
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from loramux_kernels import FusedPool, lora_linear, lora_qkv
from loramux_kernels.triton.dispatch import Call, GemmTile, Plan
from loramux_server.bench import plans
from loramux_server.bench.harness import medians
from loramux_server.bench.layer import Blend, Compute, Layer, emptied
from loramux_server.bench.shapes import LayerShape

_MOST_COPIES = 128
_VALUE_BYTES = 2

Name = TypeVar("Name")


class Build(Protocol[Name]):
    """Makes fresh inputs and the callables that read them; `checked`: after a check of what they compute."""

    def __call__(self, checked: bool) -> Mapping[Name, Compute]: ...


def copies(shape: LayerShape, rows: int, device: torch.device) -> int:
    """How many sets of inputs and outputs are twice as large as the card's cache."""
    values = rows * shape.tokens * (shape.k + shape.outputs) + shape.k * shape.outputs
    return copies_of(values * _VALUE_BYTES, torch.cuda.get_device_properties(device).L2_cache_size)


def copies_of(set_bytes: int, cache_bytes: int) -> int:
    """How many sets of so many bytes are twice as large as a cache; at most _MOST_COPIES."""
    return min(_MOST_COPIES, math.ceil(2 * cache_bytes / set_bytes))


def time_sides(build: Build[Name], sets: int, rounds: int) -> dict[Name, float]:
    """Median seconds of every callable: one graph each, which runs it once on each set of inputs."""
    made = [build(number == 0) for number in range(sets)]
    memory = torch.cuda.graph_pool_handle()  # one for all: no graph reads what another wrote
    graphs = {name: _captured([one[name] for one in made], memory) for name in made[0]}
    taken = medians({name: graph.replay for name, graph in graphs.items()}, rounds, elapsed)
    del graphs, made
    torch.cuda.empty_cache()
    return {name: seconds / sets for name, seconds in taken.items()}


def elapsed(call: Callable[[], object]) -> float:
    """By the card's clock, between two events of its stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _captured(computes: Sequence[Compute], memory: Any) -> torch.cuda.CUDAGraph:
    """One graph of all of them, their outputs apart."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and fills what is kept between calls
        for compute in computes:
            compute()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=memory):
        outputs = [compute() for compute in computes]
    del outputs
    return graph


def sides(layer: Layer, blend: Blend, shape: LayerShape) -> dict[str, Compute]:
    """What the dispatch table picks, and each variant with a plan chosen by rule."""
    call = call_of(layer, blend, shape)
    computes = {"dispatch": dispatched(layer, blend)}
    for variant in plans.variants(call):
        plan = plans.by_rule(variant, call.r, shape.tokens, shape.n)
        computes[variant] = planned(layer, blend, plan)
    return computes


def call_of(layer: Layer, blend: Blend, shape: LayerShape) -> Call:
    """The sizes that the dispatch table looks at."""
    rows, tokens, k = layer.x.shape
    return Call("linear", layer.x.element_size() * 8, rows * tokens, shape.outputs, k, blend.tables.width)


def dispatched(layer: Layer, blend: Blend) -> Compute:
    """The op as the server calls it."""
    if isinstance(layer.pool, FusedPool):
        pool = layer.pool
        return lambda: lora_qkv(layer.x, layer.w0, None, pool, blend.tables, impl="triton")
    single = layer.pool
    return lambda: lora_linear(layer.x, layer.w0, None, single, blend.tables, impl="triton")


def planned(layer: Layer, blend: Blend, plan: Plan) -> Compute:
    """The op by a given plan."""
    from loramux_kernels.triton import launch

    return lambda: launch.linear(layer.x, layer.w0, None, layer.pool, blend.tables, plan)


def plain_gemm(layer: Layer, blend: Blend, tile: GemmTile) -> Compute:
    """Triton's base product alone: the GEMM over rank rows with none of them in use and no shrink before it."""
    from loramux_kernels.triton.gemm_expand import gemm_expand

    empty = emptied(blend).tables
    parts = len(layer.pool.parts) if isinstance(layer.pool, FusedPool) else 1
    rows, tokens, _ = layer.x.shape
    s = layer.x.new_zeros(rows, tokens, parts * empty.width)

    def compute() -> Tensor:
        y = layer.x.new_empty(rows, tokens, layer.w0.shape[0])
        gemm_expand(layer.x, None, layer.w0, None, s, layer.pool.b, None, empty, y, tile)
        return y

    return compute


def shared_memory_limit(device: torch.device) -> int:
    """Bytes of shared memory that one block may have."""
    import triton

    driver: Any = triton.runtime.driver.active
    properties = driver.utils.get_device_properties(device.index or 0)
    return int(properties["max_shared_mem"])


def described(device: torch.device) -> dict[str, object]:
    """Card and driver."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return {"card": torch.cuda.get_device_name(device), "driver": driver, "cuda": torch.version.cuda}
