"""Recipes: one TOML file that describes a line.

These are the fields and their rules; `edge.recipes` reads a file into them. A recipe is read once, by the supervisor,
and handed to every process in its resolved form, so that a file edited while the line runs changes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from edge.actuators.settings import Actuator, MatchById, MatchByWeb
from edge.place.settings import Locate, Validity
from edge.recorder.settings import RecordingSettings
from edge.section import Name, Region, Section, beyond_loopback, sha256_of
from edge.station import Behind, Frame, Mode, PartIds, Source, Station, Tiling, scoring_sha256
from edge.webs.settings import Web

__all__ = [
    "Actuator",
    "Behind",
    "Engine",
    "Frame",
    "LineOk",
    "Locate",
    "Mode",
    "PartIds",
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
        return tuple(e for e in (*self.publish, *self.channel) if beyond_loopback(e))


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
    def _lanes_are_aligned(self) -> Recipe:
        for lane in self.lanes:
            first, *others = [s for s in self.stations if s.lane == lane]
            if first.behind:
                raise ValueError(
                    f"station {first.name}: it is the first of lane {lane}, and behind no other; leave out behind"
                )
            cameras = [s for s in (first, *others) if s.source.is_camera]
            counted = all(s.source.triggers == "independent" for s in cameras)
            for station in others:
                if station.part_ids:
                    raise ValueError(
                        f"station {station.name}: part_ids belong to {first.name}, the first station of lane {lane}: "
                        "a part has one id"
                    )
                if station.behind is None and len(cameras) > 1 and not counted:
                    raise ValueError(
                        f"station {station.name}: a part that one camera of lane {lane} does not take would shift all "
                        f"its later views onto other parts; say how far behind {first.name} it is, such as behind = "
                        "{ delay_ms = 250, window_ms = 40 } (docs/cameras.md)"
                    )
                self._require_way(first, station)
        return self

    def _require_way(self, first: Station, station: Station) -> None:
        """Raise ValueError for a way that cannot be looked at."""
        way = station.behind
        if way is None:
            return
        longest_ms = (way.delay_ms or 0) + (way.window_ms or 0)
        if longest_ms > self.deadline.view_timeout_ms:
            raise ValueError(
                f"station {station.name}: behind {first.name} by up to {longest_ms} ms, and deadline.view_timeout_ms = "
                f"{self.deadline.view_timeout_ms} does not wait so long for a view; raise it"
            )
        for counting in (first, station):
            if way.window_counts and counting.source.is_camera and not counting.source.reads_encoder:
                raise ValueError(
                    f"station {station.name}: behind.distance_counts needs the encoder in the triggers of {first.name} "
                    f"and {station.name}; name camera.chunks.encoder at {counting.name}, or say behind in ms"
                )

    @model_validator(mode="after")
    def _frames_fit_the_recording(self) -> Recipe:
        deep = next((s for s in self.stations if s.frame.bit_depth > 8), None)
        if self.recording and self.recording.encoding == "jpeg" and deep:
            raise ValueError(
                f'recording.encoding = "jpeg" is for 8 bits, and station {deep.name} has frame.bit_depth = '
                f'{deep.frame.bit_depth}; take "zstd", "png" or "raw"'
            )
        return self

    @model_validator(mode="after")
    def _actuators_fit_the_line(self) -> Recipe:
        names = [a.name for a in self.actuators]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"actuators named twice: {', '.join(twice)}")
        for actuator in self.actuators:
            if actuator.lane not in self.lanes:
                raise ValueError(f"actuator {actuator.name}: no lane {actuator.lane!r}; there are {self.lanes}")
            first = self.station(self.lane_views(actuator.lane)[0])
            if isinstance(actuator.match, MatchById) and first.source.is_camera and first.part_ids is None:
                raise ValueError(
                    f'actuator {actuator.name}: match.by = "id" needs an id from the PLC at the trigger of the camera, '
                    f"and station {first.name} ({first.source.kind}) gets none: add [stations.part_ids] with the "
                    "register that holds it (docs/cameras.md; genicam and gentl)"
                )
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
        return sha256_of(self.model_dump(mode="json"))
