"""Recipes: one TOML file that describes a line.

These are the fields and their rules; `edge.recipes` reads a file into them. A recipe is read once, by the supervisor,
and handed to every process in its resolved form, so that a file edited while the line runs changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from edge.actuators.settings import Actuator, MatchByWeb
from edge.place.settings import Locate, Validity, locate_sha256
from edge.recorder.settings import RecordingSettings
from edge.section import Name, Region, Section
from edge.sources.camera_settings import CAMERA_KINDS, CameraSettings
from edge.webs.settings import Web

__all__ = [
    "Actuator",
    "Engine",
    "Frame",
    "LineOk",
    "Locate",
    "Mode",
    "Recipe",
    "Region",
    "Section",
    "Source",
    "Station",
    "Tiling",
    "Validity",
    "Web",
    "scoring_sha256",
]

_TCP = re.compile(r"tcp://(\*|[A-Za-z0-9._-]+|\[[0-9a-fA-F:.%a-z]+\]):([1-9][0-9]{0,4})")
_VIDEO_URL = re.compile(r"(rtsp|http)s?://[^/]")
_LOOPBACK = re.compile(r"tcp://(127\.0\.0\.1|\[::1\]):.*")


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


class Station(Section):
    """One camera position."""

    name: Name
    lane: Name = ""  # stations with the same lane see views of the same parts; default: the station's own name
    source: Source
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
    def window(self) -> Frame:
        """What is inspected at once: the frame, and on a web the rows of the one before above it."""
        if self.web is None:
            return self.frame
        return self.frame.model_copy(update={"height_px": self.frame.height_px + self.web.overlap_px})


class Engine(Section):
    """The backend that serves every bundle of the line."""

    backend: Literal["openvino", "tensorrt", "marker", "null"] = "openvino"
    precision: Literal["f32", "bf16", "f16", "int8"] = "f32"  # what of it there is depends on backend and machine
    threads: int = Field(default=0, ge=0, le=256)  # 0: the cores less one
    batch: int = Field(default=1, ge=1, le=1024)  # tiles at a time, of all stations with the same bundle and plan
    null_delay_ms: float = Field(default=0, ge=0, le=60_000)  # backend "null": how long it pretends to work per call
    marker_build_ms: float | None = Field(
        default=None, ge=0, le=600_000
    )  # backend "marker": it pretends that its engine must be built first, which takes so long


class Deadline(Section):
    """How long a part may wait for its answer."""

    deadline_ms: int = Field(ge=10, le=600_000)  # from the trigger of the last expected view
    view_timeout_ms: int = Field(
        default=10_000, ge=1, le=600_000
    )  # from the first view to the last: missing_view after
    drain_ms: int = Field(default=2_000, ge=0, le=60_000)  # SIGTERM: so long in-flight triggers may still be answered


class Outputs(Section):
    """Where verdicts leave the machine, beside the line's own ipc sockets.

    Once the line has keys (`maskline keys new`), every TCP endpoint speaks CURVE. Without keys, or with `insecure`,
    they are plain; beyond loopback only with `insecure`.
    """

    publish: tuple[str, ...] = ()  # PUB, for dashboards: tcp://ADDRESS:PORT
    channel: tuple[str, ...] = ()  # the acknowledged channel, for those who must not miss a verdict: tcp://ADDRESS:PORT
    insecure: bool = False  # everyone who reaches the ports may listen

    @field_validator("publish", "channel")
    @classmethod
    def _are_tcp(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        for endpoint in endpoints:
            match = _TCP.fullmatch(endpoint)
            if match is None or int(match[2]) > 65535:
                raise ValueError(
                    f"{endpoint!r}: expected tcp://ADDRESS:PORT with an address of this machine, or * for all of them, "
                    "and a port of 1 to 65535, such as tcp://127.0.0.1:5556 or tcp://[::1]:5556"
                )
        return endpoints

    @model_validator(mode="after")
    def _each_endpoint_once(self) -> Outputs:
        all_of_them = (*self.publish, *self.channel)
        if twice := sorted({e for e in all_of_them if all_of_them.count(e) > 1}):
            raise ValueError(f"{', '.join(twice)}: named twice; publish and channel need a port each")
        return self

    @property
    def beyond_loopback(self) -> tuple[str, ...]:
        """The endpoints that other machines may reach."""
        return tuple(e for e in (*self.publish, *self.channel) if not _LOOPBACK.fullmatch(e))


class Journal(Section):
    """The record of what was decided."""

    commit_interval_ms: int = Field(default=50, ge=1, le=100)  # power-cut window: everything is on disk after this
    max_lag_ms: int = Field(default=1_000, ge=100, le=60_000)  # nothing goes out while the disk lags more than this
    reserve_mib: int = Field(default=16, ge=1, le=4096)  # disk space held back to finish open parts when it is full


class Pictures(Section):
    """Which images are kept; storage pressure deletes these, never verdicts."""

    keep: Literal["none", "rejects", "all"] = "rejects"
    every_nth_pass: int = Field(default=0, ge=0)  # with "rejects": also each nth PASS; 0: none
    max_mib: int = Field(default=1024, ge=1)


class Supervision(Section):
    """How often a process may die before the line is broken."""

    restarts: int = Field(default=10, ge=0, le=1_000_000)  # per process, within the window
    window_s: int = Field(default=60, ge=1, le=86_400)


class LineOk(Section):
    """What stops the machine when this box dies: software cannot."""

    wired: Literal["none", "gpio", "plc"]
    because: str = ""  # with "none": why that is acceptable

    @model_validator(mode="after")
    def _none_needs_a_reason(self) -> LineOk:
        if self.wired == "none" and not self.because.strip():
            raise ValueError('wired = "none" needs because = "...": nothing stops the machine when this box dies')
        return self


class Recipe(Section):
    """One line. There is no default safe state and no default LINE-OK: the recipe says them, or nothing starts."""

    line: Name
    name: Name | Literal[""] = ""  # of one recipe among several for this line: each has a calibration of its own
    safe_state: Literal["reject_all", "stop_line"]  # what actuators do without a timely PASS
    line_ok: LineOk
    deadline: Deadline
    engine: Engine = Engine()
    outputs: Outputs = Outputs()
    journal: Journal = Journal()
    pictures: Pictures = Pictures()
    recording: RecordingSettings | None = None  # absent: nothing is recorded
    supervision: Supervision = Supervision()
    stations: tuple[Station, ...] = Field(min_length=1, max_length=32)
    actuators: tuple[Actuator, ...] = Field(default=(), max_length=32)
    change_over: dict[Annotated[int, Field(ge=1, le=65535)], Path] = Field(default_factory=dict)  # by a PLC's numbers

    @model_validator(mode="after")
    def _names_are_unique(self) -> Recipe:
        names = [s.name for s in self.stations]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"stations named twice: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _actuators_fit_the_line(self) -> Recipe:
        names = [a.name for a in self.actuators]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"actuators named twice: {', '.join(twice)}")
        for actuator in self.actuators:
            if actuator.lane not in self.lanes:
                raise ValueError(f"actuator {actuator.name}: no lane {actuator.lane!r}; there are {self.lanes}")
            webs = [s.web for s in self.stations if s.lane == actuator.lane]
            if isinstance(actuator.match, MatchByWeb) and not all(w and (w.mm_per_count or 0) > 0 for w in webs):
                raise ValueError(
                    f'actuator {actuator.name}: match.by = "web" needs a web with mm_per_count, above 0, at every '
                    f"station of lane {actuator.lane}: the encoder says what is under the marker"
                )
            if actuator.at_rest == "pass" and self.line_ok.wired == "none":
                raise ValueError(
                    f'actuator {actuator.name}: at_rest = "pass" lets everything pass when this box dies, and '
                    'line_ok.wired = "none" stops nothing then; wire LINE-OK, or use an ejector that springs to reject'
                )
        return self

    def actuator(self, name: str) -> Actuator:
        """The actuator of that name; KeyError if there is none."""
        return {a.name: a for a in self.actuators}[name]

    def station(self, name: str) -> Station:
        """The station of that name; KeyError if there is none."""
        return {s.name: s for s in self.stations}[name]

    def lane_views(self, lane: str) -> tuple[str, ...]:
        """The stations that see a part of this lane, in the order of the recipe."""
        return tuple(s.name for s in self.stations if s.lane == lane)

    @property
    def lanes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.lane for s in self.stations))

    @property
    def simulated(self) -> bool:
        """Whether any frame of the line comes from something else than a camera."""
        return any(s.source.simulated for s in self.stations)

    @property
    def sha256(self) -> str:
        """Hash of the resolved recipe: what was in force, whatever file and environment it came from."""
        return _sha256(self.model_dump(mode="json"))


def scoring_sha256(station: Station) -> str:
    """Hash of the fields that change a station's pixels or scores: what a calibration is valid for."""
    mask = station.tiling.ignore_mask
    return _sha256(
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


def _smallest_defect(station: Station) -> list[float | None]:
    return [station.smallest_defect_mm2, station.scale_mm_per_px]


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
