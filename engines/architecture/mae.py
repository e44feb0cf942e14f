"""The masked autoencoder's architecture and its sizes; `engines.mae` builds it."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["PLANS", "TEXTURE_S", "VIT_B", "VIT_H", "VIT_L", "MaeArchitecture"]

PLANS = ("x1", "x4", "x16", "x32")
"""Names of the mask plans; the number is how many blocks a variant hides."""

_Positive = Annotated[float, Field(gt=0)]


class MaeArchitecture(BaseModel):
    """A masked autoencoder over square tiles.

    decoder: "self" is He et al.'s (mask tokens and visible tokens attend to each other); in "cross" the hidden
    positions are queries that see only the encoded visible tokens, so that decoding nothing but the hidden tokens is
    exact. positions: "sine" adds sine-cosine embeddings to the tokens; "offset" adds them to queries and keys of every
    block instead, where a head can start out looking at a neighbour.
    normalise: "fixed" takes `mean` and `std` from here, one number or one per channel; "visible" those of the visible
    pixels of the variant, so that neither lighting nor contrast of a tile matters and nothing of the hidden pixels
    shows.
    target: "pixels", or "normalised" where the network was taught each patch less its own mean and over its own
    deviation (He et al., section 3, "Reconstruction target"). Both are guessed from the visible patches then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    kind: Literal["mae"] = "mae"
    tile_px: int = Field(default=224, ge=8, le=4096)
    patch_px: int = Field(default=14, ge=2, le=64, description="side of a patch")
    block: int = Field(default=2, ge=1, le=8, description="hidden blocks are block x block tokens")
    context: int | None = Field(default=None, ge=1, le=64, description="plan x1 shows what is so near to a block")
    channels: Literal[1, 3] = 1
    width: int = Field(default=192, ge=8, le=4096, description="of a token")
    depth: int = Field(default=4, ge=1, le=64, description="blocks of the encoder")
    heads: int = Field(default=6, ge=1, le=64, description="of a block of the encoder")
    mlp_ratio: float = Field(default=4.0, gt=0, le=16, description="width of a block's perceptron, of a token's")
    class_token: bool = Field(default=False, description="one more token, which has no place")
    decoder: Literal["self", "cross"] = Field(
        default="cross", description="all tokens attend to each other, or hidden ones to visible ones alone"
    )
    decoder_width: int = Field(default=192, ge=8, le=4096, description="of a token in the decoder")
    decoder_depth: int = Field(default=2, ge=1, le=64, description="blocks of the decoder")
    decoder_heads: int = Field(default=6, ge=1, le=64, description="of a block of the decoder")
    decoder_mlp_ratio: float = Field(default=4.0, gt=0, le=16, description="as mlp_ratio, in the decoder")
    positions: Literal["sine", "offset"] = Field(
        default="offset", description="added to the tokens, or to queries and keys of every block"
    )
    normalise: Literal["fixed", "visible"] = Field(
        default="visible", description="by mean and std, or by the visible pixels' own"
    )
    mean: float | tuple[float, float, float] = Field(default=0.5, description="one, or one per channel")
    std: _Positive | tuple[_Positive, _Positive, _Positive] = Field(default=0.25, description="as mean")
    target: Literal["pixels", "normalised"] = Field(
        default="pixels", description="normalised: each patch less its own mean and over its own deviation"
    )
    norm_eps: float = Field(default=1e-6, gt=0, description="of the layer norms")

    @model_validator(mode="after")
    def _fits(self) -> MaeArchitecture:
        if self.tile_px % self.patch_px:
            raise ValueError(f"tile_px {self.tile_px} is no multiple of patch_px {self.patch_px}")
        for width, heads in ((self.width, self.heads), (self.decoder_width, self.decoder_heads)):
            if width % (4 * heads):
                raise ValueError(f"a width of {width} must be a multiple of 4 x {heads} heads")
        if self.class_token and self.positions == "offset":
            raise ValueError("a class token has no position: use positions = 'sine' with it")
        if self.context is not None and self.decoder != "cross":
            raise ValueError("context needs decoder = 'cross': the other one knows only whole tiles")
        if self.channels == 1 and (isinstance(self.mean, tuple) or isinstance(self.std, tuple)):
            raise ValueError("mean and std per channel need channels = 3 (fit: --colour)")
        if self.target == "normalised" and self.normalise != "fixed":
            raise ValueError("target = 'normalised' needs normalise = 'fixed'")
        return self

    def crop_px(self, progress: float) -> int:
        """Side of the crops to fit on after `progress` (0 to 1) of a fit: always a whole tile, for it has places."""
        return self.tile_px

    @property
    def plans(self) -> tuple[str, ...]:
        """The mask plans that this network can follow, the exact one first."""
        return PLANS

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


TEXTURE_S = MaeArchitecture(depth=4, mlp_ratio=2.0, decoder_depth=4, context=4)
"""The network that ships: three million parameters, a fifth of the cost of plan x1 in the decoder."""

VIT_B = MaeArchitecture(
    patch_px=16,
    channels=3,
    width=768,
    depth=12,
    heads=12,
    class_token=True,
    decoder="self",
    decoder_width=512,
    decoder_depth=8,
    decoder_heads=16,
    positions="sine",
    normalise="fixed",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
"""He et al.'s smallest: 14 x 14 tokens at 224 pixels, 49 variants; at 256 pixels 16 x 16 tokens, 64 variants."""
VIT_L = VIT_B.model_copy(update={"width": 1024, "depth": 24, "heads": 16})
VIT_H = VIT_B.model_copy(update={"patch_px": 14, "width": 1280, "depth": 32, "heads": 16})
"""What Dini & Rahtu use: 16 x 16 tokens of 14 pixels at 224 pixels, 64 variants."""
