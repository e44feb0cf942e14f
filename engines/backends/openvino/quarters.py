"""Plan x1, a quarter of its variants at a time.

Four runs with 16 variants each take less than one with 64, because what they touch stays in the processor's caches
(docs/openvino.md has figures). And a cascade can ask for the blocks of a tile that are in doubt: a plan whose variants
hide one block each has the index sets of any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from engines.architecture import Architecture, MaeArchitecture
from engines.plans import EXACT_PLAN, Index, plan_inputs, some_blocks

__all__ = ["Quarters", "quarters_of"]

QUARTERS = 4

Run = Callable[[npt.NDArray[np.uint8], dict[str, Index]], npt.NDArray[np.float32]]
"""From tiles [1, h, w, C] and index sets to what the network repaints, [1, h, w, C]."""


def quarters_of(architecture: Architecture, plan: str, precision: str) -> Quarters | None:
    """How a network is served in quarters; None: in one. int8 graphs are quantised with the whole plan, and a network
    that measures what it repainted needs all of it at once."""
    if isinstance(architecture, MaeArchitecture) and plan == EXACT_PLAN and precision != "int8":
        return Quarters(architecture)
    return None


class Quarters:
    """Which index sets a quarter has, and where in a tile its answers belong."""

    def __init__(self, architecture: MaeArchitecture) -> None:
        self._sets = plan_inputs(architecture, EXACT_PLAN)
        self._grid, self._patch = architecture.grid, architecture.patch_px
        variants, width = self._sets["hidden"].shape
        self.blocks = -(-variants // QUARTERS)
        """How many make a quarter."""
        self._variant_of = self._sets["place"] // width  # [T]
        starts = [min(first, variants - self.blocks) for first in range(0, variants, self.blocks)]
        self._all = [np.arange(first, first + self.blocks, dtype=np.int32) for first in starts]

    @property
    def example(self) -> dict[str, Index]:
        """The index sets of one quarter; all of them have these shapes."""
        return some_blocks(self._sets, self._all[0])

    def repaint(
        self, run: Run, tile: npt.NDArray[np.uint8], out: npt.NDArray[np.float32], chosen: Index | None = None
    ) -> None:
        """Fills `out` [h, w, C] with what `run` makes of `tile` [h, w, C]; of the blocks `chosen` alone, as many as
        make a quarter, if they are given: the rest of `out` is left as it is."""
        quarters: Sequence[Index] = self._all if chosen is None else [chosen]
        for blocks in quarters:
            answer = run(tile[None], some_blocks(self._sets, blocks))[0]
            tokens = np.isin(self._variant_of, blocks).reshape(self._grid)
            self._patches(out)[tokens] = self._patches(answer)[tokens]

    def _patches(self, picture: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[h, w, C] -> [rows, columns, patch, patch, C], in place."""
        (rows, columns), patch = self._grid, self._patch
        patches: npt.NDArray[np.float32] = picture.reshape(rows, patch, columns, patch, -1).swapaxes(1, 2)
        return patches
