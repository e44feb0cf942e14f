"""A marker on a web: it marks defects where they are, and whatever has no timely PASS; never a standing web.

Two counts are a line; a frame has 50 lines, so 100 counts, and the marker is 300 counts behind the camera. Frame n is
triggered at 100 n; one count is one millisecond."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.actuators.in_flight import Decided, Now
from edge.actuators.settings import Actuator
from edge.actuators.web_marker import WebMarker
from edge.messages import View
from edge.recipes import load_recipe
from edge.verdict import Decision, Reason
from edge.webs.geometry import WebGeometry
from tests.edge.actuators.actuator_helpers import BOOT, EPOCH, actuator, heartbeat, verdict
from tests.edge.actuators.loop_helpers import Bench

MS = 1_000_000
AWAY = 300


def web(overlap: int = 0, margin: int = 0) -> WebGeometry:
    return WebGeometry(
        frame_px=50,
        overlap_px=overlap,
        top=margin,
        bottom=50 + overlap - margin,
        left=0,
        right=64,
        margin_px=margin,
        width_px=64,
        mm_per_line=1.0,
        mm_per_px=1.0,
        lines_per_count=0.5,
        tolerance_lines=2,
    )


def marker(**changes: Any) -> Actuator:
    fields = {
        "at_rest": "pass",
        "match": {"by": "web", "distance_counts": AWAY},
        "timing": {"unit": "counts", "delay": 0, "pulse": 4, "tolerance": 3, "min_spacing": 6},
        "max_age_ms": 100_000,
    }
    return actuator(**(fields | changes))


def view(decision: Decision, *boxes: tuple[int, int, int, int], before: int = 0, reason: Reason | None = None) -> View:
    return View(
        "cam", decision, reason, 1.0, 0.5, [list(b) for b in boxes], None, "", 0, "", "", {}, [], rows_before=before
    )


class Web:
    """Moves a web past one marker."""

    def __init__(self, geometry: WebGeometry | None = None, **changes: Any) -> None:
        self.marker = WebMarker(marker(**changes), {"cam": geometry or web()}, -1)
        self.marker.line(EPOCH, BOOT, -1)
        self.marker._lost_ns = -1
        self.decided: list[Decided] = []

    def hear(self, n: int, *boxes: tuple[int, int, int, int], before: int = 0, **changes: Any) -> None:
        """The verdict on frame n: a REJECT where there are boxes."""
        decision = changes.pop("decision", Decision.REJECT if boxes else Decision.PASS)
        views = changes.pop("views", [view(decision, *boxes, before=before)])
        made = verdict(n, decision, **({"count": 100 * n, "trigger_ns": 100 * n * MS, "views": views} | changes))
        self.marker.hear(made, made.trigger_ns, 0, 100 * n * MS)

    def at(self, count: int | None, ms: int | None = None, unable: str = "") -> bool:
        now = Now((count or 0 if ms is None else ms) * MS, count)
        self.decided += self.marker.advance(now, unable)
        return self.marker.ejects(now)

    def marked(self, start: int, end: int) -> list[tuple[int, int]]:
        """The counts of the web, as the camera saw them, from `start` to `end` that get a mark, as intervals."""
        on = [c for c in range(start, end) if self.at(c + AWAY)]
        breaks = [i for i in range(1, len(on)) if on[i] != on[i - 1] + 1]
        edges = [0, *breaks, len(on)]
        return [(on[a], on[b - 1] + 1) for a, b in itertools.pairwise(edges) if on]


def test_a_defect_is_marked_where_it_is_and_good_web_is_not() -> None:
    one = Web()
    one.hear(0)
    one.hear(1, (10, 20, 5, 10))
    one.hear(2)
    assert one.marked(0, 300) == [(140, 160)]
    assert [(d.outcome.number, d.outcome.why, d.late) for d in one.decided] == [(0, "", False), (1, "reject", False)]
    assert one.at(300 + AWAY), "nobody has said anything of what comes then"
    assert one.decided[-1].outcome.decision is Decision.PASS


def test_a_small_defect_gets_a_whole_mark_and_close_ones_share_one() -> None:
    one = Web()
    one.hear(0, (10, 20, 1, 1), (40, 24, 1, 1), (10, 40, 1, 1))
    assert one.marked(0, 100) == [(40, 52), (80, 84)]
    assert one.marker.counters["marks"] == 2


def test_a_defect_over_a_border_or_in_the_overlap_is_marked_once() -> None:
    one = Web(web(overlap=10))
    one.hear(0, (10, 55, 5, 5))
    one.hear(1, (10, 5, 5, 15), before=10)
    assert one.marked(0, 200) == [(90, 120)]


@pytest.mark.parametrize(
    "changes",
    [
        {"decision": Decision.UNINSPECTED, "reason": Reason.OVERLOAD},
        {"decision": Decision.UNINSPECTED, "reason": Reason.DEADLINE, "views": [view(Decision.PASS)]},
        {"late": True},
        {"run": 0},
        {"decision": Decision.REJECT, "views": [view(Decision.REJECT)]},
        {"decision": Decision.REJECT, "views": [view(Decision.REJECT, *[(1, 1, 1, 1)] * 32)]},
        {"decision": Decision.REJECT, "views": [view(Decision.UNINSPECTED, reason=Reason.DEADLINE)]},
        {"views": []},
        {"views": [View("other", Decision.PASS, None, 1, 2, [], None, "", 0, "", "", {}, [])]},
        {"epoch": "another"},
        {"boot_id": "another"},
        {"count": None},
        {"lane": "other"},
    ],
)
def test_what_is_no_pass_is_marked_whole(changes: dict[str, Any]) -> None:
    one = Web()
    for n in range(3):
        one.hear(n, **(changes if n == 1 else {}))
    assert [m for m in one.marked(0, 300) if m[1] - m[0] > 50] == [(100, 200)]


def test_a_frame_without_a_verdict_is_marked() -> None:
    one = Web()
    one.hear(0)
    one.hear(2)
    assert one.marked(0, 300) == [(100, 200)]


def test_a_line_or_two_between_two_judged_frames_is_no_gap() -> None:
    one = Web()
    one.hear(0)
    one.hear(1, count=104)
    one.hear(2, count=209)
    assert one.marked(0, 300) == [(204, 209)]


def test_the_rows_that_only_the_next_frame_judges_wait_for_it() -> None:
    geometry = web(overlap=20, margin=10)
    both = Web(geometry)
    for n in range(3):
        both.hear(n, before=20)
    assert both.marked(0, 270) == []
    one = Web(geometry)
    one.hear(0, before=20)
    one.hear(2, before=0)
    assert one.marked(20, 270) == [(80, 220)], "and a frame alone begins with a rim that is not judged"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 1, 3), (0, 2, 3, 1)])
@pytest.mark.parametrize("missed", [False, True], ids=["", "after a missed frame"])
def test_lost_tracking_takes_the_frame_before_with_it(order: tuple[int, ...], missed: bool) -> None:
    """Verdicts come when they are decided: that on a refused frame before those on inspected ones."""
    one, lost = Web(), 2
    told: dict[int, dict[str, Any]] = {n: {"count": 100 * n} for n in range(4)}
    told[lost] |= {"decision": Decision.UNINSPECTED, "reason": Reason.TRACKING}
    if missed:
        told[1] |= {"decision": Decision.UNINSPECTED, "reason": Reason.MISSED_FRAME, "count": None}
    for n in order:
        one.hear(n, **told[n])
    assert one.marked(0, 400) == [(0 if missed else 100, 300)]


@pytest.mark.parametrize("what", ["encoder back", "encoder silent", "silence", "another run", "another line"])
def test_what_was_on_its_way_when_tracking_was_lost_is_marked(what: str) -> None:
    one = Web()
    one.hear(0)
    one.hear(1)
    assert not one.at(AWAY + 10)
    if what == "encoder back":
        one.at(AWAY - 50)
    elif what == "encoder silent":
        assert one.at(None, ms=AWAY + 11)
    elif what == "silence":
        one.marker.lose("silence", (AWAY + 11) * MS)
    elif what == "another run":
        one.hear(2, run=2)
    else:
        one.marker.line("other", BOOT, (AWAY + 11) * MS)
    one.hear(2, run=2 if what == "another run" else 1, epoch="other" if what == "another line" else EPOCH)
    assert one.marked(20, 300) == [(20, 300)], "triggered before: frame 2 as well, whose verdict comes after"
    for n in range(4, 6):
        one.hear(n, run=2 if what == "another run" else 1, epoch="other" if what == "another line" else EPOCH)
    assert one.marked(400, 600) == [], "what was triggered after that is trusted"


def test_a_trembling_encoder_loses_nothing_and_a_standing_web_is_not_marked() -> None:
    one = Web()
    one.hear(0)
    assert one.at(AWAY + 150)
    assert one.at(AWAY + 148, ms=AWAY + 600)
    assert not one.at(AWAY + 150, ms=AWAY + 700), "it has stood for half a second"
    assert one.at(AWAY + 151, ms=AWAY + 800)
    assert not one.marker.counters["tracking_lost.the encoder went back"]


def test_an_old_verdict_is_worth_nothing_and_nothing_is_good_while_unable() -> None:
    one = Web(max_age_ms=350)
    one.hear(0)
    assert not one.at(AWAY + 10)
    assert one.at(AWAY + 11, unable="fault bin_full")
    assert not one.at(AWAY + 12)
    assert one.at(AWAY + 60)


def test_a_verdict_that_comes_when_its_web_is_at_the_marker_is_late() -> None:
    one = Web()
    assert one.at(AWAY + 10)
    one.hear(0)
    assert not one.at(AWAY + 11)
    assert not one.at(AWAY + 99)
    one.at(AWAY + 100)
    assert [(d.late, d.outcome.why) for d in one.decided] == [(True, "late")]


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.lists(st.tuples(st.just(0), st.integers(0, 49), st.just(4), st.integers(1, 9)), max_size=3),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_no_line_without_a_pass_goes_unmarked(frames: list[list[tuple[int, int, int, int]] | None]) -> None:
    """None: the frame was not inspected. A line is good when its frame was judged and no box has it."""
    one, bad = Web(), set()
    for n, boxes in enumerate(frames):
        if boxes is None:
            one.hear(n, decision=Decision.UNINSPECTED, reason=Reason.OVERLOAD)
            bad |= set(range(100 * n, 100 * n + 100))
        else:
            found = [(x, y, w, min(h, 50 - y)) for x, y, w, h in boxes]
            one.hear(n, *found)
            bad |= {c for _, y, _, h in found for c in range(100 * n + 2 * y, 100 * n + 2 * (y + h))}
    marked = {c for a, b in one.marked(0, 100 * len(frames)) for c in range(a, b)}
    assert bad <= marked
    assert len(marked - bad) <= 12 * sum(len(boxes or []) for boxes in frames), "marks that were joined"


def test_in_the_loop_it_marks_and_tells(tmp_path: Path) -> None:
    """The same loop as an ejector's: LINE-OK, faults, commissioning."""
    fields = marker().model_dump(mode="json", exclude={"name", "lane", "drivers", "line_ok_ms"}, exclude_none=True)
    bench = Bench(tmp_path, "stop_line", webs={"cam": web()}, **fields)
    bench.hear(heartbeat())
    bench.run(10)
    start = bench.hardware.encoder
    assert start is not None
    for n, boxes in enumerate([(), ((0, 10, 4, 10),), ()]):
        decision = Decision.REJECT if boxes else Decision.PASS
        views = [view(decision, *boxes)]
        bench.hear(verdict(n, decision, count=start + 100 * n, trigger_ns=(bench.ms + 1) * MS, views=views))
    seen = []
    for _ in range(AWAY + 290):
        bench.turn()
        seen.append((bench.hardware.encoder - start - AWAY, bench.hardware.ejecting))  # type: ignore[operator]
    on = [c for c, ejecting in seen if ejecting and 0 <= c < 290]
    assert (on[0], on[-1], len(on)) == (120, 139, 20)
    assert [(p.number, p.why) for p in bench.hardware.told] == [(0, ""), (1, "reject")]
    assert bench.run(20) > 2


def test_a_marker_needs_an_encoder(tmp_path: Path) -> None:
    text = """
line = "test"
safe_state = "stop_line"
line_ok = { wired = "plc" }
deadline = { deadline_ms = 1000 }
[[stations]]
name = "cam"
bundle = "marker"
frame = { width_px = 224, height_px = 224 }
source = { kind = "marker" }
web = { mm_per_line = 0.5 }
[[actuators]]
name = "ink"
lane = "cam"
drivers = [{ kind = "simulated", endpoint = "ipc:///tmp/x" }]
at_rest = "pass"
match = { by = "web", distance_counts = 3000 }
timing = { unit = "counts", delay = 0, pulse = 40, tolerance = 20, min_spacing = 80 }
max_age_ms = 60000
"""
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(Exception, match=r"ink: match.by = \"web\" needs a web with mm_per_count"):
        load_recipe(path)
    path.write_text(text.replace("mm_per_line = 0.5", "mm_per_line = 0.5, mm_per_count = 0.1"))
    assert load_recipe(path).actuator("ink").match.by == "web"
    path.write_text(text.replace('unit = "counts"', 'unit = "ms"'))
    with pytest.raises(Exception, match=r"goes with timing.unit = \"counts\""):
        load_recipe(path)
