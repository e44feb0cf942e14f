"""The roll map: from what was said of each frame to what is known of every line of the web; pure.

A line counts as inspected when a frame that was judged has it among the rows that are judged. Everything else within
the roll is not inspected, whatever the reason, and never good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge.messages import Boxes
from edge.place.geometry import MAX_BOXES
from edge.tiling import Box
from edge.verdict import Decision, Reason
from edge.webs.defects import Defect, Piece, join
from edge.webs.geometry import WebGeometry, on_web

__all__ = ["NOT_SEEN", "Gap", "Look", "RollMap", "roll_map"]

NOT_SEEN = "not_seen"
"""Why a stretch was not inspected that lies in no frame, or at the end of a frame that no other one followed."""


@dataclass(frozen=True)
class Look:
    """A frame of the web, and what was said of it."""

    number: int
    count: int | None = None  # of the encoder at its trigger
    decision: Decision = Decision.UNINSPECTED
    reason: str = Reason.MISSED_FRAME.value
    boxes: Boxes | None = None  # in pixels of its window
    rows_before: int = 0
    score: float | None = None
    picture: str = ""


@dataclass(frozen=True)
class Gap:
    """Lines that were not inspected: from `start` up to `end`."""

    start: int
    end: int
    why: str  # reasons, separated by blanks


@dataclass(frozen=True)
class RollMap:
    """A roll, in lines along and pixels across. `start` is below 0 where the encoder ran back behind its beginning."""

    geometry: WebGeometry
    start: int
    end: int
    defects: list[Defect]  # with a place
    # Frames that were rejected without a place, or with as many as a view can have: from side to side, and from the
    # first line that they judged to the last of their own.
    rejected: list[Defect]
    gaps: list[Gap]

    @property
    def inspected_lines(self) -> int:
        """How many lines were judged."""
        return self.end - self.start - sum(gap.end - gap.start for gap in self.gaps)


def roll_map(looks: Sequence[Look], geometry: WebGeometry) -> RollMap:
    """The map of a roll from its frames, in the order of their numbers; the first one begins it.

    What lies before a loss of tracking is in doubt as well: the encoder ran wrong while that frame's lines passed.
    """
    first_lines = _place(looks, geometry)
    judged = _judged(looks)
    covered = []
    pieces, rejected = [], []
    for i, (look, first) in enumerate(zip(looks, first_lines, strict=True)):
        if not judged[i]:
            continue
        follows = i > 0 and judged[i - 1] and looks[i - 1].number == look.number - 1
        covered.append(_covered(look, first, geometry, follows))
        if look.decision is Decision.REJECT:
            found = _pieces(look, first, geometry)
            pieces += found
            if not 0 < len(found) < MAX_BOXES:
                begin = min(covered[-1][0], first)
                whole = Box(geometry.left, begin, geometry.right - geometry.left, first + geometry.frame_px - begin)
                rejected.append(Defect(whole, (Piece(whole, look.number, look.score, look.picture),)))
    start = min(first_lines, default=0)
    end = max((first + geometry.frame_px for first in first_lines), default=0)
    unjudged = [
        (first, first + geometry.frame_px, look.reason or Reason.TRACKING.value)
        for look, first, good in zip(looks, first_lines, judged, strict=True)
        if not good
    ]
    gaps = [Gap(a, b, _why(a, b, unjudged)) for a, b in _left_out(covered, start, end, geometry.tolerance_lines)]
    return RollMap(geometry, start, end, join(pieces, geometry.tolerance_lines), rejected, gaps)


def _place(looks: Sequence[Look], geometry: WebGeometry) -> list[int]:
    """Where the first row of each frame lies: from the encoder where there is one, else from the frame before."""
    lines: list[int] = []
    anchor: tuple[int, int] | None = None  # line and count of the first frame that has a count
    for i, look in enumerate(looks):
        counted = 0 if i == 0 else lines[-1] + (look.number - looks[i - 1].number) * geometry.frame_px
        if geometry.lines_per_count is None or look.count is None:
            lines.append(counted)
            continue
        anchor = anchor or (counted, look.count)
        lines.append(anchor[0] + round((look.count - anchor[1]) * geometry.lines_per_count))
    return lines


def _judged(looks: Sequence[Look]) -> list[bool]:
    judged = [look.decision is not Decision.UNINSPECTED for look in looks]
    counted = None  # the newest frame whose trigger had a count
    for i, look in enumerate(looks):
        if look.reason == Reason.TRACKING.value and counted is not None:
            judged[counted] = False
        counted = counted if look.count is None else i
    return judged


def _covered(look: Look, first: int, geometry: WebGeometry, follows: bool) -> tuple[int, int]:
    """The lines that are judged in a frame; those of the frame before only where that one is known to be the one."""
    begin, end = geometry.judged(look.rows_before)
    return first + (begin if follows else max(begin, 0)), first + end


def _pieces(look: Look, first: int, geometry: WebGeometry) -> list[Piece]:
    pieces = []
    for x, y, width, height in look.boxes or []:
        box = on_web(Box(x, y, width, height), first, geometry.overlap_px)
        pieces.append(Piece(box, look.number, look.score, look.picture))
    return pieces


def _left_out(covered: list[tuple[int, int]], start: int, end: int, tolerance: int) -> list[tuple[int, int]]:
    """What of [start, end) is in no interval of `covered`; as few lines as `tolerance` between two do not count."""
    gaps, upto = [], start
    for first, last in sorted(covered):
        if first - upto > (tolerance if upto > start else 0):
            gaps.append((upto, first))
        upto = max(upto, last)
    if upto < end:
        gaps.append((upto, end))
    return gaps


def _why(start: int, end: int, unjudged: list[tuple[int, int, str]]) -> str:
    reasons = [reason for first, last, reason in unjudged if first < end and start < last]
    return " ".join(dict.fromkeys(reasons)) or NOT_SEEN
