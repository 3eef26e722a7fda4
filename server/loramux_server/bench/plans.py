"""Plans worth measuring for a call of the linear op.

Takes the sizes of a call and what a card allows; gives plans. It knows no tensors and no triton.
"""

import math
from dataclasses import replace

from loramux_kernels.triton.dispatch import SINGLE_WIDTH, Call, ExpandTile, GemmTile, Plan, ShrinkTile

# BLOCK_M, BLOCK_N, BLOCK_K, rank rows a step, warps, stages. 64 columns divide 320, 128 divide 640, 256 divide 1280;
# few activations (77 text tokens, 8x8 pixels) want short tiles, and a forward of 2 rows many tiles.
GEMM_TILES = (
    GemmTile(128, 128, 64, 16, 8, 3),
    GemmTile(128, 64, 64, 16, 4, 3),
    GemmTile(64, 128, 64, 16, 4, 4),
    GemmTile(64, 64, 64, 16, 4, 4),
    GemmTile(32, 64, 64, 16, 4, 4),
    GemmTile(128, 256, 64, 16, 8, 3),
    GemmTile(128, 128, 32, 16, 8, 4),
    GemmTile(128, 64, 128, 16, 4, 3),
)
SHRINK_TILES = (ShrinkTile(64, 64, 16, 4, 4), ShrinkTile(32, 128, 16, 4, 3), ShrinkTile(16, 128, 16, 2, 4))
EXPAND_TILES = (ExpandTile(64, 64, 16, 4), ExpandTile(64, 128, 16, 4), ExpandTile(128, 128, 16, 8))


def variants(call: Call) -> tuple[str, ...]:
    """Variants that can compute a call."""
    return ("split", "single", "vendor") if call.r <= SINGLE_WIDTH else ("split", "vendor")


def candidates(call: Call, tokens: int, shared_memory: int) -> list[Plan]:
    """Plans of every variant whose tiles fit shared memory and are not mostly padding. tokens: of one batch row."""
    shrinks = [_widened(tile, call.r) for tile in SHRINK_TILES if shared_bytes(tile, call) <= shared_memory]
    found: list[Plan] = []
    for tile in gemm_tiles(call, tokens, shared_memory):
        found += [Plan("split", tile, shrink) for shrink in shrinks]
        if "single" in variants(call) and shared_bytes(tile, call, beside=True) <= shared_memory:
            found.append(Plan("single", tile, None))
    return found + [Plan("vendor", tile, shrink) for tile in EXPAND_TILES for shrink in shrinks]


def gemm_tiles(call: Call, tokens: int, shared_memory: int) -> list[GemmTile]:
    """Tiles of the base product alone."""
    usable = [tile for tile in GEMM_TILES if shared_bytes(tile, call) <= shared_memory]
    return [tile for tile in usable if tile.block_m <= 2 * tokens and tile.block_n <= call.n]


def by_rule(variant: str, width: int, tokens: int, n: int) -> Plan:
    """One plan of a variant without measuring: whole tiles along N, short ones for few activations. n: of a part."""
    shrink = _widened(SHRINK_TILES[0], width)
    wide = n % 128 == 0
    if variant == "vendor":
        return Plan(variant, EXPAND_TILES[1] if wide else EXPAND_TILES[0], shrink)
    tile = GEMM_TILES[{(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}[tokens >= 1024, wide]]
    return Plan(variant, tile, None if variant == "single" else shrink)


def shared_bytes(tile: GemmTile | ShrinkTile, call: Call, *, beside: bool = False) -> int:
    """Bytes of the operands in the stages of a pipeline, an upper bound. beside: with the rows of A beside W0."""
    if isinstance(tile, ShrinkTile):
        values = (tile.block_m + _widened(tile, call.r).block_r) * tile.block_k
    else:
        values = (tile.block_m + tile.block_n + (call.r if beside else 0)) * tile.block_k
    return values * tile.stages * call.bits // 8


def _widened(tile: ShrinkTile, width: int) -> ShrinkTile:
    """The same with all rank rows of narrow tables in one tile, so that x is read once."""
    return replace(tile, block_r=min(64, 1 << math.ceil(math.log2(width))))
