"""Which adapters are on the device, who uses them, and what they take there.

Takes versions and what was loaded of them; gives leases, numbers and room. It loads nothing and waits for nobody, and
knows no job. Not for several threads at once.
"""

import sys
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from loramux_kernels import G_CLASSES, PoolFull
from loramux_server.engine.blends import Rows, Vectors
from loramux_server.engine.layer_group import LayerGroup
from loramux_server.engine.rooms import INPUTS, OUTPUTS, ByteBudget, Room
from loramux_server.errors import Incompatible, PinTooLarge
from loramux_server.metrics import Metrics
from loramux_store.footprint import vector_bytes
from loramux_store.record import MatchedModule, VersionRecord

VECTOR_BYTES = 128 << 20
"""For embeddings on the device. The largest has 0.6 MB (75 vectors for SDXL), so that two blends of 32 always fit
beside what is pinned; a LoRA may bundle 64 of them."""
PIN_SHARE = 0.5
"""Of every room, that pins may take: requests always find the rest."""

_VECTORS = "bytes of vectors"
"""A room for all layer groups."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Adapters kept on the device for one job: the numbers and vectors of each, by digest. Given back with
    `AdapterCache.release`."""

    rows: Mapping[str, Rows]
    vectors: Mapping[str, Vectors]


@dataclass(slots=True)
class Resident:
    """What one version has on the device, nbytes in all: its numbers in every room, and its embeddings' vectors."""

    version: VersionRecord
    rows: Rows
    vectors: Vectors
    nbytes: int
    users: int

    @property
    def digest(self) -> str:
        """Of the version."""
        return self.version.digest


class DeviceTier:
    """Versions on the device; those in use are never put out, of the others the one first that was left longest ago. No
    call looks at all of them: what a blend costs does not grow with their number.

    Every room has a bound: an adapter is put out only for one that needs what it holds.

    max_rank: of a batch row in a layer group.
    """

    def __init__(self, groups: Mapping[str, LayerGroup], metrics: Metrics, max_rank: int) -> None:
        self.residents: dict[str, Resident] = {}
        self.idle: OrderedDict[str, Resident] = OrderedDict()  # without users, in the order in which they were left
        self.spare = Counter[str]()  # sizes of the idle ones
        self.group_of = {path: group.name for group in groups.values() for path in group.paths}
        self._groups = groups
        self._vectors = ByteBudget(VECTOR_BYTES)
        self._pinned: dict[str, Mapping[str, int]] = {}
        self._metrics = metrics
        self._max_rank = max_rank
        self._bytes = 0
        metrics.cache_budget.labels("device").set(self._size_of(self._capacity))
        self._gauge()

    def check(self, blends: Sequence[Sequence[VersionRecord]]) -> None:
        """Refuses what one job asks for where it can never fit.

        Raises:
            Incompatible: where a blend's total rank in a layer group is above the largest of a row, or what all its
                blends' adapters take together is more than there is beside what is pinned.
        """
        needs = {version.digest: self.needs(version) for blend in blends for version in blend}
        for name, room in self._rooms.items():
            asked = [sum(needs[version.digest].get(name, 0) for version in blend) for blend in blends]
            together, left = self._together(name, needs), room.capacity - self._pins_take(name, needs)
            for count, most, what in (
                (max(asked), min(self._most(name), left), "the blend has"),
                (together, left, "blend and negative_blend have"),
            ):
                if count > most:
                    beside = " beside what is pinned" if left < min(room.capacity, count) else ""
                    raise Incompatible(
                        "BLEND_TOO_LARGE", f"{what} {self._told(count, name)}, at most {most} fits{beside}"
                    )

    def can_ever_fit(self, needs: Mapping[str, Mapping[str, int]]) -> bool:
        """Whether versions find room once nobody uses any other. needs: of each, by digest."""
        return all(
            self._together(name, needs) <= room.capacity - self._pins_take(name, needs)
            for name, room in self._rooms.items()
        )

    def pin(self, version: VersionRecord) -> None:
        """Counts a version as one that is kept for good; whoever pins it holds a lease.

        Raises:
            PinTooLarge: where pins would take more than their share of a room.
        """
        pinned = {**self._pinned, version.digest: self.needs(version)}
        for name, room in self._rooms.items():
            needed, most = pinned[version.digest].get(name, 0), int(room.capacity * PIN_SHARE)
            held = self._together(name, self._pinned)
            if self._together(name, pinned) > most and needed:
                raise PinTooLarge(f"{version.adapter}@{version.number}", self._told(needed, name), held, most)
        self._pinned = pinned

    def unpin(self, digest: str) -> None:
        """Counts it so no longer."""
        self._pinned = {other: needs for other, needs in self._pinned.items() if other != digest}

    def needs(self, version: VersionRecord) -> dict[str, int]:
        """What a version takes of each room."""
        by_group: dict[str, list[MatchedModule]] = {}
        for module in version.report.matched:
            by_group.setdefault(self.group_of[module.module], []).append(module)
        total: Counter[str] = Counter()
        for name, modules in by_group.items():
            total.update(self._groups[name].needs(modules))
        if version.embeddings:
            total[_VECTORS] = vector_bytes(version.embeddings)
        return dict(total)

    def has(self, versions: Iterable[VersionRecord]) -> bool:
        """Whether all of these are there."""
        return all(version.digest in self.residents for version in versions)

    def fits(self, needs: Mapping[str, Mapping[str, int]]) -> bool:
        """Whether versions find room beside those in use. needs: of each, by digest."""
        missing = [needs[digest] for digest in needs if digest not in self.residents]
        kept = Counter[str]()
        for digest in [digest for digest in needs if digest in self.idle]:
            kept.update(_sizes(self.idle[digest]))
        return all(
            sum(each.get(name, 0) for each in missing) + kept[name] <= room.free + self.spare[name]
            for name, room in self._rooms.items()
        )

    def lease(self, versions: Sequence[VersionRecord]) -> Lease:
        """One user more of each, all of which are there."""
        granted: dict[str, Resident] = {}
        for version in versions:
            if version.digest not in granted:
                granted[version.digest] = self.take_up(version.digest)
        return Lease(
            {digest: resident.rows for digest, resident in granted.items()},
            {digest: resident.vectors for digest, resident in granted.items()},
        )

    def take_up(self, digest: str) -> Resident:
        """One user more of what is there."""
        resident = self.residents[digest]
        if self.idle.pop(digest, None) is not None:
            self.spare.subtract(_sizes(resident))
        resident.users += 1
        return resident

    def let_go(self, digest: str) -> None:
        """One user less."""
        resident = self.residents[digest]
        resident.users -= 1
        if resident.users == 0:
            self.idle[digest] = resident
            self.spare.update(_sizes(resident))

    def take(self, version: VersionRecord) -> dict[str, Sequence[int]]:
        """Numbers in every room, evicting unused versions until they fit; all or none.

        Raises:
            PoolFull: where that is not enough.
        """
        needs, rooms = self.needs(version), self._rooms
        while short := {name for name, count in needs.items() if rooms[name].free < count}:
            self._make_room(short)
        return {name: rooms[name].take(count) for name, count in needs.items()}

    def give_back(self, rows: Rows) -> None:
        """What `take` gave."""
        rooms = self._rooms
        for name, numbers in rows.items():
            rooms[name].give_back(numbers)

    def add(self, version: VersionRecord, rows: Rows, vectors: Vectors) -> Resident:
        """A version that was written under what `take` gave, with one user."""
        nbytes = self._size_of({room: len(numbers) for room, numbers in rows.items()})
        resident = self.residents[version.digest] = Resident(version, rows, vectors, nbytes, users=1)
        self._bytes += nbytes
        self._gauge()
        return resident

    def evict_unused(self) -> None:
        """Puts out every adapter that nobody uses."""
        for resident in tuple(self.idle.values()):
            self._evict(resident, "unused")

    def drop(self, digests: Collection[str]) -> None:
        """Puts out those of these that nobody uses: their adapter was deleted."""
        for digest in digests:
            if (resident := self.idle.get(digest)) is not None:
                self._evict(resident, "deleted")

    @property
    def _rooms(self) -> Mapping[str, Room]:
        return {name: room for group in self._groups.values() for name, room in group.rooms.items()} | {
            _VECTORS: self._vectors
        }

    def _told(self, count: int, room: str) -> str:
        return f"total rank {count} in {room}" if room in self._groups else f"{count} {room}"

    def _pins_take(self, room: str, needs: Mapping[str, Mapping[str, int]]) -> int:
        """Of a room, beside these."""
        return sum(each.get(room, 0) for digest, each in self._pinned.items() if digest not in needs)

    def _together(self, room: str, needs: Mapping[str, Mapping[str, int]]) -> int:
        return sum(each.get(room, 0) for each in needs.values())

    def _most(self, room: str) -> int:
        """What one batch row can use at once."""
        if room.endswith((OUTPUTS, INPUTS)):
            return G_CLASSES[-1]
        return self._max_rank if room in self._groups else sys.maxsize

    def _make_room(self, short: Collection[str]) -> None:
        """Puts out the one that holds something of these rooms and was left longest ago."""
        resident = next((each for each in self.idle.values() if not each.rows.keys().isdisjoint(short)), None)
        if resident is None:
            raise PoolFull(1, 0)
        self._evict(resident, "room")

    def _evict(self, resident: Resident, reason: str) -> None:
        del self.residents[resident.digest], self.idle[resident.digest]
        self.spare.subtract(_sizes(resident))
        self.give_back(resident.rows)
        self._bytes -= resident.nbytes
        self._metrics.cache_evictions.labels("device", reason).inc()
        self._gauge()

    @property
    def _capacity(self) -> Mapping[str, int]:
        return {name: room.capacity for name, room in self._rooms.items() if not name.endswith((OUTPUTS, INPUTS))}

    def _size_of(self, counts: Mapping[str, int]) -> int:
        """Bytes of so many numbers of each room."""
        sizes = {name: size for group in self._groups.values() for name, size in group.number_bytes.items()}
        sizes[_VECTORS] = 1
        return sum(count * sizes[name] for name, count in counts.items())

    def _gauge(self) -> None:
        self._metrics.resident.labels("device").set(len(self.residents))
        self._metrics.resident_bytes.labels("device").set(self._bytes)


def _sizes(resident: Resident) -> dict[str, int]:
    """How many numbers it has, by room."""
    return {name: len(rows) for name, rows in resident.rows.items()}
