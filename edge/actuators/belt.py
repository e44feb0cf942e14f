"""The physics of a simulated conveyor: a belt with parts, a camera, a sensor, an ejector with inertia, bins.

It knows no sockets and no clock: `step` moves the world on. All positions are millimetres downstream of where parts are
laid on the belt.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from edge.sources.truth import truth_is_bad

__all__ = ["Belt", "BeltSettings", "Crossing", "End", "Part", "Place"]

STEP_MS = 1.0
TOGGLES_TO_RESTART = 5
"""Of LINE-OK, before the machine runs again: a person pressing a button, in the real world."""


@dataclass(frozen=True)
class BeltSettings:
    """How the conveyor is built."""

    speed_mm_s: float = 500.0
    ramp_ms: float = 100.0  # from standstill to full speed, and back
    spacing_mm: float = 100.0
    jitter_mm: float = 10.0  # parts lie so much off, either way
    counts_per_mm: float = 10.0
    camera_mm: float = 100.0
    sensor_mm: float = 500.0
    ejector_mm: float = 550.0
    reach_mm: float = 5.0  # the ejector gets hold of parts so far up- and downstream
    inertia_ms: float = 10.0  # from one end of its way to the other
    springs_to: Literal["reject", "pass"] = "reject"  # where the ejector goes without power
    interlock: Literal["stop", "reject"] = "stop"  # what the machine does when LINE-OK stops; power goes in any case
    interlock_ms: float = 100.0  # LINE-OK may stand still so long
    chute_ms: float = 50.0  # from the ejector to the confirming sensor
    reject_bin: int = 1_000_000  # parts until it is full
    part_ids: bool = False  # a PLC gives parts their ids
    parts: int | None = None  # end after so many
    defect_share: float = 0.3
    seed: int = 7


class End(str, Enum):
    """Where a part is."""

    BELT = "belt"
    GOOD = "good"
    REJECT = "reject"
    TAKEN = "taken"  # by hand


class Place(str, Enum):
    """Where a part is noticed."""

    CAMERA = "camera"
    SENSOR = "sensor"
    CONFIRM = "confirm"


@dataclass
class Part:
    """One part, and what became of it."""

    serial: int
    bad: bool
    laid_mm: float  # what the belt had moved when it was laid on it
    end: End = End.BELT
    ended_ms: float = 0.0

    def part_id(self, given: bool) -> int | None:
        """What the PLC calls it: 16 bits, which wrap."""
        return self.serial % 65535 + 1 if given else None


@dataclass(frozen=True)
class Crossing:
    """A part is noticed somewhere."""

    place: Place
    part: Part
    count: int


@dataclass
class Belt:
    """The world. Times are milliseconds of its own, which stand while nobody calls `step`."""

    settings: BeltSettings
    ms: float = 0.0
    moved_mm: float = 0.0
    speed: float = 0.0  # as a share of full speed; negative: backwards
    backwards_ms: float = 0.0  # so long it still runs backwards
    slipped: float = 0.0  # counts that the encoder is off
    deflection: float = 0.0  # of the ejector: above a half, parts in its reach go to the reject bin
    air: bool = True
    ejects: bool | None = None  # as commanded; None: never
    line_ok: bool = False
    line_ok_ms: float = -1e9  # when it changed last
    tripped: bool = True  # the interlock has stopped the machine
    misses: int = 0  # so many parts the camera will not see
    ended: list[Part] = field(default_factory=list)
    on_belt: deque[Part] = field(default_factory=deque)
    in_chute: deque[Part] = field(default_factory=deque)
    in_reject_bin: int = 0

    def __post_init__(self) -> None:
        self.deflection = float(self.settings.springs_to == "reject")
        self._random = random.Random(self.settings.seed)
        self._serial = 0
        self._next_mm = 0.0  # when the belt has moved so far, the next part is laid
        self._toggles = 0

    @property
    def count(self) -> int:
        """What the encoder says."""
        return int(self.moved_mm * self.settings.counts_per_mm + self.slipped)

    @property
    def bin_full(self) -> bool:
        return self.in_reject_bin >= self.settings.reject_bin

    @property
    def empty(self) -> bool:
        """Whether every part has ended."""
        return self.settings.parts is not None and self._serial >= self.settings.parts and not self.on_belt

    def set_line_ok(self, level: bool) -> None:
        """The actuator says that all is well, by changing this."""
        if level == self.line_ok:
            return
        self._toggles = self._toggles + 1 if self.ms - self.line_ok_ms <= self.settings.interlock_ms else 0
        self.line_ok, self.line_ok_ms = level, self.ms
        if self._toggles >= TOGGLES_TO_RESTART:
            self.tripped = False

    def take(self, where_mm: float) -> Part | None:
        """Take the first part upstream of a place off the belt; None if there is none."""
        for part in self.on_belt:
            if self._at(part) < where_mm:
                self.on_belt.remove(part)
                self._end(part, End.TAKEN)
                return part
        return None

    def step(self, ms: float) -> list[Crossing]:
        """Let time pass; what was noticed meanwhile, in order."""
        found: list[Crossing] = []
        while ms > 0:
            dt = min(STEP_MS, ms)
            found += self._step(dt)
            ms -= dt
        return found

    def _step(self, dt: float) -> list[Crossing]:
        self.ms += dt
        if self.ms - self.line_ok_ms > self.settings.interlock_ms:
            self.tripped, self._toggles = True, 0
        before_mm = self.moved_mm
        self._move(dt)
        self._lay()
        found = [c for part in self.on_belt for c in self._crossings(part, before_mm)]
        self._eject(dt)
        while self.in_chute and self.ms >= self.in_chute[0].ended_ms + self.settings.chute_ms:
            self.in_reject_bin += 1
            found.append(Crossing(Place.CONFIRM, self.in_chute.popleft(), self.count))
        return found

    def _move(self, dt: float) -> None:
        stopped = self.tripped and self.settings.interlock == "stop"
        wanted = 0.0 if stopped else -1.0 if self.backwards_ms > 0 else 1.0
        change = dt / self.settings.ramp_ms
        self.speed += max(-change, min(change, wanted - self.speed))
        if self.speed < 0:
            self.backwards_ms -= dt
        self.moved_mm += self.speed * self.settings.speed_mm_s * dt / 1000

    def _lay(self) -> None:
        s = self.settings
        while self.moved_mm >= self._next_mm and (s.parts is None or self._serial < s.parts):
            self.on_belt.append(Part(self._serial, truth_is_bad(s.seed, self._serial, s.defect_share), self._next_mm))
            self._serial += 1
            self._next_mm = self._serial * s.spacing_mm + self._random.uniform(-s.jitter_mm, s.jitter_mm)

    def _crossings(self, part: Part, before_mm: float) -> list[Crossing]:
        was, now = before_mm - part.laid_mm, self._at(part)
        found = []
        for place, mark in ((Place.CAMERA, self.settings.camera_mm), (Place.SENSOR, self.settings.sensor_mm)):
            if was < mark <= now or now < mark <= was:
                if place is Place.CAMERA and self.misses:
                    self.misses -= 1
                else:
                    found.append(Crossing(place, part, self.count))
        return found

    def _eject(self, dt: float) -> None:
        s = self.settings
        springs = s.springs_to == "reject"
        powered = not self.tripped and self.ejects is not None and self.ejects is not springs
        wanted = springs is not powered
        if not springs and not self.air:
            wanted = False
        change = dt / s.inertia_ms
        self.deflection += max(-change, min(change, float(wanted) - self.deflection))
        for part in list(self.on_belt):
            beyond = self._at(part) - s.ejector_mm
            if abs(beyond) <= s.reach_mm and self.deflection > 0.5:
                self.on_belt.remove(part)
                self._end(part, End.REJECT)
                self.in_chute.append(part)
            elif beyond > s.reach_mm:
                self.on_belt.remove(part)
                self._end(part, End.GOOD)

    def _end(self, part: Part, where: End) -> None:
        part.end, part.ended_ms = where, self.ms
        self.ended.append(part)

    def _at(self, part: Part) -> float:
        return self.moved_mm - part.laid_mm
