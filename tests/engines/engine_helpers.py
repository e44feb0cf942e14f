"""Tiny networks with weights that matter: fresh ones answer nearly zero everywhere, which any graph gets right."""

from __future__ import annotations

import numpy as np
import torch
from network_helpers import stir

from engines.architecture import MaeArchitecture
from engines.mae import MaskedAutoencoder

TINY = MaeArchitecture(
    tile_px=48, patch_px=6, width=32, depth=2, heads=2, decoder_width=32, decoder_depth=2, decoder_heads=2
)
VARIANTS = {
    "cross": TINY,
    "near": TINY.model_copy(update={"context": 1}),
    "self": TINY.model_copy(update={"decoder": "self", "decoder_width": 48, "decoder_heads": 3}),
    "he": TINY.model_copy(
        update={"decoder": "self", "positions": "sine", "normalise": "fixed", "class_token": True, "channels": 3}
    ),
    "sine": TINY.model_copy(update={"positions": "sine", "decoder_depth": 1}),
    "normalised": TINY.model_copy(
        update={
            "positions": "sine",
            "normalise": "fixed",
            "channels": 3,
            "mean": (0.5, 0.45, 0.4),
            "std": (0.2, 0.25, 0.3),
            "target": "normalised",
        }
    ),
}


def scrambled(architecture: MaeArchitecture, seed: int = 0) -> MaskedAutoencoder:
    """A network whose answers vary about as much as the tiles do."""
    torch.manual_seed(seed)
    model = MaskedAutoencoder(architecture).eval()
    stir(model)
    model.head.weight.data.mul_(2.0)
    return model


def tiles(architecture: MaeArchitecture, count: int = 2, seed: int = 0) -> torch.Tensor:
    """Smooth random tiles uint8 [N, h, w, C], one of them bright and nearly flat."""
    rng = np.random.default_rng(seed)
    a = architecture
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, a.channels, 8, 8)).astype(np.float32))
    image = torch.nn.functional.interpolate(coarse, (a.tile_px, a.tile_px), mode="bicubic").permute(0, 2, 3, 1)
    image[-1] = 250 + image[-1] / 100
    return image.clamp(0, 255).byte().contiguous()
