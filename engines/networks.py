"""The networks by kind: from an architecture to a torch module. Needs torch.

All have `architecture`; `forward`, which is the graph that is exported: tiles uint8 [N, h, w, C] and the constant
inputs of a mask plan, if they follow one, to float32 [N, h, w, C] in [0, 1]; and `loss(tiles, rng, progress)`, what
fitting minimises on good tiles uint8 [N, h, w, C] when `progress` (0 to 1) of its steps are done, and the error that it
reports.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from engines.architecture import Architecture, SdcArchitecture
from engines.mae import MaskedAutoencoder
from engines.plans import plan_inputs
from engines.sdc import SdcAutoencoder, folded

__all__ = ["Network", "build", "count_work", "plan_arguments", "ready_to_serve"]

Network = MaskedAutoencoder | SdcAutoencoder


def build(architecture: Architecture) -> Network:
    """A network with fresh weights, drawn with torch's seed."""
    if isinstance(architecture, SdcArchitecture):
        return SdcAutoencoder(architecture)
    return MaskedAutoencoder(architecture)


def ready_to_serve(network: Network) -> Network:
    """The network as it is exported: the same answers to 1e-5, for less work."""
    return folded(network) if isinstance(network, SdcAutoencoder) else network


def plan_arguments(architecture: Architecture, plan: str) -> tuple[Tensor, ...]:
    """What `forward` takes besides the tiles, int64; see `engines.plans.plan_inputs`."""
    return tuple(torch.from_numpy(x.astype(np.int64)) for x in plan_inputs(architecture, plan).values())


def count_work(network: Network, plan: str) -> float:
    """Billions of multiplications and additions per tile in matrix products and convolutions, as torch counts them.

    The network can only be asked afterwards, and not trained.
    """
    a = network.architecture
    tile = torch.zeros(1, a.tile_px, a.tile_px, a.channels, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        network.eval().requires_grad_(False)(tile, *plan_arguments(a, plan))
    return float(counter.get_total_flops()) / 1e9
