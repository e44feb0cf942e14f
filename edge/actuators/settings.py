"""The recipe's section of an actuator: what it drives, how it knows which part is which, and when it acts.

Positions are encoder counts or milliseconds, `timing.unit` says which. Two rules keep one part's PASS from opening the
way for another: parts that follow each other are at least `min_spacing` apart, and within that distance the sensor has
seen a part, and the ejector has dealt with it. So there is never a second part between sensor and ejector, whatever an
encoder counts. Without an ejector of our own, a PLC that gives the parts their ids follows them itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edge.actuators.driver_settings import GpioDriver, ModbusDriver, MqttDriver
from edge.section import Name, Section, beyond_loopback

__all__ = [
    "Actuator",
    "Commissioning",
    "Confirmation",
    "Driver",
    "MatchByCount",
    "MatchById",
    "MatchByTime",
    "MatchByWeb",
    "SimulatedDriver",
    "Timing",
]

Position = Annotated[int, Field(ge=0, le=100_000_000)]


class SimulatedDriver(Section):
    """The simulated conveyor (edge/actuators/conveyor.py), which runs in a test or in a bench."""

    kind: Literal["simulated"]
    endpoint: str = Field(pattern=r"^ipc://.+")

    @property
    def ejects(self) -> bool:
        return True


Driver = Annotated[GpioDriver | ModbusDriver | MqttDriver | SimulatedDriver, Field(discriminator="kind")]


class MatchById(Section):
    """A PLC gives each part an id, at the camera's trigger and at the sensor."""

    by: Literal["id"]


class MatchByCount(Section):
    """One encoder is counted at the camera's trigger and at the sensor, from one zero on."""

    by: Literal["count"]
    distance_counts: Position  # from the camera's trigger to the sensor
    window_counts: int = Field(ge=1, le=10_000_000)  # a part may be so much earlier or later


class MatchByTime(Section):
    """The belt runs at one speed; for want of ids and an encoder."""

    by: Literal["time"]
    delay_ms: int = Field(ge=1, le=600_000)  # from the camera's trigger to the sensor
    window_ms: int = Field(ge=1, le=60_000)  # a part may be so much earlier or later


class MatchByWeb(Section):
    """A web: one encoder is read at the camera's trigger and counts on until its lines are under the marker."""

    by: Literal["web"]
    distance_counts: Position  # from the camera's trigger to where the frame's first line is under the marker


class Timing(Section):
    """When the ejector's output is set, counted from the moment at which the sensor sees the part."""

    unit: Literal["counts", "ms"]
    delay: Position  # until the output is set; allow for the time that the ejector needs to move
    pulse: int = Field(ge=1, le=100_000_000)  # for so long
    tolerance: int = Field(ge=1, le=100_000_000)  # acting later than this is refused: the part is past
    min_spacing: int = Field(ge=2, le=100_000_000)  # parts that follow closer cannot be told apart: both are rejected


class Confirmation(Section):
    """A sensor on the way to the reject bin: every commanded ejection must be seen there, and no other."""

    within_ms: int = Field(ge=1, le=60_000)  # from the ejector's turn to the sensor in the reject chute
    mismatches: int = Field(default=2, ge=1, le=1000)  # so many without an agreement between them are a fault


class Commissioning(Section):
    """Verdicts are live and the ejector rests: where it rests at `pass`, nothing is kept from anyone."""

    line_ok: Literal["stops", "toggles"]  # what LINE-OK says meanwhile


class Actuator(Section):
    """One ejector and what belongs to it."""

    name: Name
    lane: Name
    drivers: tuple[Driver, ...] = Field(min_length=1, max_length=4)  # one with the ejector; the others are told
    at_rest: Literal["reject", "pass"]  # between two parts; "reject" opens for each PASS, and needs power to stay open
    match: MatchById | MatchByCount | MatchByTime | MatchByWeb = Field(discriminator="by")
    timing: Timing
    max_age_ms: int = Field(ge=1, le=3_600_000)  # from the camera's trigger to the ejector: an older verdict is no PASS
    min_age_ms: int = Field(default=0, ge=0, le=3_600_000)  # nothing gets from the camera to the ejector faster
    channel: str = Field(default="", pattern=r"^(|(ipc|tcp)://.+)$")  # of the line; default: the line on this machine
    server_key: Path | None = None  # with tcp://: the line's public key; see `maskline keys`
    client_key: Path | None = None  # ours; the two go together
    insecure: bool = False  # take verdicts from another machine without keys: whoever answers there is believed
    line_ok_ms: int = Field(default=50, ge=5, le=10_000)  # LINE-OK changes so often
    max_late: int = Field(default=3, ge=1, le=10_000)  # so many late actions in a row are a fault; one, at rest at pass
    max_rejects: int | None = Field(default=None, ge=1, le=1_000_000)  # so many in a row are a fault; absent: no limit
    # So many parts in a row rejected because tracking was lost are a fault; absent: no limit. More than twice the parts
    # between camera and sensor, or a start with a full belt is one.
    max_untracked: int | None = Field(default=None, ge=1, le=1_000_000)
    watch: tuple[Literal["bin_full", "air_ok"], ...] = ()  # inputs that are wired and must be right
    confirmation: Confirmation | None = None
    commissioning: Commissioning | None = None  # absent: there is no such mode

    @property
    def has_ejector(self) -> bool:
        """Whether one of the drivers acts; otherwise a PLC is told, and acts."""
        return any(d.ejects for d in self.drivers)

    @property
    def late_limit(self) -> int:
        """So many late actions in a row are a fault: where the ejector rests at pass, each lets a part escape."""
        return 1 if self.at_rest == "pass" and self.has_ejector else self.max_late

    @model_validator(mode="after")
    def _rules(self) -> Actuator:
        ejectors = sum(d.ejects for d in self.drivers)
        told = any(isinstance(d, ModbusDriver) for d in self.drivers)
        if ejectors > 1 or (ejectors == 0 and (isinstance(self.match, MatchByWeb) or not told)):
            raise ValueError(
                f"{ejectors} of its drivers have an ejector; expected one, or none where a PLC (modbus) acts upon the "
                "results that it is told"
            )
        if ejectors or not isinstance(self.match, MatchById):
            self._one_part_at_a_time()
        self._only_from_us()
        if self.min_age_ms >= self.max_age_ms:
            raise ValueError(f"min_age_ms = {self.min_age_ms} is not less than max_age_ms = {self.max_age_ms}")
        if isinstance(self.match, MatchById):
            return self
        if isinstance(self.match, MatchByWeb):
            unit, window = "counts", 0
        elif isinstance(self.match, MatchByCount):
            unit, window = "counts", self.match.window_counts
        else:
            unit, window = "ms", self.match.window_ms
        if self.timing.unit != unit:
            raise ValueError(f'match.by = "{self.match.by}" goes with timing.unit = "{unit}"')
        if 2 * window >= self.timing.min_spacing:
            raise ValueError(
                f"a window of {window} {unit} either way and min_spacing = {self.timing.min_spacing}: two parts would "
                "fit into one window; expected less than half of the spacing"
            )
        return self

    def _only_from_us(self) -> None:
        if (self.server_key is None) != (self.client_key is None):
            raise ValueError("server_key and client_key go together: with one of them nothing is encrypted")
        if beyond_loopback(self.channel) and self.server_key is None and not self.insecure:
            raise ValueError(
                f"channel = {self.channel}: on the way from another machine anybody could say PASS; name server_key "
                "and client_key (maskline keys new), or believe whoever answers there (insecure = true)"
            )

    def _one_part_at_a_time(self) -> None:
        timing = self.timing
        if timing.delay + timing.pulse > timing.min_spacing:
            raise ValueError(
                f"timing: delay + pulse = {timing.delay + timing.pulse} {timing.unit}, more than min_spacing = "
                f"{timing.min_spacing}: the next part would pass the sensor before this one is dealt with, and an "
                "encoder that slips could open the way for it; put the sensor nearer to the ejector, or the parts "
                "farther apart"
            )
