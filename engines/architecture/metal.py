"""The masked transformer's architecture and its sizes; `engines.metal` builds it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from engines.architecture.whole_tile import WholeTile

__all__ = ["METAL_EDGE", "METAL_PAPER", "METAL_PAPER_PRODUCT", "MetalArchitecture"]


class MetalArchitecture(WholeTile):
    """A transformer that repaints every patch from the others (De Nardin et al., arXiv 2210.15540).

    A tile is cut into squares of `patch_px`, and again into stripes: "rows", as wide as the tile, "columns", as high,
    or "none". A token is the embedding of a square and, behind it, the segment for its place of the embedding of the
    stripe through it, `width` values each.
    attention: "strict" lets nothing of a patch into its own reconstruction; "literal" is the paper's wording, a
    transformer's block in which no token attends to itself, which does (see `engines.metal`).
    """

    kind: Literal["metal"] = "metal"
    tile_px: int = Field(default=128, ge=16, le=4096)
    channels: Literal[1, 3] = 1
    patch_px: int = Field(default=16, ge=2, le=256, description="side of a square, and the other side of a stripe")
    stripes: Literal["rows", "columns", "none"] = Field(
        default="rows", description="as wide as the tile, as high, or squares alone"
    )
    attention: Literal["strict", "literal"] = Field(
        default="strict",
        description="nothing of a patch reaches its own reconstruction, or the paper's wording: the masked diagonal",
    )
    width: int = Field(default=128, ge=4, le=4096, description="of the embedding of a square, and of a segment")
    heads: int = Field(default=4, ge=1, le=64, description="of a block")
    depth: int = Field(default=2, ge=1, le=16, description="transformer blocks")
    mlp_ratio: float = Field(default=4.0, gt=0, le=16, description="of the blocks and of the decoder")

    @model_validator(mode="after")
    def _fits(self) -> MetalArchitecture:
        if self.tile_px % self.patch_px:
            raise ValueError(f"tile_px {self.tile_px} is no multiple of patch_px {self.patch_px}")
        if self.side < 2:
            raise ValueError(f"patch_px {self.patch_px} is the whole tile: a patch needs others to be repainted from")
        if self.token_width % self.heads:
            raise ValueError(f"tokens of {self.token_width} values cannot be shared by {self.heads} heads")
        return self

    @property
    def token_width(self) -> int:
        """How many numbers a token holds: a square's embedding and, with stripes, a segment."""
        return self.width if self.stripes == "none" else 2 * self.width


METAL_PAPER = MetalArchitecture(channels=3)
"""The paper's for textures, two blocks: 9.1 million parameters (26.3 there, see `engines.metal`), 0.69 GFLOP."""

METAL_PAPER_PRODUCT = METAL_PAPER.model_copy(update={"depth": 1})
"""The paper's for products, each part in its place, one block: 8.3 million parameters (17.8 there), 0.47 GFLOP."""

METAL_EDGE = MetalArchitecture(tile_px=64, patch_px=8, width=64)
"""Fits in minutes on two cores: as many patches of half the side, 0.78 million parameters, 0.13 GFLOP for a tile."""
