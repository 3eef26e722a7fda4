"""UNet forwards captured as CUDA graphs: a forward is some thousand kernels, and launching them one by one takes the
host longer than a fast card takes to run them.

Takes the UNet's forward, its arguments and a state: all else that decides which kernels run and where they read. Gives
what the forward gives. What is captured is found by state and shapes, and reads its arguments from tensors
of its own, into which they are copied. It knows no adapter, no layer and no request.

A forward is captured when it is asked for a third time: one costs several as they are, and most that a crowd of
pictures goes through in coming and going never come again. For one thread.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loramux_server.engine.device_memory import RAN_OUT
from loramux_server.metrics import Metrics

Arguments = Mapping[str, Any]
"""Tensors, None, or mappings of such."""

Forward = Callable[[Arguments], Tensor]

Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]
"""Captures a call without arguments; gives what replays it, and the tensor that every replay fills."""

_BEFORE = 2  # times that a forward runs as it is before it is captured
_AGAIN = 1000  # times that one runs as it is after it could not be captured
_REMEMBERED = 1024  # forwards that are counted

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Captured:
    arguments: Arguments
    replay: Callable[[], object]
    result: Tensor


class CapturedForwards:
    """most: graphs that are kept, the least recently used leave; 0 captures nothing.

    Activations of all graphs share one piece of memory, as large as the largest forward's.
    """

    def __init__(self, forward: Forward, capture: Capture, most: int, metrics: Metrics) -> None:
        self._forward, self._capture, self._most = forward, capture, most
        self._graphs: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._seen: OrderedDict[Hashable, int] = OrderedDict()
        self._count = metrics.forwards.labels
        self._held = metrics.graphs

    def __call__(self, arguments: Arguments, state: Callable[[], Hashable]) -> Tensor:
        """The forward's result. state: gives the state, None where this forward cannot be captured."""
        before = state() if self._most else None
        if before is None:
            return self._as_it_is(arguments)
        key = before, _shapes(arguments)
        found = self._graphs.get(key)
        if found is not None:
            self._graphs.move_to_end(key)
            _copy(arguments, found.arguments)
            found.replay()
            self._count("replayed").inc()
            return found.result.clone()  # another graph may fill this memory next
        if not self._due(key):
            return self._as_it_is(arguments)
        return self._captured(key, arguments, lambda: state() == before)

    def clear(self) -> bool:
        """Gives the memory of all graphs back; whether there were any."""
        held = bool(self._graphs)
        self._graphs.clear()
        self._seen.clear()
        self._held.set(0)
        torch.cuda.empty_cache()
        return held

    def _as_it_is(self, arguments: Arguments) -> Tensor:
        self._count("launched").inc()
        return self._forward(arguments)

    def _due(self, key: Hashable) -> bool:
        """Whether a forward has run as it is often enough; counts it."""
        times = self._seen.pop(key, 0) + 1
        self._seen[key] = times
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return times > _BEFORE

    def _captured(self, key: Hashable, arguments: Arguments, unchanged: Callable[[], bool]) -> Tensor:
        """Captures the forward and gives its first replay; runs it as it is where it cannot be captured."""
        while len(self._graphs) >= self._most:
            self._graphs.popitem(last=False)
        own = _clones(arguments)
        try:
            replay, result = self._capture(lambda: self._forward(own))
        except Exception as error:  # memory's, a driver's or a library's, of many kinds; the forward itself may be well
            _log.warning("a forward could not be captured: %s: %s", type(error).__name__, error)
            if isinstance(error, RAN_OUT):
                self.clear()
            self._seen[key] = -_AGAIN
            return self._as_it_is(arguments)
        self._count("captured").inc()
        if unchanged():  # another thread may have made the first room for rank rows in a layer meanwhile
            self._graphs[key] = _Captured(own, replay, result)
            self._held.set(len(self._graphs))
        replay()
        return result.clone()


def on_card(device: torch.device) -> Capture:
    """Captures on a CUDA device; all graphs share memory, so that one result is valid at a time."""
    memory: Any = None
    side: Any = None

    def capture(call: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        nonlocal memory, side
        if side is None:  # one for all: libraries keep a workspace for each stream
            memory, side = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles, chooses algorithms, and takes the workspaces that libraries keep
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads decode pictures and load adapters meanwhile
        with torch.cuda.graph(graph, pool=memory, stream=side, capture_error_mode="thread_local"):
            result = call()
        return graph.replay, result

    return capture


def _tensors(arguments: Arguments) -> Iterator[tuple[str, Tensor]]:
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _tensors(value)  # pyright: ignore[reportUnknownArgumentType]


def _shapes(arguments: Arguments) -> Hashable:
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in _tensors(arguments))


def _clones(arguments: Arguments) -> dict[str, Any]:
    def cloned(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone()
        return _clones(value) if isinstance(value, Mapping) else value  # pyright: ignore[reportUnknownArgumentType]

    return {name: cloned(value) for name, value in arguments.items()}


def _copy(arguments: Arguments, own: Arguments) -> None:
    for (_, new), (_, old) in zip(_tensors(arguments), _tensors(own), strict=True):
        old.copy_(new)
