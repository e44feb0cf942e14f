"""What an actuator needs of the hardware it drives: inputs as timed edges, an ejector, LINE-OK, and somewhere to tell.

The loop calls a driver from one thread, and no call blocks it for more than a few milliseconds, `poll` excepted, which
waits for as long as it is told to. What is slow (a network, a PLC that does not answer) runs in a thread of the driver.

A driver that cannot do what is asked raises DriverError. It stays usable: it tries to come back by itself, and calls
raise for as long as they cannot be obeyed. `poll` hands out the edges that it has before it raises, and waits its
timeout first, so that a loop that goes on polling in the safe state neither loses edges nor spins.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Protocol

from edge.errors import MasklineError
from edge.messages import Verdict
from edge.verdict import Decision, GateState

__all__ = ["MAX_ID16", "Driver", "DriverError", "Edge", "Fault", "Input", "PartOutcome", "Status", "id16"]

MAX_ID16 = 0xFFFF


class DriverError(MasklineError):
    """The hardware, or the way to it, does not do what is asked; the actuator goes to its safe state."""

    edges: tuple[Edge, ...] = ()
    """From `poll`: what came meanwhile from other drivers of the same actuator."""


class Input(str, Enum):
    """What the machine tells the actuator."""

    SENSOR = "sensor"  # a part passes the sensor before the ejector, or the PLC's trigger says so
    CONFIRM = "confirm"  # an ejected part was seen on its way to the reject bin
    BIN_FULL = "bin_full"  # level
    AIR_OK = "air_ok"  # level: there is enough pressure to eject
    RESET = "reset"  # a person at the machine resets latched faults
    COMMISSIONING = "commissioning"  # level: a key switch or the PLC asks for commissioning mode
    CHANGE_OVER = "change_over"  # the PLC asks for another recipe


class Fault(IntEnum):
    """Why the actuator does not trust itself; the numbers are what a PLC reads, so they never change their meaning."""

    NONE = 0
    SILENCE = 1  # no heartbeat from the gate
    LATE = 2  # too many parts in a row were decided or seen too late to act upon
    CONSECUTIVE_REJECTS = 3
    CONFIRMATION = 4  # ejections that were commanded and parts that were seen in the reject chute do not agree
    BIN_FULL = 5
    AIR = 6
    CLOCK = 7  # the offset between two boxes' clocks is known less well than the window is wide
    TRACKING = 8  # parts and verdicts cannot be told apart any more
    DRIVER = 9  # the driver cannot do what is asked
    OTHER = 10


@dataclass(frozen=True)
class Edge:
    """One event of an input."""

    input: Input
    level: bool
    at_ns: int  # this box's monotonic clock
    count: int | None = None  # of the encoder, at the event
    part_id: int | None = None  # SENSOR: as the PLC calls the part, 1 to 65535
    recipe: int | None = None  # CHANGE_OVER: the number of the recipe that the PLC asks for


@dataclass(frozen=True)
class PartOutcome:
    """What the actuator did with one part."""

    number: int | None  # of the part on its lane; None: no verdict could be matched to what the sensor saw
    lane: str
    part_id: int | None  # given by the PLC
    decision: Decision  # acted upon: PASS only if there was a timely one
    why: str  # of anything but a PASS, as in edge/actuators/modbus_map.py: a reason, "reject", "late"; else empty
    ejected: bool  # whether the ejector was commanded to throw it out; never in commissioning mode

    @property
    def id16(self) -> int:
        """What a PLC calls the part: the id that it gave, or else the part's number; 0: neither is known."""
        known = self.part_id if self.part_id is not None else self.number
        return 0 if known is None else id16(known)


@dataclass(frozen=True)
class Status:
    """What the actuator and the line are doing."""

    gate: GateState | None  # None: no heartbeat arrives
    fault: Fault = Fault.NONE
    commissioning: bool = False  # the ejector is inhibited
    recipe: int = 0  # the number of the recipe that the newest verdict was made with; 0: it has none


class Driver(Protocol):
    """One actuator's hardware.

    The constructor is told the level at which the ejector starts (`eject`, where there can be an ejector), and sets no
    other one before the first call of `eject`; a constructor that fails has set none, or that. It leaves LINE-OK as it
    stands, where that can be known, and no heartbeat changes before the first `poll`: a process that only starts, again
    and again, must not look alive, and lets nothing pass.
    """

    def poll(self, timeout_ms: int) -> list[Edge]:
        """What happened, oldest first; returns as soon as anything has, and after `timeout_ms` with nothing."""
        ...

    def count(self) -> int | None:
        """The encoder now; None without one."""
        ...

    def eject(self, on: bool) -> None:
        """Set the ejector's output to this level, from now on."""
        ...

    def line_ok(self, level: bool) -> None:
        """Set the LINE-OK output; the loop toggles it while everything is alive."""
        ...

    def tell(self, verdict: Verdict | None, part: PartOutcome) -> None:
        """Pass on what was decided about one part, and the verdict it came from, to those who want to know."""
        ...

    def report(self, status: Status) -> None:
        """Pass on what the actuator is doing; called whenever that changes."""
        ...

    def close(self) -> None:
        """Let go of the hardware. Outputs go to what the wiring does without us."""
        ...


def id16(number: int) -> int:
    """A number in the 16 bits that a PLC's register has: 1 to 65535 as they are, then 1 again; 0 means no part."""
    return (number - 1) % MAX_ID16 + 1
