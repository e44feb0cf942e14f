"""The registers that a PLC and an actuator share: two blocks of 16-bit holding registers, and what their bits mean.

docs/plc.md prints this map for those who program PLCs; a test compares the two.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from edge.verdict import Decision, GateState

__all__ = [
    "CONTROL_WORDS",
    "DECISIONS",
    "GATE_STATES",
    "NO_SCORE",
    "OTHER_WHY",
    "RESULT",
    "STATUS_WORDS",
    "WHY",
    "ControlBit",
    "ControlWord",
    "ResultFlag",
    "StatusBit",
    "StatusWord",
    "why_code",
]


class ControlWord(IntEnum):
    """What the PLC writes, by offset from `control_address`."""

    BITS = 0
    HEARTBEAT = 1  # changes while the PLC is alive
    PART_ID = 2  # of the part that is triggered, 1 to 65535; 0: the PLC has no ids. Written before or with TRIGGER
    RECIPE = 3  # wanted, 1 to 65535. Written before or with CHANGE_OVER
    CONFIRMED = 4  # ejected parts that were seen on their way to the reject bin; wraps


class ControlBit(IntFlag):
    """Bits of ControlWord.BITS."""

    TRIGGER = 1 << 0  # a part passes the sensor before the ejector
    RESULTS_ACK = 1 << 1  # the result was read
    RESET = 1 << 2  # rising: reset latched faults and the bits OVERRUN and MISSED
    COMMISSIONING = 1 << 3  # level
    CHANGE_OVER = 1 << 4  # rising: use the recipe in RECIPE
    BIN_FULL = 1 << 5  # level
    AIR_OK = 1 << 6  # level


class StatusWord(IntEnum):
    """What we write, by offset from `status_address`. From RESULT_HEAD on it is the result block."""

    BITS = 0
    HEARTBEAT = 1  # changes while the actuator's loop is alive
    GATE_STATE = 2
    FAULT = 3  # edge.actuators.driver.Fault
    RECIPE = 4  # in force; 0: it has no number
    TRIGGER_ID = 5  # PART_ID of the trigger that was acknowledged last
    BUFFERED = 6  # results that wait behind the one that is shown
    OVERRUNS = 7  # triggers while not ready; wraps
    MISSES = 8  # results that the PLC did not take; wraps
    RESULT_HEAD = 9  # number of the result, 1 to 65535, then 1 again
    RESULT_ID = 10  # 16-bit id of the part
    DECISION = 11
    WHY = 12
    FLAGS = 13
    SCORE = 14  # in thousandths of the threshold
    DEFECTS = 15  # boxes in all views
    RESULT_TAIL = 16  # equal to RESULT_HEAD in a whole block


class StatusBit(IntFlag):
    """Bits of StatusWord.BITS."""

    TRIGGER_READY = 1 << 0
    TRIGGER_ACK = 1 << 1
    BUSY = 1 << 2  # acknowledged triggers wait for their results
    RESULTS_VALID = 1 << 3
    OVERRUN = 1 << 4  # a trigger came while not ready; until RESET
    MISSED = 1 << 5  # a result was not taken; until RESET
    FAULT = 1 << 6
    COMMISSIONING = 1 << 7  # the ejector is inhibited
    CHANGE_OVER_ACK = 1 << 8
    LINE_OK = 1 << 9  # toggles
    EJECT = 1 << 10  # the ejector's output
    PLC_SILENT = 1 << 11  # the PLC's heartbeat stands still


class ResultFlag(IntFlag):
    """Bits of StatusWord.FLAGS."""

    EJECTED = 1 << 0  # commanded
    LATE = 1 << 1  # the verdict was past its deadline
    SIMULATED = 1 << 2  # the images came from no camera


CONTROL_WORDS = len(ControlWord)
STATUS_WORDS = len(StatusWord)
RESULT = slice(StatusWord.RESULT_HEAD, STATUS_WORDS)

GATE_STATES = {
    None: 0,  # no heartbeat from the gate
    GateState.NOT_READY: 1,
    GateState.READY: 2,
    GateState.DEGRADED: 3,
    GateState.STOPPING: 4,
}
DECISIONS = {Decision.PASS: 1, Decision.REJECT: 2, Decision.UNINSPECTED: 3}
WHY = {
    "": 0,
    "uncalibrated": 1,
    "deadline": 2,
    "overload": 3,
    "missed_frame": 4,
    "missing_view": 5,
    "bad_image": 6,
    "wrong_size": 7,
    "black_frame": 8,
    "saturated_frame": 9,
    "engine_error": 10,
    "not_ready": 11,
    "restart": 12,
    "stopping": 13,
    "change_over": 14,
    "reject": 15,
    "repeated_frame": 16,
    "frame_out_of_order": 17,
    "frozen_frame": 18,
    "defocused": 19,
    "no_part": 20,
    "several_parts": 21,
    "misplaced": 22,
    "tracking": 23,
    "late": 32,
    "no verdict": 33,
    "ambiguous": 34,
    "out of order": 35,
    "tracking lost": 36,
    "too close": 37,
    "too young": 38,
    "too old": 39,
    "no count": 40,
    "silence": 41,
    "clock": 42,
    "driver": 43,
    "fault": 44,
    "gate": 45,
    "not known": 46,
    "counts differ": 47,
}
"""Numbers never change their meaning. From 32 on they are the actuator's own reasons."""
OTHER_WHY = 255
NO_SCORE = 65535


def why_code(why: str) -> int:
    """The number of a part's `why`: "fault air" is a fault, "gate STOPPING" the gate's state, "air_ok not known" is not
    known; OTHER_WHY for what has no number."""
    if why.endswith(" not known"):
        return WHY["not known"]
    family, _, more = why.partition(" ")
    return WHY[family] if more and family in ("fault", "gate") else WHY.get(why, OTHER_WHY)
