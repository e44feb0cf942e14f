"""Tiny networks that predict maps, with weights that matter."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from engines.architecture import MalaArchitecture
from engines.mala import Mala

__all__ = ["TINY", "VARIANTS", "Numbers", "Pixels", "answer", "random_tiles", "scrambled"]

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float32]

TINY = MalaArchitecture(
    tile_px=32,
    patch_px=4,
    width=64,
    depth=2,
    heads=2,
    mlp_ratio=2.0,
    decoder_width=48,
    decoder_depth=1,
    decoder_heads=2,
    decoder_mlp_ratio=2.0,
    positions="offset",
    normalise="visible",
    balance_width=48,
    pool_px=7,
)
VARIANTS = {
    "grey": TINY,
    "colour": TINY.model_copy(update={"channels": 3, "tile_px": 40, "patch_px": 8, "pool_px": 1}),
    "fixed": TINY.model_copy(update={"normalise": "fixed", "positions": "sine", "depth": 1, "decoder_depth": 2}),
}


def scrambled(a: MalaArchitecture, seed: int = 0) -> Mala:
    """A network whose answers vary with the tile and with the place."""
    torch.manual_seed(seed)
    network = Mala(a).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * (0.3 / max(1, p.shape[-1]) ** 0.5))
        network.map_head[-1].weight.mul_(4)
    return network


def random_tiles(a: MalaArchitecture, count: int = 2, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, a.tile_px, a.tile_px, a.channels), np.uint8)


def answer(network: Mala, tiles: Pixels) -> Numbers:
    with torch.no_grad():
        return np.asarray(network.eval()(torch.from_numpy(tiles)).numpy())
