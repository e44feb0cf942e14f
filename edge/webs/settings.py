"""The recipe's section of a web: its frames join into one material, whose rows are lines across it."""

from __future__ import annotations

from pydantic import Field, field_validator

from edge.section import Section

__all__ = ["Web"]


class Web(Section):
    """A station that looks at an endless web. Rows of a frame lie along it, in the order in which they pass."""

    # Along the web, from one row to the next; across it, the station's scale_mm_per_px says the same of columns.
    mm_per_line: float = Field(gt=0, le=1000)
    overlap_px: int = Field(default=0, ge=0, le=4096)  # rows of the frame before that are inspected again, above it
    mm_per_count: float | None = None  # of the encoder in the triggers, negative if it counts down; absent: lines count
    tolerance_lines: int = Field(default=2, ge=0, le=1000)  # a step of the encoder may be so far off a whole frame

    @field_validator("mm_per_count")
    @classmethod
    def _moves(cls, mm: float | None) -> float | None:
        if mm is not None and not 1e-6 <= abs(mm) <= 1000:
            raise ValueError(
                f"{mm}: expected 0.000001 to 1000 either way: what the web moves from one count to the next"
            )
        return mm

    def require_no_gaps(self, frame_px: int, top_px: int, bottom_px: int) -> None:
        """Raise ValueError where rows of the web would be judged in no frame: a frame of `frame_px` rows and the
        overlap above it are judged from row `top_px` up to `bottom_px`."""
        if self.overlap_px > frame_px:
            raise ValueError(f"web.overlap_px = {self.overlap_px}: the frame before has only {frame_px} rows")
        if (unseen := frame_px - (bottom_px - top_px)) > 0:
            raise ValueError(
                f"web.overlap_px = {self.overlap_px}: {unseen} rows between two frames would never be judged, because "
                f"tiling.margin_px and tiling.region leave out as many; make the overlap {self.overlap_px + unseen} px"
            )
