"""A marker on a web: ink, or a label, on every defect, where it lies.

A web has no parts that a sensor could see: the encoder says what is under the marker. Whatever passes there without a
timely PASS is marked: the defects of a REJECT, where they are, and everything of which there is no verdict that counts.
So nothing that goes wrong makes good web of bad; it makes marks. While the web stands there are none.

Pure: no clock, no socket, no hardware.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from edge.actuators.answers import Seen
from edge.actuators.driver import PartOutcome
from edge.actuators.in_flight import Decided, InFlight, Now
from edge.actuators.settings import Actuator, MatchByWeb
from edge.messages import Verdict, View
from edge.place.geometry import MAX_BOXES, Box
from edge.verdict import Decision, Reason
from edge.webs.geometry import WebGeometry, on_web

__all__ = ["MAX_STRETCHES", "STANDS_NS", "WebMarker"]

MAX_STRETCHES = 4096
"""Frames between camera and marker; the web of those that are forgotten is marked."""
STANDS_NS = 500_000_000
"""A web whose encoder does not move for so long stands."""


@dataclass
class _Stretch:
    """The web of one frame, in counts of the encoder at the camera."""

    verdict: Verdict
    trigger_ns: int | None  # by this box's clock, off by at most bound_ns
    bound_ns: int
    start: float
    end: float
    judged: tuple[float, float]
    doubt: str  # why all of it is marked; empty: nothing but its defects
    late: bool | None = None  # its verdict came when it had reached the marker; None: not looked at yet
    told: bool = False


class WebMarker(InFlight):
    """The web between the cameras of a lane and one marker."""

    def __init__(self, actuator: Actuator, webs: Mapping[str, WebGeometry], start_ns: int) -> None:
        """`webs`: of the lane's stations. For `start_ns` see InFlight."""
        assert isinstance(actuator.match, MatchByWeb)
        super().__init__(actuator.lane, start_ns)
        timing = actuator.timing
        self._webs = webs
        self._away = actuator.match.distance_counts + timing.delay
        self._pulse, self._tolerance, self._apart = timing.pulse, timing.tolerance, timing.min_spacing
        self._max_age_ns = actuator.max_age_ms * 1_000_000
        self._stretches: deque[_Stretch] = deque(maxlen=MAX_STRETCHES)
        self._marks: list[tuple[float, float]] = []
        self._suspects: deque[int] = deque(maxlen=64)  # frames whose lines passed while the encoder ran wrong
        self._uncounted: deque[int] = deque(maxlen=64)  # frames whose trigger has no count
        self._count: int | None = None  # of the encoder, as far as the web has come
        self._moved_ns = start_ns
        self._unable = "silence"

    @property
    def parts(self) -> int:
        """Frames between camera and marker."""
        return len(self._stretches)

    @property
    def full(self) -> bool:
        """Never: the web of what is forgotten is marked."""
        return False

    def sense(self, seen: Seen, now_ns: int) -> None:
        """A web has no sensor."""
        self.counters["sensed"] += 1

    def advance(self, now: Now, unable: str) -> list[Decided]:
        """What has passed the marker, frame by frame. `unable`: why nothing is good now; empty: it may be."""
        self._unable = unable
        here = self._watch_encoder(now)
        if here is None:
            return []
        for stretch in self._stretches:
            if stretch.late is None:
                stretch.late = not stretch.doubt and here > stretch.start + self._tolerance
                self.counters["late"] += stretch.late
        self._marks = [mark for mark in self._marks if mark[1] > here]
        passed = [s for s in self._stretches if here >= s.end and not s.told]
        while self._stretches and self._stretches[0].told and here > self._stretches[0].end + self._slack:
            self._stretches.popleft()
        return [self._decide(stretch, now) for stretch in passed]

    def ejects(self, now: Now) -> bool:
        """Whether to mark what is under the marker now."""
        if now.count is None:
            return True
        if now.ns - self._moved_ns > STANDS_NS:
            return False
        here = now.count - self._away
        if self._unable or any(start <= here < end for start, end in self._marks):
            return True
        before, after = float("-inf"), float("inf")  # what was judged on either side
        for stretch in self._stretches:
            if not stretch.doubt and not self._too_old(stretch, now):
                begin, end = stretch.judged
                before = max(before, min(end, here)) if begin <= here else before
                after = min(after, max(begin, here)) if here < end else after
            elif stretch.start <= here < stretch.end:
                return True
        return after - before > self._slack

    def overrun(self, now: Now) -> bool:
        """Never: what is known of the web ends, and what is not known is marked."""
        return False

    def next_ns(self) -> int | None:
        """None: an encoder says when."""
        return None

    def _forget(self) -> None:
        self._suspects.clear()
        self._uncounted.clear()

    def _take(self, verdict: Verdict, trigger_ns: int | None, bound_ns: int) -> bool:
        if any(s.verdict.part == verdict.part and s.verdict.run == verdict.run for s in self._stretches):
            return False
        if verdict.reason is Reason.TRACKING:  # the encoder ran wrong while the lines of the frame before passed
            self._suspect(verdict.part - 1)
        if verdict.count is None:
            self._uncounted.append(verdict.part)
            if verdict.part in self._suspects:
                self._suspect(verdict.part - 1)
            self.counters["verdicts_without_count"] += 1
            return True
        length = max(self._counts(web, web.frame_px) for web in self._webs.values())
        doubt, judged = self._doubt(verdict, trigger_ns, bound_ns), self._judged(verdict.views, verdict.count)
        self._stretches.append(
            _Stretch(verdict, trigger_ns, bound_ns, verdict.count, verdict.count + length, judged, doubt)
        )
        for view in verdict.views:
            self._mark(view, verdict.count)
        return True

    def _spoil(self) -> None:
        for stretch in self._stretches:
            stretch.doubt = stretch.doubt or "tracking lost"

    @property
    def _slack(self) -> float:
        """From one frame to the next there may be so many counts that belong to neither."""
        return max(self._counts(web, web.tolerance_lines) for web in self._webs.values())

    def _counts(self, web: WebGeometry, lines: float) -> float:
        assert web.lines_per_count is not None  # the recipe was checked
        return lines / web.lines_per_count

    def _suspect(self, part: int) -> None:
        """Trust nothing that is said of a frame, or will be; nor of the last one with a count, where it has none."""
        self._suspects.append(part)
        if part in self._uncounted:
            self._suspect(part - 1)
        for stretch in self._stretches:
            if stretch.verdict.part == part:
                stretch.doubt = stretch.doubt or "tracking"

    def _judged(self, views: list[View], count: int) -> tuple[float, float]:
        """The web that every view of a frame judged."""
        begin, end = float("-inf"), float("inf")
        for view in views:
            web = self._webs.get(view.station)
            if web is None:
                return count, count
            first, last = web.judged(view.rows_before)
            begin, end = max(begin, count + self._counts(web, first)), min(end, count + self._counts(web, last))
        return (begin, end) if views else (count, count)

    def _doubt(self, verdict: Verdict, trigger_ns: int | None, bound_ns: int) -> str:
        """Why this verdict lets none of its web go unmarked; empty: nothing but its defects is marked."""
        if verdict.decision is Decision.UNINSPECTED:
            return verdict.reason.value if verdict.reason else "uninspected"
        if verdict.part in self._suspects:
            return "tracking"
        untimely = self._untimely(verdict, trigger_ns, bound_ns)
        if untimely:
            return untimely
        for view in verdict.views:
            if view.decision is Decision.UNINSPECTED:
                return view.reason.value if view.reason else "uninspected"
            if view.decision is Decision.REJECT and not 0 < len(view.boxes) < MAX_BOXES:
                return "reject"  # there is no place, or there are more than are told
        return ""

    def _mark(self, view: View, count: int) -> None:
        web = self._webs.get(view.station)
        for x, y, width, height in view.boxes if web and view.decision is Decision.REJECT else []:
            assert web is not None
            box = on_web(Box(x, y, width, height), 0, web.overlap_px)
            start = count + self._counts(web, box.y)
            end = start + max(self._pulse, self._counts(web, box.height))
            near = [m for m in self._marks if m[0] <= end + self._apart and start <= m[1] + self._apart]
            self._marks = [m for m in self._marks if m not in near]
            self._marks.append((min([start, *(m[0] for m in near)]), max([end, *(m[1] for m in near)])))
            self.counters["marks"] += 1 - len(near)

    def _watch_encoder(self, now: Now) -> int | None:
        """Where the web is that is under the marker: what the encoder said when the camera saw it."""
        before, count = self._count, now.count
        if count is None:
            if before is not None:
                self.lose("the encoder says nothing", now.ns)
            self._count = None
            return None
        if before is None or count > before:
            self._count, self._moved_ns = count, now.ns
        elif count < before - self._tolerance:
            self._count = count
            self.lose("the encoder went back", now.ns)
        return count - self._away

    def _too_old(self, stretch: _Stretch, now: Now) -> bool:
        return now.ns - (stretch.trigger_ns or 0) + stretch.bound_ns > self._max_age_ns

    def _decide(self, stretch: _Stretch, now: Now) -> Decided:
        stretch.told = True
        verdict, late = stretch.verdict, bool(stretch.late)
        why = stretch.doubt or self._unable or ("too old" if self._too_old(stretch, now) else "")
        why = why or ("reject" if verdict.decision is Decision.REJECT else "late" if late else "")
        self.counters["rejected" if why else "passed"] += 1
        said = verdict.decision if verdict.decision is not Decision.PASS else Decision.UNINSPECTED
        outcome = PartOutcome(
            number=verdict.part,
            lane=self._lane,
            part_id=verdict.part_id,
            decision=said if why else Decision.PASS,
            why=why,
            ejected=bool(why),
        )
        return Decided(outcome, verdict, late)
