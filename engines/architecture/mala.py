"""The architecture of the autoencoder that predicts anomaly maps, and its sizes; `engines.mala` builds it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError, model_validator

from engines.architecture.mae import MaeArchitecture
from engines.architecture.whole_tile import WholeTile

__all__ = ["MALA_EDGE", "MALA_PAPER", "MalaArchitecture"]


class MalaArchitecture(WholeTile):
    """A masked autoencoder whose tokens a second stage turns into a map of anomalies (Chen et al., 2023).

    The first fields are those of the masked autoencoder, and mean what they mean in `MaeArchitecture`; its decoder is
    He et al.'s. normalise: "fixed" takes the mean and deviation of ImageNet's grey levels off. The map is averaged over
    squares of `pool_px` before its maximum is the score.
    """

    kind: Literal["mala"] = "mala"
    tile_px: int = Field(default=224, ge=16, le=4096)
    patch_px: int = Field(default=16, ge=2, le=64, description="side of a patch")
    channels: Literal[1, 3] = 1
    width: int = Field(default=768, ge=8, le=4096, description="of a token")
    depth: int = Field(default=12, ge=1, le=64, description="blocks of the encoder")
    heads: int = Field(default=12, ge=1, le=64, description="of a block of the encoder")
    mlp_ratio: float = Field(default=4.0, gt=0, le=16, description="width of a block's perceptron, of a token's")
    decoder_width: int = Field(default=512, ge=8, le=4096, description="of a token in the decoder")
    decoder_depth: int = Field(default=8, ge=1, le=64, description="blocks of the decoder")
    decoder_heads: int = Field(default=16, ge=1, le=64, description="of a block of the decoder")
    decoder_mlp_ratio: float = Field(default=4.0, gt=0, le=16, description="as mlp_ratio, in the decoder")
    positions: Literal["sine", "offset"] = Field(
        default="sine", description="added to the tokens, or to queries and keys of every block"
    )
    normalise: Literal["fixed", "visible"] = Field(
        default="fixed", description="by ImageNet's grey levels, or by the tile's own visible pixels"
    )
    balance_width: int = Field(default=512, ge=8, le=4096, description="of the tokens once they are balanced")
    pool_px: int = Field(default=21, ge=1, le=255, description="side over which the map is averaged; odd")

    @model_validator(mode="after")
    def _fits(self) -> MalaArchitecture:
        if self.pool_px % 2 == 0 or self.pool_px > self.tile_px:
            raise ValueError(f"pool_px is {self.pool_px}, expected an odd number up to the tile's {self.tile_px}")
        try:
            _ = self.autoencoder
        except ValidationError as error:
            raise ValueError(error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")) from error
        return self

    @property
    def autoencoder(self) -> MaeArchitecture:
        """The masked autoencoder of stage 1."""
        own = {name: getattr(self, name) for name in MaeArchitecture.model_fields.keys() & type(self).model_fields}
        colours = {1: (0.449, 0.226), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
        mean, std = colours[self.channels]
        return MaeArchitecture.model_validate(own | {"kind": "mae", "decoder": "self", "mean": mean, "std": std})


MALA_PAPER = MalaArchitecture(channels=3)
"""ViT-B with He et al.'s decoder, for a GPU: 114 million parameters, 47 GFLOP for a tile of 224 x 224."""

MALA_EDGE = MalaArchitecture(
    tile_px=64,
    patch_px=4,
    width=96,
    depth=3,
    heads=4,
    mlp_ratio=2.0,
    decoder_width=64,
    decoder_depth=2,
    decoder_heads=4,
    decoder_mlp_ratio=2.0,
    positions="offset",
    normalise="visible",
    balance_width=64,
    pool_px=9,
)
"""Fits in minutes on two cores: 0.35 million parameters, 0.28 GFLOP for a tile of 64 x 64."""
