"""What the tests of every network share: tiles from nowhere, and weights that matter."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Numbers = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


class Tiled(Protocol):
    """An architecture, as far as its tiles go."""

    tile_px: int
    channels: Any


def random_tiles(a: Tiled, count: int = 2, seed: int = 0) -> Pixels:
    """Noise [count, tile_px, tile_px, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (count, a.tile_px, a.tile_px, a.channels), np.uint8)


def answer(network: nn.Module, tiles: Pixels) -> Numbers:
    """What a network makes of tiles, not fitting."""
    with torch.no_grad():
        return np.asarray(network.eval()(torch.from_numpy(tiles)).numpy())


@torch.no_grad()
def stir(network: nn.Module, by: float = 0.3) -> None:
    """Move all weights, so that what a network answers varies about as much as tiles do."""
    for p in network.parameters():
        p.add_(torch.randn_like(p) * (by / max(1, p.shape[-1]) ** 0.5))
