"""Tiny networks that predict maps, with weights that matter."""

from __future__ import annotations

import torch
from network_helpers import stir

from engines.architecture import MalaArchitecture
from engines.mala import Mala

__all__ = ["TINY", "VARIANTS", "scrambled"]

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
    stir(network)
    network.map_head[-1].weight.data.mul_(4)
    return network
