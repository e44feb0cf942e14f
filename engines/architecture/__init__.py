"""What a network looks like, as data: read from a bundle's manifest, built by the file of the same name in `engines`.

A file per network, none of which needs torch. Every architecture has `kind`, `tile_px` and `channels`; `plans`, the
mask plans that it can follow, the exact one first; and `crop_px(progress)`, the side of the crops to fit on.
"""

from engines.architecture.mae import PLANS, TEXTURE_S, VIT_B, VIT_H, VIT_L, MaeArchitecture
from engines.architecture.sdc import SDC_EDGE, SDC_PAPER, SdcArchitecture

__all__ = [
    "PLANS",
    "SDC_EDGE",
    "SDC_PAPER",
    "TEXTURE_S",
    "VIT_B",
    "VIT_H",
    "VIT_L",
    "Architecture",
    "MaeArchitecture",
    "SdcArchitecture",
]

Architecture = MaeArchitecture | SdcArchitecture
"""Every network with weights."""
