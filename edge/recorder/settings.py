"""The section `[recording]` of a recipe: what a line writes down of what it sees, and how much of it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from edge.section import Section

__all__ = ["RecordingSettings"]


class RecordingSettings(Section):
    """A line with this section records; docs/recordings.md says what, and what becomes of it."""

    folder: Path | None = None  # default: recordings/ in the line's state folder
    encoding: Literal["raw", "zstd", "png", "jpeg"] = "zstd"  # of the frames; jpeg alone loses something, for 8 bits
    quality: int = Field(default=95, ge=50, le=100)  # jpeg
    roll_mib: int = Field(default=1024, ge=1, le=1 << 20)  # a file is closed, and the next begun, when it is so large
    roll_s: float = Field(default=600, ge=1, le=86_400)  # ... or so old
    max_mib: int = Field(default=20 * 1024, ge=3)  # all files together; the oldest go first
    mark_s: float = Field(default=5, ge=0, le=600)  # so much before and after each REJECT outlives its file; 0: nothing
    marked_mib: int = Field(default=2 * 1024, ge=1)  # of max_mib: for such stretches; the oldest of them go first
    slots: int = Field(default=8, ge=1, le=64)  # frames per station that wait for the disk; live ones drop without one

    @model_validator(mode="after")
    def _rolls_fit(self) -> RecordingSettings:
        needed = 3 * self.roll_mib + self.marked_mib  # the open file, a closed one, what is cut out of a third
        if self.max_mib < needed:
            raise ValueError(
                f"max_mib = {self.max_mib} is less than three files of roll_mib = {self.roll_mib} and marked_mib = "
                f"{self.marked_mib}; it must be at least {needed}"
            )
        return self
