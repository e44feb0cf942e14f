"""What the networks have in common that see a whole tile in one pass, patch by patch, each in its place."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["WholeTile"]


class WholeTile(BaseModel):
    """A tile cut into square patches; the fields get their defaults and bounds where they are used."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    tile_px: int
    patch_px: int
    channels: Literal[1, 3] = 1

    def crop_px(self, progress: float) -> int:
        """Side of the crops to fit on after `progress` (0 to 1) of a fit: always a whole tile, for it has places."""
        return self.tile_px

    @property
    def plans(self) -> tuple[str, ...]:
        """One pass over everything, or one that answers for every patch."""
        return ("x1",)

    @property
    def side(self) -> int:
        """Patches along a side of the tile."""
        return self.tile_px // self.patch_px

    @property
    def patch_values(self) -> int:
        """How many numbers a patch holds."""
        return self.patch_px**2 * self.channels
