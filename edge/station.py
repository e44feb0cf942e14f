"""One camera position in a recipe: its source, its frame, how that is cut, and what its scores depend on."""

from __future__ import annotations

import hashlib
import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from edge.actuators.driver_settings import Host, Port
from edge.place.settings import Locate, Validity, locate_sha256
from edge.section import Name, Region, Section, sha256_of
from edge.sources.camera_settings import CAMERA_KINDS, CameraSettings
from edge.webs.settings import Web

__all__ = ["Behind", "Frame", "Mode", "PartIds", "Source", "Station", "Tiling", "scoring_sha256"]

_VIDEO_URL = re.compile(r"(rtsp|http)s?://[^/]")


class Mode(str, Enum):
    """How a source treats pressure."""

    LIVE = "live"  # parts come when they come; a frame without a free slot is UNINSPECTED(overload)
    LOSSLESS = "lossless"  # every part is inspected; the source waits for a free slot (recordings, folders)


class Source(Section):
    """Where the frames of a station come from."""

    kind: Literal["recording", "folder", "video", "web", "marker", "conveyor", "genicam", "gentl", "rtsp", "v4l2"]
    path: Path | None = None  # recording, folder, video: the file or folder
    endpoint: str | None = Field(default=None, pattern=r"^ipc://.+")  # conveyor: the simulated one
    # genicam: IP address, or the id that `arv-tool-0.8` prints; gentl: the device's id; rtsp: URL; v4l2: /dev/video0
    address: str | None = Field(default=None, min_length=1, max_length=1024)
    camera: CameraSettings | None = None  # genicam, gentl; recording: of the camera that was recorded
    channel: str | None = None  # recording: the recorded station, if it differs from this one
    mode: Mode = Mode.LIVE
    triggers: Literal["independent", "inferred"] = "inferred"
    frame_timeout_ms: int = Field(default=1_000, ge=1, le=60_000)  # independent: after it the image counts as missed
    rate_hz: float = Field(default=5.0, gt=0, le=1000)  # parts per second; a live recording keeps its own times
    parts: int | None = Field(default=None, ge=1)  # end after so many
    first: int | None = Field(default=None, ge=0)  # recording: the recorded number that is part 0; default: its first
    seed: int = Field(default=0, ge=0)  # web, marker: of the simulation
    defect_share: float = Field(default=0.2, ge=0, le=1)  # web, marker: parts that are bad in truth
    texture: str = "gravel"  # web: which photograph
    half: Literal["whole", "left", "right"] = "whole"  # web: which part of it
    scale: float = Field(default=1.0, ge=0.25, le=8)  # web: frame pixels per pixel of the photograph

    @model_validator(mode="after")
    def _path_where_needed(self) -> Source:
        if self.kind in ("recording", "folder", "video") and self.path is None:
            raise ValueError(f'kind = "{self.kind}" needs a path')
        if (self.kind == "conveyor") != (self.endpoint is not None):
            raise ValueError('kind = "conveyor" needs an endpoint, and no other kind has one')
        return self

    @model_validator(mode="after")
    def _camera_where_it_is_one(self) -> Source:
        if self.is_camera != (self.address is not None):
            kinds = ", ".join(CAMERA_KINDS)
            raise ValueError(f'kind = "{self.kind}": {kinds} need an address, and no other kind has one')
        if self.is_camera and self.mode is not Mode.LIVE:
            raise ValueError('mode = "lossless": a camera cannot wait; leave it at "live"')
        if self.camera is not None and self.kind not in ("genicam", "gentl", "recording"):
            raise ValueError(f'kind = "{self.kind}" has no section camera; genicam, gentl and recording have one')
        if self.kind == "rtsp" and not _VIDEO_URL.match(self.address or ""):
            raise ValueError(f"address = {self.address!r}: rtsp takes rtsp://, rtsps://, http:// or https://")
        if self.kind == "gentl" and (self.camera is None or self.camera.producer is None):
            raise ValueError('kind = "gentl" needs camera.producer, the .cti file of a GenTL producer')
        chunks = self.camera.chunks if self.camera else None
        if self.is_camera and self.triggers == "independent" and (chunks is None or chunks.trigger is None):
            raise ValueError(
                'triggers = "independent": a camera must count them; name its counter in camera.chunks.trigger, such '
                'as Counter0, or leave it at "inferred"'
            )
        return self

    @property
    def is_camera(self) -> bool:
        """Whether a device stands behind it that may be away."""
        return self.kind in CAMERA_KINDS

    @property
    def reads_encoder(self) -> bool:
        """Whether its camera tells the line's encoder with each trigger."""
        return bool(self.camera and self.camera.chunks and self.camera.chunks.encoder)

    @property
    def shown_address(self) -> str:
        """The address as it may be published: without user and password."""
        return re.sub(r"//[^/]*@", "//", self.address or "")

    @property
    def simulated(self) -> bool:
        """Whether verdicts from this source must say `simulated`: nothing but a camera is real."""
        return not self.is_camera or (self.camera is not None and self.camera.simulated)


class Frame(Section):
    """What the camera delivers; anything else is UNINSPECTED(wrong_size)."""

    width_px: int = Field(ge=16, le=32768)
    height_px: int = Field(ge=16, le=32768)
    channels: Literal[1, 3] = 1
    bit_depth: Literal[8, 10, 12, 16] = 8

    @property
    def dtype(self) -> str:
        return "uint8" if self.bit_depth == 8 else "uint16"

    @property
    def nbytes(self) -> int:
        return self.width_px * self.height_px * self.channels * (1 if self.bit_depth == 8 else 2)


class Tiling(Section):
    """How a frame is cut into the tiles that the engine sees."""

    # Applied to the region before it is cut; "tile": a part that fills the region becomes one tile, whatever its size.
    resize: Annotated[float, Field(gt=0, le=4)] | Literal["tile"] = 1.0
    overlap_px: int = Field(default=0, ge=0, le=512)  # at least so much, in tile pixels
    region: Region | None = None  # absent: the whole frame
    margin_px: int = Field(default=0, ge=0, le=4096)  # rim of the region that is seen as surroundings and not judged
    ignore_mask: Path | None = None  # image of the frame's size; what is white there is not judged


class Behind(Section):
    """How far behind the first station of its lane a station stands: a part comes by there so much later."""

    delay_ms: int | None = Field(default=None, ge=0, le=600_000)  # from trigger to trigger; the belt runs at one speed
    window_ms: int | None = Field(default=None, ge=1, le=60_000)  # a part may be so much earlier or later
    distance_counts: int | None = Field(default=None, ge=0, le=100_000_000)  # by the encoder, from one zero on
    window_counts: int | None = Field(default=None, ge=1, le=10_000_000)

    @model_validator(mode="after")
    def _by_time_or_by_count(self) -> Behind:
        named = {name for name, value in self if value is not None}
        if named not in ({"delay_ms", "window_ms"}, {"distance_counts", "window_counts"}):
            raise ValueError(
                f"{', '.join(sorted(named)) or 'nothing'}; expected delay_ms and window_ms, or distance_counts and "
                "window_counts"
            )
        return self


class PartIds(Section):
    """Where a PLC says which part the camera is triggered for: a holding register, read over Modbus TCP.

    Modbus knows no passwords: whoever is in that network can say which part it is. Keep it on a network of its own.
    """

    host: Host  # of the PLC
    port: Port = 502
    unit: int = Field(default=1, ge=0, le=247)
    address: int = Field(ge=0, le=65535)  # of the register
    timeout_ms: int = Field(default=20, ge=2, le=10_000)  # so long after its trigger an id stays, and is waited for
    cycle_ms: int = Field(default=10, ge=1, le=1_000)  # between two readings

    @model_validator(mode="after")
    def _reads_in_time(self) -> PartIds:
        if self.cycle_ms >= self.timeout_ms:
            raise ValueError(
                f"cycle_ms = {self.cycle_ms}: an id stays for timeout_ms = {self.timeout_ms}, and is read in that time"
            )
        return self


class Station(Section):
    """One camera position."""

    name: Name
    lane: Name = ""  # stations with the same lane see views of the same parts; default: the station's own name
    behind: Behind | None = None  # not at the lane's first station; lanes of several cameras need it
    source: Source
    part_ids: PartIds | None = None  # absent: parts have no ids from a PLC. Of the lane's first station
    frame: Frame
    tiling: Tiling = Tiling()
    bundle: str  # the name of a bundle that ships, or a path
    plan: Literal["x1", "x4", "x16", "x32", "cascade"] = "x1"
    slots: int = Field(default=4, ge=2, le=64)  # frames in flight
    validity: Validity = Validity()
    locate: Locate | None = None  # absent: parts lie where the region says
    scale_mm_per_px: float | None = Field(default=None, gt=0, le=1000)  # `maskline scale` measures it
    smallest_defect_mm2: float | None = Field(default=None, gt=0)  # smaller ones do not count: docs/place_and_scale.md
    web: Web | None = None  # frames follow each other on an endless web; absent: each shows parts of its own

    @model_validator(mode="before")
    @classmethod
    def _lane_is_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("lane") and "name" in data:
            data = {**data, "lane": data["name"]}
        return data

    @model_validator(mode="after")
    def _ids_are_of_triggers(self) -> Station:
        if self.part_ids and self.source.kind not in ("genicam", "gentl", "recording"):  # a recording brings its own
            raise ValueError(
                f'part_ids with source.kind = "{self.source.kind}": they are for cameras that a PLC triggers, genicam '
                "and gentl; take the section out"
            )
        return self

    @model_validator(mode="after")
    def _region_inside(self) -> Station:
        r, seen = self.tiling.region, self.window
        if r and (r.x_px + r.width_px > seen.width_px or r.y_px + r.height_px > seen.height_px):
            raise ValueError(
                f"tiling.region ends at {r.x_px + r.width_px} x {r.y_px + r.height_px} px, outside the frame of "
                f"{seen.width_px} x {seen.height_px} px"
            )
        return self

    @model_validator(mode="after")
    def _web_has_no_gaps(self) -> Station:
        if self.web:
            region, margin = self.tiling.region, self.tiling.margin_px
            top, height = (region.y_px, region.height_px) if region else (0, self.window.height_px)
            self.web.require_no_gaps(self.frame.height_px, top + margin, top + height - margin)
        return self

    @model_validator(mode="after")
    def _can_be_located(self) -> Station:
        if self.locate and self.web:
            raise ValueError("locate and web: a part is located in its frame, and a web has no parts; take one out")
        if self.locate and self.tiling.region is None:
            raise ValueError("locate needs tiling.region: where the part lies in the reference, with its surroundings")
        if self.smallest_defect_mm2 is not None and self.scale_mm_per_px is None:
            raise ValueError("smallest_defect_mm2 needs scale_mm_per_px; `maskline scale` measures it")
        return self

    @property
    def mm_per_px(self) -> tuple[float, float] | None:
        """What a pixel of the frame measures in x and in y; None where the recipe has no scale."""
        if self.scale_mm_per_px is None:
            return None
        return self.scale_mm_per_px, self.web.mm_per_line if self.web else self.scale_mm_per_px

    @property
    def adds_up(self) -> bool:
        """Whether areas, where they are the score, are added up from frame to frame: on a web whose frames have rows of
        the one before, which say that they follow it, and where the recipe says how small a defect counts."""
        return bool(self.web and self.web.overlap_px and self.smallest_defect_mm2)

    @property
    def window(self) -> Frame:
        """What is inspected at once: the frame, and on a web the rows of the one before above it."""
        if self.web is None:
            return self.frame
        return self.frame.model_copy(update={"height_px": self.frame.height_px + self.web.overlap_px})


def scoring_sha256(station: Station) -> str:
    """Hash of the fields that change a station's pixels or scores: what a calibration is valid for."""
    mask = station.tiling.ignore_mask
    return sha256_of(
        {
            "frame": station.window.model_dump(mode="json"),
            "tiling": station.tiling.model_dump(mode="json", exclude={"ignore_mask"}),
            "ignore_mask": hashlib.sha256(mask.read_bytes()).hexdigest() if mask else None,
            **({"overlap_px": station.web.overlap_px} if station.web else {}),
            **({"camera": station.source.camera.imaging} if station.source.camera else {}),
            **({"locate": locate_sha256(station.locate)} if station.locate else {}),
            **({"smallest_defect": _smallest_defect(station)} if station.smallest_defect_mm2 else {}),
        }
    )


def _smallest_defect(station: Station) -> dict[str, object]:
    # "areas": thresholds from before they were joined across tiles are for the largest area within one, and so on
    areas = "added up" if station.adds_up else "joined"
    return {"mm2": station.smallest_defect_mm2, "mm_per_px": station.mm_per_px, "areas": areas}
