"""What a recipe says of a station's frames and parts: which frames can be judged, and how a part is found in one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edge.section import Region, Section

__all__ = ["EdgeLocate", "Locate", "TemplateLocate", "Validity", "locate_sha256"]


class Validity(Section):
    """Which frames are judged. Whether one is black or saturated the calibration alone decides."""

    frozen: bool | None = None  # refuse a frame with the bytes of the one before; default: cameras and their recordings
    defocused: bool = True  # refuse what is much less sharp than any good part that the calibration saw


class _Locate(Section):
    """What both ways to find a part have in common. Beyond its limits a part is UNINSPECTED(misplaced)."""

    reference: Path  # a frame with a part in its place: there `tiling.region` lies as the recipe says
    search: Region | None = None  # what belongs to other things than parts lies outside; default: the whole frame
    max_shift_px: float = Field(gt=0, le=32768)  # of the region's centre, in frame pixels
    max_angle_deg: float = Field(ge=0, le=45)


class EdgeLocate(_Locate):
    """By the edge of the part: its outline against the background."""

    by: Literal["edge"]
    part: Literal["brighter", "darker"] = "brighter"  # than the background
    level: int | None = Field(default=None, ge=1, le=254)  # between them, of 255; default: Otsu's, of the reference


class TemplateLocate(_Locate):
    """By a piece of the reference that looks like nothing else in the frame."""

    by: Literal["template"]
    template: Region | None = None  # where it lies in the reference; default: `tiling.region`
    min_score: float = Field(default=0.6, gt=0, lt=1)  # correlation with it; what matches less is no part


Locate = Annotated[EdgeLocate | TemplateLocate, Field(discriminator="by")]


def locate_sha256(locate: EdgeLocate | TemplateLocate) -> str:
    """Hash of what decides where a part is found: all but `max_shift_px`, which may be changed at any time."""
    fields = locate.model_dump(mode="json", exclude={"reference", "max_shift_px"})
    fields["reference"] = hashlib.sha256(locate.reference.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
