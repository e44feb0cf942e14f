"""Mask plans: which tokens each variant of a tile hides, so that every token is repainted from exactly one variant.

Dini & Rahtu hide one 2x2 block of the 16x16 tokens at a time, 64 variants per tile (plan `x1`). Plans `x4` and `x16`
hide 4 or 16 blocks at once, as far apart as the grid allows, and need 16 or 4 variants there.

On grids that do not divide evenly some variants would hide fewer tokens than others. The engine needs constant shapes,
so these hide a few tokens more, far from their own; what is repainted there is thrown away (`Plan.place` never points
to it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PLANS", "Plan", "blocks", "named_plan", "plan"]

PLANS = ("x1", "x4", "x16")
"""Names of the plans; the number is how many blocks a variant hides."""

Index = npt.NDArray[np.int32]


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


def plan(grid: tuple[int, int], block: int, hide: int) -> Plan:
    """The plan that hides at most `hide` blocks of `block` x `block` tokens per variant, on a lattice, never
    neighbours.

    grid: rows and columns of tokens. hide: a square number (1, 4, 16). Raises ValueError for anything else.
    """
    side = math.isqrt(hide)
    if side * side != hide or hide < 1 or block < 1 or min(grid) < 1:
        raise ValueError(
            f"no plan for a grid of {grid}, blocks of {block}, {hide} hidden: hide must be a square number"
        )
    table = blocks(grid, block)
    # At least every other block stays visible, each way: what has no neighbours cannot be repainted.
    row_step, column_step = (max(math.ceil(n / side), min(2, n)) for n in (len(table), len(table[0])))
    own = [
        sorted(token for row in table[i::row_step] for cell in row[j::column_step] for token in cell)
        for i in range(row_step)
        for j in range(column_step)
    ]
    width = max(map(len, own))
    if width >= grid[0] * grid[1]:
        raise ValueError(f"hiding {hide} blocks of {block}x{block} leaves nothing of a grid of {grid}")
    hidden = np.array([sorted(tokens + _far_from(tokens, grid, width - len(tokens))) for tokens in own], np.int32)
    every = np.arange(grid[0] * grid[1], dtype=np.int32)
    visible = np.stack([np.setdiff1d(every, row) for row in hidden]).astype(np.int32)
    place = np.empty(len(every), np.int32)
    for variant, tokens in enumerate(own):
        place[tokens] = variant * width + np.searchsorted(hidden[variant], tokens)
    return Plan(grid, visible, hidden, place)


def named_plan(name: str, grid: tuple[int, int], block: int) -> Plan:
    """The plan called `name` (see PLANS). Raises ValueError for an unknown name."""
    if name not in PLANS:
        raise ValueError(f"unknown mask plan {name!r}: expected one of {', '.join(PLANS)}")
    return plan(grid, block, int(name[1:]))


def _far_from(tokens: list[int], grid: tuple[int, int], count: int) -> list[int]:
    """`count` tokens that are not in `tokens`, the farthest (Chebyshev) first."""
    if count == 0:
        return []
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    own = np.asarray(tokens)
    distance = np.maximum(abs(rows[:, None] - rows[own]), abs(columns[:, None] - columns[own])).min(1)
    order = np.argsort(-distance, kind="stable")
    return [int(t) for t in order[:count]]
