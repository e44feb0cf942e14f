"""What a network looks like, as data: read from a bundle's manifest, built by `engines.mae`. Needs no torch."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["TEXTURE_S", "MaeArchitecture"]


class MaeArchitecture(BaseModel):
    """A masked autoencoder over square tiles.

    decoder: "self" is He et al.'s (mask tokens and visible tokens attend to each other); in "cross" the hidden
    positions are queries that see only the encoded visible tokens, so that decoding nothing but the hidden tokens is
    exact. positions: "sine" adds sine-cosine embeddings to the tokens; "offset" adds them to queries and keys of every
    block instead, where a head can start out looking at a neighbour.
    normalise: "fixed" takes `mean` and `std` from here; "visible" those of the visible pixels of the variant, so that
    neither lighting nor contrast of a tile matters and nothing of the hidden pixels shows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mae"] = "mae"
    tile_px: int = Field(default=224, ge=8, le=4096)
    patch_px: int = Field(default=14, ge=2, le=64)
    block: int = Field(default=2, ge=1, le=8, description="hidden blocks are block x block tokens")
    channels: Literal[1, 3] = 1
    width: int = Field(default=192, ge=8, le=4096)
    depth: int = Field(default=4, ge=1, le=64)
    heads: int = Field(default=6, ge=1, le=64)
    mlp_ratio: float = Field(default=4.0, gt=0, le=16)
    class_token: bool = False
    decoder: Literal["self", "cross"] = "cross"
    decoder_width: int = Field(default=192, ge=8, le=4096)
    decoder_depth: int = Field(default=2, ge=1, le=64)
    decoder_heads: int = Field(default=6, ge=1, le=64)
    decoder_mlp_ratio: float = Field(default=4.0, gt=0, le=16)
    positions: Literal["sine", "offset"] = "offset"
    normalise: Literal["fixed", "visible"] = "visible"
    mean: float = 0.5
    std: float = Field(default=0.25, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> MaeArchitecture:
        if self.tile_px % self.patch_px:
            raise ValueError(f"tile_px {self.tile_px} is no multiple of patch_px {self.patch_px}")
        for width, heads in ((self.width, self.heads), (self.decoder_width, self.decoder_heads)):
            if width % (4 * heads):
                raise ValueError(f"a width of {width} must be a multiple of 4 x {heads} heads")
        if self.class_token and self.positions == "offset":
            raise ValueError("a class token has no position: use positions = 'sine' with it")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        side = self.tile_px // self.patch_px
        return side, side

    @property
    def tokens(self) -> int:
        """How many tokens a tile has."""
        return math.prod(self.grid)

    @property
    def patch_values(self) -> int:
        """How many numbers a patch holds."""
        return self.patch_px**2 * self.channels


TEXTURE_S = MaeArchitecture(depth=4, mlp_ratio=2.0, decoder_depth=4)
"""The network that ships: three million parameters, a fifth of the cost of plan x1 in the decoder."""
