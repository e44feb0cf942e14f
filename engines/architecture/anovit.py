"""AnoViT's architecture and its sizes; `engines.anovit` builds it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from engines.architecture.whole_tile import WholeTile

__all__ = ["ANOVIT_EDGE", "ANOVIT_PAPER", "AnovitArchitecture"]

_Width = Annotated[int, Field(ge=1, le=4096)]


class AnovitArchitecture(WholeTile):
    """A vision transformer that encodes and transposed convolutions that paint (Lee & Kang, arXiv 2203.10808).

    Encoder: patches of `patch_px`, a class token, learnt positions, `depth` blocks of `heads` heads. Decoder: six
    transposed 3x3 convolutions, from `width` by way of `decoder_widths` to the channels. Three keep the stride of the
    patches and three halve it, so the third of `decoder_widths` is where the picture has to pass through the fewest
    numbers.
    """

    kind: Literal["anovit"] = "anovit"
    tile_px: int = Field(default=384, ge=16, le=4096)
    patch_px: int = Field(default=16, ge=2, le=64, description="side of a patch")
    channels: Literal[1, 3] = 1
    width: int = Field(default=768, ge=8, le=4096, description="of a token")
    depth: int = Field(default=12, ge=1, le=64, description="blocks of the encoder")
    heads: int = Field(default=8, ge=1, le=64, description="of a block; with --weights as those were published")
    mlp_ratio: float = Field(default=4.0, gt=0, le=16, description="width of a block's perceptron, of a token's")
    norm_eps: float = Field(default=1e-6, gt=0, description="of the layer norms; with --weights as those have it")
    decoder_widths: tuple[_Width, _Width, _Width, _Width, _Width] = Field(
        default=(256, 128, 64, 32, 16), description="filters of the transposed convolutions"
    )

    @model_validator(mode="after")
    def _fits(self) -> AnovitArchitecture:
        if self.tile_px % self.patch_px:
            raise ValueError(f"tile_px {self.tile_px} is no multiple of patch_px {self.patch_px}")
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.heads} heads")
        return self


ANOVIT_PAPER = AnovitArchitecture(channels=3)
"""The paper's, for a GPU: ViT-B/16 with the 8 heads of its text (published weights have 12: `engines.vit_weights`); 88
million parameters, 114 GFLOP for a tile of 384 x 384."""

ANOVIT_EDGE = AnovitArchitecture(
    tile_px=128, patch_px=8, width=96, depth=4, heads=4, mlp_ratio=2.0, decoder_widths=(64, 32, 16, 16, 16)
)
"""Fits in minutes on two cores: 0.41 million parameters, 0.31 GFLOP for a tile of 128 x 128."""
