"""The networks by kind: from an architecture to a torch module. Needs torch.

All have `architecture`; `forward`, which is the graph that is exported: tiles uint8 [N, h, w, C] and the constant
inputs of a mask plan, if they follow one, to float32 [N, h, w, C] in [0, 1], or [N, h, w, C + 1] where the network
draws its own map (`engines.bundle.DirectMap`); and `loss(tiles, rng, progress)`, what fitting minimises on good tiles
uint8 [N, h, w, C] when `progress` (0 to 1) of its steps are done, and the error that it reports.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engines.anovit import AnoVit
from engines.architecture import (
    AnovitArchitecture,
    Architecture,
    MalaArchitecture,
    MetalArchitecture,
    RetouchArchitecture,
    SdcArchitecture,
)
from engines.mae import MaskedAutoencoder
from engines.mala import Mala
from engines.metal import MaskedTransformer
from engines.plans import plan_inputs
from engines.retouch import Retouch
from engines.sdc import SdcAutoencoder, folded

__all__ = ["Network", "build", "count_flop", "count_work", "plan_arguments", "ready_to_serve"]

Network = AnoVit | Mala | MaskedAutoencoder | MaskedTransformer | Retouch | SdcAutoencoder


def build(architecture: Architecture) -> Network:
    """A network with fresh weights, drawn with torch's seed."""
    if isinstance(architecture, SdcArchitecture):
        return SdcAutoencoder(architecture)
    if isinstance(architecture, MetalArchitecture):
        return MaskedTransformer(architecture)
    if isinstance(architecture, AnovitArchitecture):
        return AnoVit(architecture)
    if isinstance(architecture, MalaArchitecture):
        return Mala(architecture)
    if isinstance(architecture, RetouchArchitecture):
        return Retouch(architecture)
    return MaskedAutoencoder(architecture)


def ready_to_serve(network: Network) -> Network:
    """The network as it is exported: the same answers to 1e-5, for less work."""
    return folded(network) if isinstance(network, SdcAutoencoder) else network


def plan_arguments(architecture: Architecture, plan: str) -> tuple[Tensor, ...]:
    """What `forward` takes besides the tiles, int64; see `engines.plans.plan_inputs`."""
    return tuple(torch.from_numpy(x.astype(np.int64)) for x in plan_inputs(architecture, plan).values())


def count_work(network: Network, plan: str) -> float:
    """Billions of multiplications and additions per tile in matrix products and convolutions, as torch counts them.

    `engines.cost` counts without torch, and leaves out what backends fold. The network can only be asked afterwards,
    and not trained.
    """
    a = network.eval().requires_grad_(False).architecture
    shape = (1, a.tile_px, a.tile_px, a.channels)
    return count_flop(lambda: network(torch.zeros(shape, dtype=torch.uint8), *plan_arguments(a, plan))) / 1e9


def count_flop(call: Callable[[], object]) -> int:
    """Multiplications and additions in the matrix products and convolutions of a call, which is followed by the shapes
    of its tensors: nothing is computed, and it must not look at values."""
    # Torch has no count for the CPU's fused attention and would take it for nothing: the plain one is two products.
    with sdpa_kernel(SDPBackend.MATH), FakeTensorMode(allow_non_fake_inputs=True):
        with FlopCounterMode(display=False) as counter:
            call()
    return int(counter.get_total_flops())
