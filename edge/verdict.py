"""The words in which the line answers: decisions, reasons, states."""

from __future__ import annotations

from enum import Enum

__all__ = ["CLOCK_REASONS", "Decision", "GateState", "Reason", "worst"]


class Decision(str, Enum):
    """What is said of a part. Anything that is not a timely PASS belongs in the reject bin."""

    PASS = "PASS"
    REJECT = "REJECT"
    UNINSPECTED = "UNINSPECTED"


class Reason(str, Enum):
    """Why a part is UNINSPECTED."""

    UNCALIBRATED = "uncalibrated"  # no calibration, or one made for another bundle, recipe, backend or precision
    DEADLINE = "deadline"  # no answer in time; the late score goes to the journal only
    OVERLOAD = "overload"  # no free slot for the frame
    MISSED_FRAME = "missed_frame"  # a trigger without an image, or a gap in the frame ids
    REPEATED_FRAME = "repeated_frame"  # the camera gave a frame id twice
    FRAME_OUT_OF_ORDER = "frame_out_of_order"  # a frame id below the last one, or a counter that began anew
    FROZEN_FRAME = "frozen_frame"  # the same bytes as the frame before: the camera or its buffer stands
    DEFOCUSED = "defocused"  # less sharp than any good part was
    NO_PART = "no_part"  # nothing at the place where the recipe says that a part is
    SEVERAL_PARTS = "several_parts"
    MISPLACED = "misplaced"  # shifted or turned further than the recipe allows
    TRACKING = "tracking"  # where on the web this frame lies is not known: its encoder ran backwards or jumped
    MISSING_VIEW = "missing_view"  # an expected view of the part was never triggered
    BAD_IMAGE = "bad_image"  # the image does not decode
    WRONG_SIZE = "wrong_size"  # not the size, depth or channels that the recipe declares
    BLACK_FRAME = "black_frame"
    SATURATED_FRAME = "saturated_frame"
    ENGINE_ERROR = "engine_error"
    NOT_READY = "not_ready"  # the engine was stale; or a judge that began anew does not know the frame of a web before
    RESTART = "restart"  # open when the gate, the supervisor or the box died; always late
    CHANGE_OVER = "change_over"  # still open when the line had to go over to another recipe
    STOPPING = "stopping"  # still open when the drain budget of a stop was spent


CLOCK_REASONS = frozenset(
    {Reason.DEADLINE, Reason.OVERLOAD, Reason.NOT_READY, Reason.RESTART, Reason.CHANGE_OVER, Reason.STOPPING}
)
"""Reasons that time alone causes: a replay keeps them apart from the decision."""

_SEVERITY = {Decision.PASS: 0, Decision.UNINSPECTED: 1, Decision.REJECT: 2}


def worst(decisions: list[Decision]) -> Decision:
    """The decision for a part from those of its views: REJECT before UNINSPECTED before PASS.

    Raises ValueError for an empty list: a part without views has no verdict.
    """
    return max(decisions, key=_SEVERITY.__getitem__)


class GateState(str, Enum):
    """The gate's own state, in every heartbeat."""

    NOT_READY = "NOT_READY"  # starting, or the journal cannot be written: no verdict goes out
    READY = "READY"
    DEGRADED = "DEGRADED"  # verdicts go out, and something wants attention: see the heartbeat's `trouble`
    STOPPING = "STOPPING"
