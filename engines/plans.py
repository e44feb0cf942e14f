"""Mask plans: which tokens each variant of a tile hides, so that every token is repainted from exactly one variant.

Dini & Rahtu hide one 2x2 block of the 16x16 tokens at a time, 64 variants per tile (plan `x1`). Plans `x4` and `x16`
hide 4 or 16 blocks at once, as far apart as the grid allows, and need 16 or 4 variants there. Plan `x32` hides every
other block, as on a chessboard, in 2 variants: enough for the first look of a cascade.

On grids that do not divide evenly some variants would hide fewer tokens than others. The engine needs constant shapes,
so these hide a few tokens more, far from their own; what is repainted there is thrown away (`Plan.place` never points
to it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.architecture import PLANS, Architecture, MaeArchitecture, RetouchArchitecture

__all__ = [
    "CHEAP_PLAN",
    "EXACT_PLAN",
    "PLANS",
    "Index",
    "Plan",
    "blocks",
    "named_plan",
    "plan",
    "plan_inputs",
    "some_blocks",
    "window",
]

Index = npt.NDArray[np.int32]

CHEAP_PLAN, EXACT_PLAN = "x32", "x1"
"""The plans of a cascade: all tiles with the first, those near the threshold again with the second."""
EVERY_OTHER = 32
"""Blocks that a chessboard hides on the paper's grid."""


@dataclass(frozen=True)
class Plan:
    """Constant index sets of one plan. Token numbers run row by row over the grid; T = rows * columns.

    visible: int32 [V, T - H], ascending; what each of the V variants shows to the encoder.
    hidden: int32 [V, H], ascending; everything else.
    place: int32 [T]; token t is repainted by entry `place[t]` of the flattened [V * H] outputs.
    """

    grid: tuple[int, int]
    visible: Index
    hidden: Index
    place: Index

    @property
    def variants(self) -> int:
        """How many masked copies of a tile the plan needs."""
        return int(self.visible.shape[0])


def blocks(grid: tuple[int, int], block: int) -> list[list[list[int]]]:
    """Token numbers of each block, as [block row][block column][token]; blocks at the far edges may be smaller."""
    rows, columns = grid
    table = np.arange(rows * columns).reshape(rows, columns)
    return [
        [table[r : r + block, c : c + block].ravel().tolist() for c in range(0, columns, block)]
        for r in range(0, rows, block)
    ]


def window(grid: tuple[int, int], token: int, block: int, context: int | None) -> Index:
    """Token numbers, ascending, of a window that reaches `context` tokens beyond the block which begins at `token`.

    At the sides of the grid it is moved inside, so that all windows have one size. None: the whole grid.
    """
    table = np.arange(grid[0] * grid[1], dtype=np.int32).reshape(grid)
    if context is None:
        return table.ravel()
    sides = [min(n, block + 2 * context) for n in grid]
    begins = zip(divmod(token, grid[1]), grid, sides, strict=True)
    row, column = (min(max(0, at - context), length - side) for at, length, side in begins)
    return table[row : row + sides[0], column : column + sides[1]].ravel()


def plan(grid: tuple[int, int], block: int, hide: int, context: int | None = None) -> Plan:
    """The plan that hides blocks of `block` x `block` tokens, never neighbours.

    grid: rows and columns of tokens. hide: at most so many blocks per variant on a lattice, a square number (1, 4, 16);
    or EVERY_OTHER, however many these are. context: where one block is hidden, the variant sees only the tokens up to
    so far from it; None: the whole tile. Raises ValueError for anything else.
    """
    side = math.isqrt(hide)
    if (side * side != hide and hide != EVERY_OTHER) or hide < 1 or block < 1 or min(grid) < 1:
        raise ValueError(
            f"no plan for a grid of {grid}, blocks of {block}, {hide} hidden: hide must be a square number or "
            f"{EVERY_OTHER}"
        )
    table = blocks(grid, block)
    own = _chessboard(table) if hide == EVERY_OTHER else _lattices(table, side)
    width = max(map(len, own))
    if width >= grid[0] * grid[1]:
        raise ValueError(f"hiding {hide} blocks of {block}x{block} leaves nothing of a grid of {grid}")
    near = [window(grid, tokens[0], block, context if hide == 1 else None) for tokens in own]
    hidden = np.array(
        [sorted(t + _far_from(t, seen, grid[1], width - len(t))) for t, seen in zip(own, near, strict=True)], np.int32
    )
    visible = np.stack([np.setdiff1d(seen, row) for seen, row in zip(near, hidden, strict=True)])
    place = np.empty(grid[0] * grid[1], np.int32)
    for variant, tokens in enumerate(own):
        place[tokens] = variant * width + np.searchsorted(hidden[variant], tokens)
    return Plan(grid, visible, hidden, place)


def _lattices(table: list[list[list[int]]], side: int) -> list[list[int]]:
    """Tokens of each lattice of blocks, about `side` of them each way."""
    # At least every other block stays visible, each way: what has no neighbours cannot be repainted.
    row_step, column_step = (max(math.ceil(n / side), min(2, n)) for n in (len(table), len(table[0])))
    return [
        sorted(token for row in table[i::row_step] for cell in row[j::column_step] for token in cell)
        for i in range(row_step)
        for j in range(column_step)
    ]


def _chessboard(table: list[list[list[int]]]) -> list[list[int]]:
    """Tokens of the black blocks, and of the white ones."""
    return [
        sorted(token for i, row in enumerate(table) for cell in row[(i + colour) % 2 :: 2] for token in cell)
        for colour in (0, 1)
    ]


def named_plan(name: str, architecture: MaeArchitecture) -> Plan:
    """The plan called `name` (see PLANS) on this network's tokens. Raises ValueError for an unknown name."""
    if name not in PLANS:
        raise ValueError(f"unknown mask plan {name!r}: expected one of {', '.join(PLANS)}")
    return plan(architecture.grid, architecture.block, int(name[1:]), architecture.context)


def plan_inputs(architecture: Architecture, name: str) -> dict[str, Index]:
    """What the graph of a network takes besides the tiles, constant for a plan: `visible`, `hidden` and `place` of a
    masked autoencoder; nothing where one pass answers for the whole tile.

    Raises ValueError for a plan that the network does not have.
    """
    if name not in architecture.plans:
        raise ValueError(f"mask plan {name!r}: a network of kind {architecture.kind!r} has {architecture.plans}")
    masked = architecture.pixels if isinstance(architecture, RetouchArchitecture) else architecture
    if not isinstance(masked, MaeArchitecture):
        return {}
    sets = named_plan(name, masked)
    return {"visible": sets.visible, "hidden": sets.hidden, "place": sets.place}


def some_blocks(sets: Mapping[str, Index], chosen: Index) -> dict[str, Index]:
    """Of the index sets of plan `x1` (`plan_inputs`), whose variants hide one block each, those of the blocks `chosen`.

    What these do not repaint gets what stands first in their answers, and must be thrown away.
    """
    width = sets["hidden"].shape[1]
    variant, entry = np.divmod(sets["place"], width)
    order = np.full(len(sets["hidden"]), -1)
    order[chosen] = np.arange(len(chosen))
    place = np.where(order[variant] < 0, 0, order[variant] * width + entry)
    return {"visible": sets["visible"][chosen], "hidden": sets["hidden"][chosen], "place": place.astype(np.int32)}


def _far_from(tokens: list[int], among: Index, columns: int, count: int) -> list[int]:
    """`count` tokens of `among` that are not in `tokens`, the farthest (Chebyshev) first."""
    if count == 0:
        return []
    (row, column), (own_row, own_column) = np.divmod(among, columns), np.divmod(np.asarray(tokens), columns)
    distance = np.maximum(abs(row[:, None] - own_row), abs(column[:, None] - own_column)).min(1)
    order = np.argsort(-distance, kind="stable")
    return [int(t) for t in among[order[:count]]]
