"""Captured forwards: what finds them, what they read, and when there are none. A graph is stood in for by a call that
has by address what a graph has by address: it reads the arrays that every layer had when it was captured, and of the
tables that there were the content that their tensors have now."""

from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from test_kernels import ATTENTION, CONVOLUTION, EVERYTHING, SMALL, stepped

from loramux_kernels.tables import Tables, _composition
from loramux_server.engine.blends import EVERYWHERE, NOTHING, Added
from loramux_server.engine.captured import CapturedForwards
from loramux_server.engine.engine import Engine
from loramux_server.engine.layer_group import LayerGroup
from loramux_server.engine.module_factors import ModuleFactors
from loramux_server.engine.rooms import OUTPUTS
from loramux_server.metrics import Metrics
from loramux_server.requests import GenerationRequest, ImageKey

LONG = ", ".join(["a red apple"] * 30)


class Graphs:
    """Captures calls as a card would."""

    def __init__(self, groups: dict[str, LayerGroup]) -> None:
        self._groups = groups

    def __call__(self, call: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        read, result = self._read(), call()

        def replay() -> None:
            with self._as_then(read):
                again = call()
            result.copy_(again)

        result.fill_(float("nan"))
        return replay, result

    def _layers(self) -> list[Any]:
        return [layer for group in self._groups.values() for layer in group.layers.values()]

    def _read(self) -> Any:
        pools = [(layer.pool, layer.pool and layer.pool.g, layer.pool and layer.pool.h) for layer in self._layers()]
        return [group.tables for group in self._groups.values()], pools

    @contextmanager
    def _as_then(self, read: Any) -> Generator[None]:
        now = self._read()
        self._put(read)
        yield
        self._put(now)

    def _put(self, read: Any) -> None:
        tables, pools = read
        for group, each in zip(self._groups.values(), tables, strict=True):
            group.tables = {block: found and from_tensors(found) for block, found in each.items()}
        for layer, (pool, g, h) in zip(self._layers(), pools, strict=True):
            layer.pool = pool
            if pool is not None:
                pool.g, pool.h = g, h


def from_tensors(tables: Tables) -> Tables:
    """Tables as the device has them, whatever the host believes."""
    numbers, weights = tables.idx.tolist(), tables.scale.tolist()
    entries = tuple(
        tuple(zip(row[:used], scales[:used], strict=True))
        for row, scales, used in zip(numbers, weights, tables.nrank.tolist(), strict=True)
    )
    return replace(tables, entries=entries, composition=_composition(entries, None))


def how(metrics: Metrics) -> dict[str, float]:
    """Forwards by how they ran."""
    kinds = ("launched", "captured", "replayed")
    value = metrics.registry.get_sample_value
    return {kind: value("loramux_forwards_total", {"how": kind}) or 0.0 for kind in kinds}


@pytest.fixture(scope="module")
def servers(
    server_class: Any, three_adapters: Callable[..., Any], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """One that captures every forward from the third on, and one that never does."""
    folder = tmp_path_factory.mktemp("captured")
    both = {name: server_class(str(tiny_base), folder / name) for name in ("plain", "captured")}
    for server in both.values():
        server.publish(three_adapters(tiny_base, folder, 0.5))
    engine = both["captured"].app.engine
    engine._forwards = CapturedForwards(engine._unet, Graphs(engine.groups), 8, both["captured"].app.metrics)
    yield both
    for server in both.values():
        server.close()


def test_pictures_of_captured_forwards_are_those_of_launched_ones(servers: dict[str, Any]) -> None:
    """One composition after another in forwards of one shape: other adapters, other weights, none in a row, other
    rows of the pool, texts of unequal length, adapters that act in other groups."""
    first = [replace(SMALL, seed=1, blend=(ATTENTION,)), replace(SMALL, seed=2)]
    unequal = [replace(SMALL, seed=1, prompt=LONG), replace(SMALL, seed=1, prompt="a dog", blend=(EVERYTHING,))]
    compositions = [
        first,
        first,
        first,
        [replace(SMALL, seed=3, blend=(replace(ATTENTION, weight=-0.6),)), replace(SMALL, seed=4)],
        [replace(SMALL, seed=3), replace(SMALL, seed=5, blend=(ATTENTION,))],
        [replace(SMALL, seed=6, blend=(replace(CONVOLUTION, weight=0.5),)), replace(SMALL, seed=7)],
        [replace(SMALL, seed=6, blend=(EVERYTHING,)), replace(SMALL, seed=7, blend=(CONVOLUTION,))],
        first,
        [replace(SMALL, seed=8, blend=(ATTENTION, EVERYTHING)), replace(SMALL, seed=9, blend=(EVERYTHING,))],
        unequal,
        list(reversed(unequal)),
        unequal,
    ]
    seen: list[torch.Tensor] = []
    for composition in compositions * 3:
        want, got = (stepped(servers[name], composition) for name in ("plain", "captured"))
        assert torch.equal(got, want), composition
        seen.append(want)
    ran = how(servers["captured"].app.metrics)
    assert ran["captured"] >= 3 and ran["replayed"] >= 10, ran
    assert how(servers["plain"].app.metrics) == {"launched": len(seen), "captured": 0, "replayed": 0}
    distinct = {picture.numpy().tobytes() for pictures in seen for picture in pictures}
    assert len(distinct) >= 10, "the compositions draw the same"


def test_what_depends_on_more_than_addresses_has_no_state(server: Any) -> None:
    """Side operations, and scales of both axes in one block: other operations for other content."""
    group = server.app.engine.groups["unet.attention"]
    rows, scales, sides = ((1, 0.5),), ((1, 0.5),), ((1, 1.0),)
    capturable = (Added(), Added(rows=rows), Added(rows=rows, outputs=scales), Added(rows=rows, inputs=scales))
    states: set[Hashable] = set()
    for added in capturable:
        with group.adding([{EVERYWHERE: added}]):
            states.add(group.state)
    assert None not in states and len(states) == len(capturable)
    for added in (Added(rows=rows, outputs=scales, inputs=scales), Added(rows=rows, sides=sides)):
        for entries in ({EVERYWHERE: added}, {EVERYWHERE: NOTHING, "mid": added}):
            with group.adding([entries]):
                assert group.state is None and server.app.engine._state() is None


def test_new_arrays_are_a_new_state(server: Any) -> None:
    """A layer's first scales, and more of them than there was room for: a graph would go on without them."""
    group: LayerGroup = server.app.engine.groups["unet.attention"]
    paths = [path for path in group.layers if path.endswith("to_q")]
    states: list[Hashable] = []

    def write(number: int, path: str) -> None:
        layer = group.layers[path]
        given = {"a": torch.ones(1, layer.k), "b": torch.ones(1, layer.n), "m": torch.ones(layer.n)}
        owned = {group.name: (1,), group.name + OUTPUTS: (number,)}
        group.write(owned, {path: ModuleFactors(given, 1.0, "output")})
        with group.adding([{EVERYWHERE: Added(rows=((1, 0.5),), outputs=((1, 0.5),))}]):
            states.append(group.state)

    for number, path in ((1, paths[0]), (2, paths[0]), (3, paths[1]), (4, paths[1]), (8, paths[1]), (9, paths[0])):
        write(number, path)
    same = [one == other for one, other in pairwise(states)]
    assert same == [True, False, True, False, True]


def forwards(capture: Any, most: int) -> tuple[CapturedForwards, Metrics]:
    metrics = Metrics()
    return CapturedForwards(lambda arguments: arguments["x"] * 2, capture, most, metrics), metrics


def replaying(call: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
    result = call()
    return lambda: result.copy_(call()), result


def run(captured: CapturedForwards, x: torch.Tensor, state: Hashable = "state") -> torch.Tensor:
    return captured({"x": x, "none": None, "inside": {"y": x}}, lambda: state)


def test_the_third_is_captured_and_results_are_their_callers() -> None:
    captured, metrics = forwards(replaying, 4)
    results = [run(captured, torch.full((2,), float(i))) for i in range(6)]
    assert [result.tolist() for result in results] == [[2.0 * i] * 2 for i in range(6)]
    assert how(metrics) == {"launched": 2, "captured": 1, "replayed": 3}


@pytest.mark.parametrize(
    "x,state",
    [(torch.ones(3), "state"), (torch.ones(2, dtype=torch.float64), "state"), (torch.ones(2), "other")],
    ids=["shape", "dtype", "state"],
)
def test_each_part_of_the_key_matters(x: torch.Tensor, state: str) -> None:
    captured, metrics = forwards(replaying, 4)
    for _ in range(3):
        run(captured, torch.ones(2))
    assert torch.equal(run(captured, x, state), x * 2)
    assert how(metrics) == {"launched": 3, "captured": 1, "replayed": 0}


def test_the_least_recently_used_leaves() -> None:
    captured, metrics = forwards(replaying, 2)
    for state in ("a", "b", "a", "c"):
        for _ in range(4):
            run(captured, torch.ones(2), state)
    before = how(metrics)
    run(captured, torch.ones(2), "a")
    assert how(metrics)["replayed"] == before["replayed"] + 1
    run(captured, torch.ones(2), "b")
    assert how(metrics)["captured"] == before["captured"] + 1
    assert metrics.registry.get_sample_value("loramux_captured_forwards") == 2


def test_a_state_that_changes_meanwhile_keeps_no_graph() -> None:
    captured, metrics = forwards(replaying, 4)
    states = iter([*"aaa", "b"])
    for _ in range(3):
        captured({"x": torch.ones(2)}, lambda: next(states))
    assert how(metrics)["captured"] == 1 and next(states, None) is None
    assert metrics.registry.get_sample_value("loramux_captured_forwards") == 0


@pytest.mark.parametrize("error", [RuntimeError("not while capturing"), torch.OutOfMemoryError("full")], ids=str)
def test_what_cannot_be_captured_is_launched(error: Exception) -> None:
    def failing(call: object) -> Any:
        raise error

    captured, metrics = forwards(failing, 4)
    for i in range(8):
        assert run(captured, torch.full((1,), float(i))).tolist() == [2.0 * i]
    assert how(metrics) == {"launched": 8, "captured": 0, "replayed": 0}


def test_none_are_captured_where_none_are_wanted() -> None:
    captured, metrics = forwards(replaying, 0)
    for _ in range(5):
        run(captured, torch.ones(2))
    assert how(metrics) == {"launched": 5, "captured": 0, "replayed": 0}


def test_memory_that_runs_out_is_sought_among_graphs_first(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures whose forward fits only where no graph is held: they share it all the same."""
    engine: Engine = server.app.engine
    rows: list[int] = []
    unet = engine._unet

    def tight(arguments: Any) -> torch.Tensor:
        rows.append(len(arguments["sample"]))
        if engine._forwards._graphs:
            raise torch.OutOfMemoryError("full")
        return unet(arguments)

    engine._forwards = CapturedForwards(tight, replaying, 4, server.app.metrics)
    engine._forwards._graphs["large"] = object()  # type: ignore[assignment]
    jobs = [server.admission.admit(GenerationRequest("a dog", seed=i, steps=2)) for i in range(2)]
    for job in jobs:
        engine.begin(job, engine.load(job).result())
    results = engine.step([ImageKey(job.id, 0) for job in jobs])
    assert [result.error for result in results] == [None, None] and rows == [4, 4]
