"""What a network looks like, as data: read from a bundle's manifest, built by the file of the same name in `engines`.

A file per network, none of which needs torch. Every architecture has `kind`, `tile_px` and `channels`; `plans`, the
mask plans that it can follow, the exact one first; and `crop_px(progress)`, the side of the crops to fit on.
"""

from engines.architecture.anovit import ANOVIT_EDGE, ANOVIT_PAPER, AnovitArchitecture
from engines.architecture.mae import PLANS, TEXTURE_S, VIT_B, VIT_H, VIT_L, MaeArchitecture
from engines.architecture.mala import MALA_EDGE, MALA_PAPER, MalaArchitecture
from engines.architecture.metal import METAL_EDGE, METAL_PAPER, METAL_PAPER_PRODUCT, MetalArchitecture
from engines.architecture.retouch import RETOUCH, RetouchArchitecture
from engines.architecture.sdc import SDC_EDGE, SDC_PAPER, SdcArchitecture

__all__ = [
    "ANOVIT_EDGE",
    "ANOVIT_PAPER",
    "MALA_EDGE",
    "MALA_PAPER",
    "METAL_EDGE",
    "METAL_PAPER",
    "METAL_PAPER_PRODUCT",
    "PLANS",
    "RETOUCH",
    "SDC_EDGE",
    "SDC_PAPER",
    "TEXTURE_S",
    "VIT_B",
    "VIT_H",
    "VIT_L",
    "AnovitArchitecture",
    "Architecture",
    "MaeArchitecture",
    "MalaArchitecture",
    "MetalArchitecture",
    "RetouchArchitecture",
    "SdcArchitecture",
]

Architecture = (
    AnovitArchitecture | MaeArchitecture | MalaArchitecture | MetalArchitecture | RetouchArchitecture | SdcArchitecture
)
"""Every network with weights."""
