"""Layers that share numbers and tables: who owns what in them, and what the next forward adds.

Takes layers, one adapter's factors with the numbers that it owns, and what each batch row adds; gives tables and uses.
It knows no adapter by name, no request and no queue.
"""

from collections import defaultdict
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

import torch

from loramux_kernels import SCALE_ROWS, Impl, RowAllocator, TableBank, Tables, Use, uses
from loramux_server.engine.blends import EVERYWHERE, Added, RowEntries, Rows
from loramux_server.engine.module_factors import ModuleFactors
from loramux_server.engine.rooms import INPUTS, OUTPUTS, SIDE_BYTES, SIDES, ByteBudget, Room
from loramux_store.record import MatchedModule

if TYPE_CHECKING:
    from loramux_server.engine.lora_layers import LoraConv2d, LoraLinear
    from loramux_server.engine.side_norms import SideGroupNorm, SideLayerNorm

_NOTHING: Mapping[str, Tables | None] = {EVERYWHERE: None}
_NO_USES: Mapping[str, tuple[Use, ...]] = {EVERYWHERE: ()}
_FEWEST_SCALE_ROWS = 8
_MOST_SIDES = 1024
"""Adapters with side operations on the device at once; their bytes end sooner."""


class LayerGroup:
    """Layers that share numbers and tables.

    impl: how its layers compute. norms: normalisations, which side operations alone can change. tables, uses: what the
    next forward of these layers adds, by block of the UNet, with EVERYWHERE for the blocks that are not keys; None and
    () add nothing and launch nothing.
    """

    def __init__(self, name: str, impl: Impl, side_bytes: ByteBudget) -> None:
        self.name = name
        self.impl: Impl = impl
        self.layers: dict[str, LoraLinear | LoraConv2d] = {}
        self.norms: dict[str, SideGroupNorm | SideLayerNorm] = {}
        self.tables: Mapping[str, Tables | None] = _NOTHING
        self.uses: Mapping[str, tuple[Use, ...]] = _NO_USES
        self._side_bytes = side_bytes
        self._arrays = 0  # how often there were other arrays of rank rows or scale rows

    @property
    def state(self) -> Hashable:
        """What decides which kernels the next forward of these layers launches, and where they read; None where that
        is the tables' content too: with side operations, and with scales of both outputs and inputs."""
        tables = self.tables.values()
        if self.uses is not _NO_USES or any(each and each.outputs and each.inputs for each in tables):
            return None
        return self._arrays, tuple((block, each and each.place) for block, each in self.tables.items())

    @property
    def paths(self) -> Iterator[str]:
        """Of all modules that adapters may change."""
        return chain(self.layers, self.norms)

    @property
    def row_bytes(self) -> int:
        """Device bytes of one rank row over all layers."""
        return sum((layer.k + layer.n) * layer.weight.element_size() for layer in self.layers.values())

    def open(self, size: int, device: torch.device, fixed_rank: int | None = None) -> None:
        """Makes room for `size` rank rows; their arrays are allocated by `write`, when first needed.

        fixed_rank: R class of all forwards, where results must not depend on the company in their last bits.
        """
        self.rows = RowAllocator(size)
        self.rooms: dict[str, Room] = {
            self.name: self.rows,
            self.name + OUTPUTS: RowAllocator(SCALE_ROWS),
            self.name + INPUTS: RowAllocator(SCALE_ROWS),
            self.name + SIDES: _SideNumbers(self),
            SIDE_BYTES: self._side_bytes,
        }
        self.number_bytes = self._number_bytes()
        self._scale_rows = {OUTPUTS: _FEWEST_SCALE_ROWS, INPUTS: _FEWEST_SCALE_ROWS}
        self._device, self._fixed = device, fixed_rank is not None
        self._banks: defaultdict[str, TableBank] = defaultdict(lambda: TableBank(device, fixed_rank))

    def _scale_bytes(self, dim: int) -> int:
        """Device bytes of a scale row over all layers: of outputs (0) or inputs (1)."""
        return torch.float32.itemsize * sum(layer.weight.shape[dim] for layer in self.layers.values())

    def _number_bytes(self) -> dict[str, int]:
        """Device bytes of one number of each room. Those of side operations and of scale rows are counted one by one,
        as numbers of SIDE_BYTES."""
        return {
            self.name: self.row_bytes,
            **{self.name + room: 0 for room in (OUTPUTS, INPUTS, SIDES)},
            SIDE_BYTES: 1,
        }

    def needs(self, modules: Sequence[MatchedModule]) -> dict[str, int]:
        """What an adapter takes of each room for its modules in this group."""
        values = sum(module.side_values for module in modules)
        output, input_ = (any(module.axis == axis for module in modules) for axis in ("output", "input"))
        found = {
            self.name: max(module.rank for module in modules),
            self.name + OUTPUTS: int(output),
            self.name + INPUTS: int(input_),
            self.name + SIDES: int(values > 0),
            SIDE_BYTES: values * next(iter(self.layers.values())).weight.element_size()
            + output * self._scale_bytes(0)
            + input_ * self._scale_bytes(1),
        }
        return {room: count for room, count in found.items() if count}

    @torch.no_grad()
    def write(self, numbers: Rows, factors: Mapping[str, ModuleFactors]) -> None:
        """Writes one adapter's factors {module path: factors} under the numbers that it owns, into every layer."""
        rows = numbers.get(self.name, ())
        scales = tuple(self._scale_place(room, numbers) for room in (OUTPUTS, INPUTS))
        side = next(iter(numbers.get(self.name + SIDES, ())), None)
        before = self._all_arrays()
        for path, layer in self.layers.items():
            _write(layer, rows, scales, side, factors.get(path), self.rows.size)
        if self._all_arrays() != before:
            self._arrays += 1
        for path, norm in self.norms.items():
            if path in factors and side is not None:
                norm.sides[side] = factors[path].norm(norm.weight)

    def _all_arrays(self) -> list[tuple[int, ...]]:
        """Which arrays every layer has."""
        pools = (layer.pool for layer in self.layers.values())
        return [() if pool is None else (id(pool), id(pool.g), id(pool.h)) for pool in pools]

    def _scale_place(self, room: str, numbers: Rows) -> tuple[int, int] | None:
        """An adapter's scale row, and how many there must be in every layer: tables are shared by all layers."""
        for number in numbers.get(self.name + room, ()):
            while self._scale_rows[room] <= number:
                self._scale_rows[room] *= 2
            return number, self._scale_rows[room]
        return None

    @contextmanager
    def adding(self, blends: Sequence[RowEntries]) -> Generator[Mapping[str, Tables]]:
        """Within it, batch row i of these layers adds blends[i], block by block.

        Blocks that no blend names share one set of tables.
        """
        blocks = {EVERYWHERE: None} | {block: None for blend in blends for block in blend}
        by_block = {block: [blend.get(block, blend[EVERYWHERE]) for blend in blends] for block in blocks}
        self.tables = {block: self._tables(block, added) for block, added in by_block.items()}
        if any(each.sides for added in by_block.values() for each in added):
            self.uses = {
                block: uses([each.sides for each in added], self._device, alone=self._fixed)
                for block, added in by_block.items()
            }
        try:
            yield {block: tables for block, tables in self.tables.items() if tables is not None}
        finally:
            self.tables, self.uses = _NOTHING, _NO_USES

    def _tables(self, block: str, added: Sequence[Added]) -> Tables | None:
        rows, outputs, inputs = zip(*((each.rows, each.outputs, each.inputs) for each in added), strict=True)
        return self._banks[block].write(rows, outputs, inputs)

    def tables_of(self, block: str) -> Tables | None:
        """What the layers of a block add now."""
        return self.tables[block] if block in self.tables else self.tables[EVERYWHERE]

    def uses_of(self, block: str) -> tuple[Use, ...]:
        """Which side operations the layers of a block add now."""
        return self.uses[block] if block in self.uses else self.uses[EVERYWHERE]


class _SideNumbers(RowAllocator):
    """Numbers of side operations; one that is given back is forgotten by every layer."""

    def __init__(self, group: LayerGroup) -> None:
        super().__init__(_MOST_SIDES + 1)
        self._group = group

    def give_back(self, rows: Sequence[int]) -> None:
        """Frees numbers, and the memory of what they stand for."""
        for layer in chain(self._group.layers.values(), self._group.norms.values()):
            for number in rows:
                layer.sides.pop(number, None)
        super().give_back(rows)


def _write(
    layer: "LoraLinear | LoraConv2d",
    rows: Sequence[int],
    scales: Sequence[tuple[int, int] | None],
    side: int | None,
    factors: ModuleFactors | None,
    pool_size: int,
) -> None:
    """One adapter's factors in one layer, None where it leaves the layer alone."""
    weight = layer.weight
    scale = factors and factors.channel_scale(weight)
    if layer.pool is None and (rows or scale is not None):
        layer.make_pool(pool_size)
    if layer.pool is not None:
        found = factors and factors.rows(weight, scale)
        if found and rows:
            layer.pool.write(rows, *found)
        elif rows:
            layer.pool.clear(rows)
        axis = factors.axis if factors else ""
        for name, place, write in zip(
            ("output", "input"), scales, (layer.pool.write_output_scale, layer.pool.write_input_scale), strict=True
        ):
            if place is not None:
                number, count = place
                write(number, scale if axis == name else None, count)
    operation = factors and factors.side(weight, scale)
    if operation and side is not None:
        layer.sides[side] = operation
