"""The stacked dilated convolutions' architecture and its sizes; `engines.sdc` builds it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engines.corruption import Corruption

__all__ = ["SDC_EDGE", "SDC_PAPER", "SdcArchitecture"]

SMALLEST_CROP_PX = 32
"""Crops to fit on are never smaller, if tiles are not."""


class SdcArchitecture(BaseModel):
    """An autoencoder of stacked dilated convolutions (Bauer, arXiv 2206.11723), built by `engines.sdc`.

    Encoder: `levels` times `encoder_convolutions` 3x3 convolutions and a 2x2 maximum; filters start at `width` and
    double from level to level. Middle: `stacks` times one 3x3 convolution of `branch_width` filters per rate of
    `dilations`, side by side, and after each stack a convolution of `mix_px` x `mix_px` that keeps the width (0: none).
    Decoder: `levels` times a transposed 3x3 convolution of stride 2 and `decoder_convolutions` 3x3 convolutions.
    normalise: "none" as in the paper; "local" takes mean and contrast of a window of about `window_px` off before the
    network and puts them back behind it, so that lighting and contrast do not matter. What is larger than the window
    is then taken for lighting.
    objective, corrupted_weight, corruption: what fitting minimises, and on which tiles (see `engines.sdc`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    kind: Literal["sdc"] = "sdc"
    tile_px: int = Field(default=256, ge=16, le=4096)
    channels: Literal[1, 3] = 1
    width: int = Field(default=64, ge=2, le=1024, description="filters of the first level; each has twice as many")
    levels: int = Field(default=3, ge=1, le=5, description="each halves the picture on the way in")
    encoder_convolutions: int = Field(default=2, ge=1, le=4, description="per level on the way in")
    decoder_convolutions: int = Field(default=2, ge=0, le=4, description="per level on the way out")
    dilations: tuple[int, ...] = Field(default=(1, 2, 4, 8, 16, 32), description="rates of a stack")
    branch_width: int = Field(default=64, ge=1, le=1024, description="filters per dilation rate")
    stacks: int = Field(default=4, ge=1, le=16, description="of dilated convolutions, one after the other")
    mix_px: Literal[0, 1, 3] = Field(default=3, description="side of the convolution after each stack; 0: none")
    normalise: Literal["none", "local"] = Field(
        default="none", description="local: neither lighting nor contrast of a tile matter"
    )
    window_px: int = Field(default=64, ge=16, le=1024, description="of the local mean and contrast")
    objective: Literal[1, 3] = Field(default=1, description="1: squared differences; 3: 1 - SSIM")
    corrupted_weight: float = Field(
        default=0.5, gt=0, lt=1, description="of the corrupted part in the objective, against the rest"
    )
    corruption: Corruption = Corruption()

    @model_validator(mode="after")
    def _fits(self) -> SdcArchitecture:
        if not self.dilations:
            raise ValueError("dilations is empty, expected at least one rate, as in (1, 2, 4, 8)")
        if min(self.dilations) < 1 or len(set(self.dilations)) != len(self.dilations):
            raise ValueError(f"dilations is {self.dilations}, expected different rates of at least 1")
        if self.tile_px % self.stride_px:
            raise ValueError(
                f"tile_px {self.tile_px} is no multiple of {self.stride_px}, the stride of {self.levels} levels; "
                f"take {self.tile_px // self.stride_px * self.stride_px} or change levels"
            )
        if max(self.dilations) > self.tile_px // self.stride_px:
            raise ValueError(
                f"dilations has a rate of {max(self.dilations)}, but a tile of {self.tile_px} px is only "
                f"{self.tile_px // self.stride_px} wide at a stride of {self.stride_px}: larger rates see only padding"
            )
        if self.normalise == "local" and self.window_px < 2 * self.stride_px:
            raise ValueError(f"window_px {self.window_px} is less than twice the stride of {self.stride_px} px")
        return self

    @property
    def plans(self) -> tuple[str, ...]:
        """One pass over everything."""
        return ("x1",)

    def crop_px(self, progress: float) -> int:
        """Side of the crops to fit on after `progress` (0 to 1) of a fit: a half, then three quarters, then the tile.

        Small crops are quick and teach the texture; the last steps see whole tiles, as batch statistics, and what
        padding does along the sides, must be those of whole tiles in the end. A multiple of the stride.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is {progress}, expected 0 to 1")
        share = 0.5 if progress < 0.6 else 0.75 if progress < 0.85 else 1.0
        side = -(-max(SMALLEST_CROP_PX, round(self.tile_px * share)) // self.stride_px) * self.stride_px
        return min(self.tile_px, side)

    @property
    def stride_px(self) -> int:
        """Pixels of a tile per position in the middle of the network: height and width must be multiples of it."""
        return 1 << self.levels


SDC_PAPER = SdcArchitecture(channels=3)
"""The paper's width, for a GPU: 14 million parameters, 76 GFLOP for a tile of 256 x 256."""

SDC_EDGE = SdcArchitecture(
    width=24, levels=2, decoder_convolutions=1, dilations=(1, 2, 4, 8, 16), branch_width=24, stacks=3, mix_px=0
)
"""Fits in minutes on two cores: 0.44 million parameters, 6.4 GFLOP for a tile of 256 x 256."""
