"""The line of jobs that wait for their adapters: who may go next, and how often one that waits is passed.

Takes jobs as they come; says whose turn it is. It knows neither memory nor files. Not for several threads at once.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from loramux_server.engine.device_tier import Lease
from loramux_server.engine.host_tier import HostEntry
from loramux_store.record import VersionRecord

LOADS_PAST = 8
"""Jobs that pass one that waits for room before others that must load wait behind it."""
HITS_PAST = 64
"""Jobs that pass one that waits for room before all others wait behind it. Larger, because it holds up jobs that could
run: only where the same adapters are in use without a break does it come to that."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A job in line. needs: of each room, by digest; passed: later jobs that were served since there was no room for
    it, None before that. ahead: what it holds in host memory on its way to the device, by digest."""

    versions: tuple[VersionRecord, ...]
    needs: Mapping[str, Mapping[str, int]]
    future: "Future[Lease]" = field(default_factory=lambda: Future[Lease]())
    passed: int | None = None
    ahead: "dict[str, HostEntry]" = field(default_factory=lambda: dict[str, HostEntry]())


class WaitingLine:
    """Jobs in the order in which they came. The first is not passed for ever: after LOADS_PAST later jobs nothing more
    is loaded before it, and after HITS_PAST it is the next of all, so that adapters in steady use come free."""

    def __init__(self) -> None:
        self._jobs: list[Waiting] = []

    def __iter__(self) -> Iterator[Waiting]:
        """As they stand now, whatever becomes of the line meanwhile."""
        return iter(tuple(self._jobs))

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, waiting: Waiting) -> bool:
        return waiting in self._jobs

    def join(self, waiting: Waiting) -> None:
        """At its end."""
        self._jobs.append(waiting)

    def leave(self, waiting: Waiting) -> None:
        """Unserved, wherever it stands; one that is not there is left alone."""
        if waiting in self._jobs:
            self._jobs.remove(waiting)

    def may_pass(self, waiting: Waiting, *, loaded: bool) -> bool:
        """Whether it is this job's turn. loaded: its adapters are all there."""
        first = self._jobs[0]
        passed = 0 if first is waiting or first.passed is None else first.passed
        return passed < (HITS_PAST if loaded else LOADS_PAST)

    def no_room(self, waiting: Waiting) -> None:
        """From now on it is counted who passes it."""
        waiting.passed = waiting.passed or 0

    def serve(self, waiting: Waiting) -> None:
        """Takes it out, past those before it."""
        place = self._jobs.index(waiting)
        for ahead in self._jobs[:place]:
            if ahead.passed is not None:
                ahead.passed += 1
        del self._jobs[place]
