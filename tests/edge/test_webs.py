"""Webs: frames become one material; no row is lost, no defect is counted twice, and what nobody saw is never good."""

from __future__ import annotations

import csv
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_helpers import verdict_of
from numpy.typing import NDArray

from calib.calibration import Provenance
from calib.millimetres import where_words
from edge.detector import Detector
from edge.errors import ResourceError
from edge.journal import Journal, write_turn
from edge.messages import View, encode
from edge.paths import journal_path
from edge.place.geometry import MAX_BOXES
from edge.plan import plan_station
from edge.recipes import load_recipe
from edge.report import collect_run
from edge.scores import boxes
from edge.settings import Frame, Region, Source, Station, Tiling, Web, scoring_sha256
from edge.testing import limits_by_hand
from edge.tiling import Box
from edge.verdict import Decision
from edge.webs.defects import Piece, join
from edge.webs.geometry import WebGeometry, web_geometry
from edge.webs.picture import LEFT, MAP_WIDTH_PX, TOP, draw, write_picture
from edge.webs.roll import NOT_SEEN, Look, RollMap, roll_map
from edge.webs.stitching import Stitcher, Tracker
from edge.webs.table import summary, write_table
from engines.backends import BackendInfo
from tests.support import marker_recipe

WIDTH = 48


def station(lines: int, overlap: int = 0, margin: int = 0, region: Region | None = None, **web: Any) -> Station:
    return Station(
        name="cam",
        bundle="marker",
        source=Source(kind="marker"),
        frame=Frame(width_px=WIDTH, height_px=lines),
        tiling=Tiling(margin_px=margin, region=region),
        web=Web(mm_per_line=0.5, overlap_px=overlap, **web),
    )


def geometry(lines: int, overlap: int = 0, margin: int = 0, **web: Any) -> WebGeometry:
    return web_geometry(station(lines, overlap, margin, **web))


def seen(number: int, *found: tuple[int, int, int, int], before: int = 0, count: int | None = None) -> Look:
    """A frame that was judged, and the boxes in its window."""
    said = Decision.REJECT if found else Decision.PASS
    return Look(number, count, said, "", [list(box) for box in found], before, 1.0 if found else 0.1)


def unseen(number: int, reason: str = "missed_frame", count: int | None = None) -> Look:
    return Look(number, count, reason=reason)


def gaps(roll: RollMap) -> list[tuple[int, int, str]]:
    return [(gap.start, gap.end, gap.why) for gap in roll.gaps]


@st.composite
def webs(draw: st.DrawFn) -> tuple[NDArray[np.uint8], list[Box], int, int, set[int]]:
    """A web [L, WIDTH] with defects, their boxes, how it is cut (frame, overlap), and the frames that are missed."""
    lines, count = draw(st.integers(16, 40)), draw(st.integers(2, 9))
    overlap = draw(st.integers(0, lines))
    web = np.zeros((lines * count, WIDTH), np.uint8)
    taken = np.zeros(web.shape, bool)
    true = []
    for _ in range(draw(st.integers(0, 12))):
        height, width = draw(st.integers(1, 3 * lines)), draw(st.integers(1, 9))
        y, x = draw(st.integers(0, len(web) - 1)), draw(st.integers(0, WIDTH - width))
        box = Box(x, y, width, min(height, len(web) - y))
        room = np.s_[max(0, y - 1) : y + box.height + 1, max(0, x - 1) : x + width + 1]
        if taken[room].any():
            continue
        taken[box.rows, box.columns] = True
        slanted = draw(st.booleans()) and box.width > 1 and box.height > 1
        if slanted:
            ends = (x, y), (x + box.width - 1, y + box.height - 1)
            cv2.line(web, *ends, color=1, lineType=cv2.LINE_8)
        else:
            web[box.rows, box.columns] = 1
        true.append(box)
    missed = draw(st.sets(st.integers(0, count - 1), max_size=count // 3))
    return web, sorted(true, key=lambda b: (b.y, b.x)), lines, overlap, missed


def inspect(web: NDArray[np.uint8], one: Station, missed: set[int]) -> tuple[list[Look], NDArray[np.bool_]]:
    """Cut a web into frames, put them together as capture does, find what is there; and which lines were looked at."""
    lines, stitcher = one.frame.height_px, Stitcher(one, 0)
    looks, own = [], np.zeros(len(web), bool)
    window = np.empty((one.window.height_px, WIDTH, 1), np.uint8)
    for number in range(len(web) // lines):
        if number in missed:
            looks.append(unseen(number))
            continue
        image = web[number * lines : (number + 1) * lines, :, None]
        stitcher.trigger(None)
        before = stitcher.fill(number, image, window)
        stitcher.keep(number, image)
        first = (number * lines) - before
        assert np.array_equal(window[len(window) - lines - before :, :, 0], web[first : (number + 1) * lines])
        own[number * lines : (number + 1) * lines] = True
        judged = np.where(np.arange(len(window)) < one.window.height_px - lines - before, 0, window[..., 0].T).T
        found = boxes(judged.astype(np.float32), 0.5)
        looks.append(seen(number, *[(b.x, b.y, b.width, b.height) for b in found], before=before))
    return looks, own


@settings(max_examples=300, deadline=None)
@given(webs())
def test_every_defect_is_found_once_where_it_is(case: tuple[NDArray[np.uint8], list[Box], int, int, set[int]]) -> None:
    web, true, lines, overlap, _ = case
    one = station(lines, overlap)
    looks, _ = inspect(web, one, set())
    roll = roll_map(looks, web_geometry(one))
    assert [d.box for d in roll.defects] == true
    assert roll.rejected == []
    assert (roll.start, roll.end, roll.gaps) == (0, len(web), [])
    for defect in roll.defects:
        box = defect.box
        assert set(range(box.y // lines, (box.y + box.height - 1) // lines + 1)) <= set(defect.numbers)


@settings(max_examples=200, deadline=None)
@given(webs())
def test_what_was_missed_is_a_gap_and_what_was_seen_is_found(
    case: tuple[NDArray[np.uint8], list[Box], int, int, set[int]],
) -> None:
    web, true, lines, overlap, missed = case
    one = station(lines, overlap)
    looks, own = inspect(web, one, missed)
    roll = roll_map(looks, web_geometry(one))
    inspected = np.ones(len(web), bool)
    for gap in roll.gaps:
        inspected[gap.start : gap.end] = False
        assert gap.why == "missed_frame"
    assert np.array_equal(inspected, own)
    assert roll.inspected_lines == own.sum()
    shown = np.zeros(web.shape, bool)
    for defect in roll.defects:
        shown[defect.box.rows, defect.box.columns] = True
    assert shown[own][web[own] > 0].all(), "what was seen is in a defect"
    allowed = np.zeros(web.shape, bool)
    for box in true:
        allowed[box.rows, box.columns] = True
    assert not (shown & ~allowed).any(), "nothing is shown that is not there"


@given(lines=st.integers(16, 60), margin=st.integers(0, 12), extra=st.integers(0, 8), count=st.integers(1, 6))
def test_with_a_margin_every_line_is_judged_once_the_next_frame_was(
    lines: int, margin: int, extra: int, count: int
) -> None:
    """Brute force: the judged rows of all windows, as lines, against what the roll map says."""
    overlap = min(lines, 2 * margin + extra)
    one = station(lines, overlap, margin) if 2 * margin <= overlap else None
    if one is None:
        return
    looks = [seen(n, before=overlap if n else 0) for n in range(count)]
    judged: set[int] = set()
    for n in range(count):
        begin = n * lines - overlap if n else 0
        judged |= set(range(begin + margin, (n + 1) * lines - margin))
    roll = roll_map(looks, web_geometry(one))
    left_out = {line for gap in roll.gaps for line in range(gap.start, gap.end)}
    assert left_out == set(range(roll.end)) - judged
    assert left_out == {*range(margin), *range(lines * count - margin, lines * count)}, "only the ends lack a frame"
    assert all(gap.why == NOT_SEEN for gap in roll.gaps)


def test_the_rows_that_a_missing_frame_would_have_judged_are_not_inspected() -> None:
    """Frame 1 was judged but for its last 4 rows, which frame 2 would have seen again."""
    roll = roll_map([seen(0), seen(1, before=8), unseen(2), seen(3)], geometry(32, overlap=8, margin=4))
    assert gaps(roll) == [(0, 4, NOT_SEEN), (60, 100, "missed_frame"), (124, 128, NOT_SEEN)]


def test_a_frame_after_a_restart_is_judged_without_the_rows_before_it() -> None:
    """The frame before was judged, and the rows above this one are its own a second time: the border stays open."""
    roll = roll_map([seen(0), seen(1, before=0)], geometry(32, overlap=8, margin=4))
    assert gaps(roll) == [(0, 4, NOT_SEEN), (28, 36, NOT_SEEN), (60, 64, NOT_SEEN)]
    assert gaps(roll_map([seen(0), seen(1, before=8)], geometry(32, overlap=8, margin=4)))[1:] == [(60, 64, NOT_SEEN)]


def test_rows_that_were_kept_of_a_frame_without_a_verdict_prove_nothing_about_it() -> None:
    roll = roll_map([seen(0), unseen(1, "overload"), seen(2, before=8)], geometry(32, overlap=8))
    assert gaps(roll) == [(32, 64, "overload")]


def test_pieces_of_one_frame_stay_apart_unless_another_frame_connects_them() -> None:
    left, right = Piece(Box(0, 0, 5, 10), 0, 0.5), Piece(Box(5, 0, 5, 10), 0, 0.5)
    assert len(join([left, right])) == 2
    both = Piece(Box(2, 10, 6, 3), 1, 0.75)
    (one,) = join([left, right, both])
    assert (one.box, one.numbers, one.score) == (Box(0, 0, 10, 13), (0, 1), 0.75)


@pytest.mark.parametrize(("gap", "defects"), [(0, 2), (1, 2), (2, 1)])
def test_pieces_touch_at_a_corner_and_along_the_web_within_the_gap(gap: int, defects: int) -> None:
    assert len(join([Piece(Box(0, 0, 5, 10), 0), Piece(Box(5, 12, 5, 3), 1)], gap)) == defects


def test_a_reject_without_a_place_is_shown_over_its_whole_frame() -> None:
    looks = [seen(0), Look(1, None, Decision.REJECT, "", [], 0, 3.0), seen(2)]
    roll = roll_map(looks, geometry(32))
    assert [r.box for r in roll.rejected] == [Box(0, 32, WIDTH, 32)]
    assert roll.defects == []


@pytest.mark.parametrize(("count", "whole"), [(MAX_BOXES - 1, []), (MAX_BOXES, [Box(4, 20, WIDTH - 8, 44)])])
def test_a_frame_with_more_places_than_are_told_is_shown_over_all_that_it_judged(count: int, whole: list[Box]) -> None:
    """Its last rows before its own were judged by no other frame: what is not told may lie there as well."""
    found = [(i % 8 * 6, 8 + i // 8 * 6, 2, 2) for i in range(count)]
    looks = [seen(0), seen(1, *found, before=16), seen(2, before=16)]
    roll = roll_map(looks, geometry(32, overlap=16, margin=4))
    assert [r.box for r in roll.rejected] == whole
    assert [r.numbers for r in roll.rejected] == [(1,)] * len(whole)
    assert len(roll.defects) == count, "those that are told have their places"
    assert ("1 frame rejected as a whole" in summary(roll)) == bool(whole)


class TestTheEncoder:
    """0.5 mm per line and 0.25 mm per count: 2 counts per line, 64 per frame."""

    def tracker(self, first_number: int = 0, **web: Any) -> Tracker:
        one = station(32, **{"mm_per_count": 0.25, **web})
        assert one.web
        return Tracker(one.web, 32, first_number)

    def test_whole_frames_are_followed(self) -> None:
        tracker = self.tracker()
        steps = [tracker.step(count) for count in (1000, 1064, 1127, 1191, 1191 + 3 * 64 + 4)]
        assert steps == [(0, ""), (1, ""), (1, ""), (1, ""), (3, "")]

    def test_an_encoder_may_count_down(self) -> None:
        tracker = self.tracker(mm_per_count=-0.25)
        assert [tracker.step(count) for count in (10, -54)] == [(0, ""), (1, "")]

    @pytest.mark.parametrize(
        ("count", "why"),
        [
            (990, "the encoder went back by 5.0 lines"),
            (1000, "moved by 0.0 lines, which is no multiple of a frame of 32"),
            (1069, "moved by 34.5 lines"),
            (1096, "moved by 48.0 lines"),
            (None, "no count of the encoder"),
        ],
    )
    def test_what_is_no_whole_frame_loses_tracking_and_the_next_whole_one_finds_it(
        self, count: int | None, why: str
    ) -> None:
        tracker = self.tracker()
        tracker.step(1000)
        assert why in tracker.step(count)[1]
        if count is not None:
            assert tracker.step(count + 64) == (1, "")

    def test_a_later_capture_process_needs_two_counts(self) -> None:
        tracker = self.tracker(first_number=7)
        assert "no count before this one" in tracker.step(1000)[1]
        assert tracker.step(1064) == (1, "")

    def test_a_jump_of_whole_frames_has_no_rows_before(self) -> None:
        one = station(32, overlap=8, mm_per_count=0.25)
        stitcher, window = Stitcher(one, 0), np.empty((40, WIDTH, 1), np.uint8)
        image = np.arange(32, dtype=np.uint8)[:, None, None].repeat(WIDTH, 1)
        before = []
        for number, count in enumerate((0, 64, 192, 256)):
            stitcher.trigger(count)
            assert not stitcher.lost
            before.append(stitcher.fill(number, image, window))
            assert window[:8, 0, 0].tolist() == list(range(24, 32) if before[-1] else range(8))
            stitcher.keep(number, image)
        assert before == [0, 8, 0, 8]

    def test_positions_come_from_the_counts(self) -> None:
        """Two frames were lost that nobody numbered; the map has them as a stretch that no frame saw."""
        looks = [seen(0, count=500), seen(1, count=564), seen(2, (4, 8, 4, 4), count=756)]
        roll = roll_map(looks, geometry(32, mm_per_count=0.25))
        assert gaps(roll) == [(64, 128, NOT_SEEN)]
        assert [d.box for d in roll.defects] == [Box(4, 136, 4, 4)]
        assert roll.geometry.metres(136) == pytest.approx(0.068)

    def test_a_frame_without_a_count_is_put_behind_the_one_before(self) -> None:
        looks = [unseen(0), seen(1, count=500), unseen(2), seen(3, count=628)]
        roll = roll_map(looks, geometry(32, mm_per_count=0.25))
        assert gaps(roll) == [(0, 32, "missed_frame"), (64, 96, "missed_frame")]

    def test_a_web_that_ran_back_is_not_inspected_until_it_was_seen_again(self) -> None:
        """Frame 1 was under the camera when the encoder turned: what was said of it does not count. The web comes back
        over the same place, and a defect there is one defect."""
        counts = (0, 64, 32, -32, 32, 96, 160)
        looks = [
            seen(0, (4, 8, 4, 4), count=0),
            seen(1, count=64),
            unseen(2, "tracking", counts[2]),
            unseen(3, "tracking", counts[3]),
            seen(4, count=counts[4]),
            seen(5, count=counts[5]),
            seen(6, count=counts[6]),
        ]
        roll = roll_map(looks, geometry(32, mm_per_count=0.25))
        assert (roll.start, roll.end) == (-16, 112)
        assert gaps(roll) == [(-16, 0, "tracking")]
        assert gaps(roll_map(looks[:4], geometry(32, mm_per_count=0.25))) == [
            (-16, 0, "tracking"),
            (32, 64, "tracking"),
        ]
        again = [*looks[:4], seen(4, (4, 24, 4, 4), count=-32), *looks[5:]]
        assert [d.box for d in roll_map(again, geometry(32, mm_per_count=0.25)).defects] == [Box(4, 8, 4, 4)]

    def test_behind_a_missed_frame_the_doubt_reaches_back_to_the_one_with_a_count(self) -> None:
        looks = [seen(0, count=0), seen(1, count=64), unseen(2), unseen(3, "tracking", 150), seen(4, count=214)]
        assert gaps(roll_map(looks, geometry(32, mm_per_count=0.25))) == [(32, 107, "tracking missed_frame")]

    def test_a_line_more_or_less_between_frames_is_no_gap(self) -> None:
        looks = [seen(0, count=0), seen(1, count=66), seen(2, count=130)]
        assert gaps(roll_map(looks, geometry(32, mm_per_count=0.25))) == []
        beyond = [seen(0, count=0), seen(1, count=70)]
        assert gaps(roll_map(beyond, geometry(32, mm_per_count=0.25))) == [(32, 35, NOT_SEEN)]


class TestTheRecipe:
    @pytest.mark.parametrize(
        ("web", "message"),
        [
            ({"lines": 32, "overlap": 40}, r"overlap_px = 40: the frame before has only 32 rows"),
            ({"lines": 64, "overlap": 8, "margin": 6}, r"4 rows between two frames would never be judged.*12 px"),
            ({"lines": 32, "mm_per_count": 0.0}, r"expected 0.000001 to 1000 either way"),
        ],
    )
    def test_a_web_with_holes_is_refused(self, web: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            station(**web)

    def test_a_region_may_leave_out_no_more_rows_than_the_overlap_shows_again(self) -> None:
        region = Region(x_px=8, y_px=4, width_px=20, height_px=32)
        assert web_geometry(station(32, overlap=4, region=region)).bottom == 36
        with pytest.raises(ValueError, match="make the overlap 5 px"):
            station(32, overlap=4, region=region.model_copy(update={"height_px": 31}))

    def test_the_overlap_changes_what_a_calibration_is_valid_for(self) -> None:
        assert scoring_sha256(station(200, overlap=88)) != scoring_sha256(station(224, overlap=64))
        assert station(32, overlap=8).window.height_px == 40

    def test_the_pitch_of_the_lines_does_where_an_area_counts(self) -> None:
        def hashed(mm_per_line: float, **fields: float) -> str:
            web = Web(mm_per_line=mm_per_line)
            return scoring_sha256(station(32).model_copy(update={"web": web, **fields}))

        smallest = {"scale_mm_per_px": 0.1, "smallest_defect_mm2": 4.0}
        assert hashed(0.5, **smallest) != hashed(0.25, **smallest)
        assert hashed(0.5) == hashed(0.25), "where none does, it changes neither pixels nor scores"
        before = "8d9dad219156301cab6fad9d7ca34b0e8dadecd820a2b44f2f31bc900f1ea95b"
        assert hashed(0.5) == before, "the hash of a web without a smallest defect is what it was"

    def test_without_a_scale_across_a_pixel_is_as_wide_as_a_line_is_long(self) -> None:
        assert web_geometry(station(32)).mm_per_px == 0.5
        assert web_geometry(station(32).model_copy(update={"scale_mm_per_px": 0.1})).mm_per_px == 0.1


def test_the_repeated_rows_of_a_frame_alone_and_a_rim_below_them_are_not_judged() -> None:
    one = Station(
        name="cam",
        bundle="marker",
        source=Source(kind="marker"),
        frame=Frame(width_px=224, height_px=200),
        tiling=Tiling(margin_px=10),
        web=Web(mm_per_line=1, overlap_px=24),
    )
    plan = plan_station(one)
    alone, usual = plan.ignored(0), plan.ignored(24)
    assert alone is not None
    assert usual is not None
    assert usual[0].all(axis=1).nonzero()[0].tolist() == [*range(10), *range(214, 224)]
    assert alone[0].all(axis=1).nonzero()[0].tolist() == [*range(34), *range(214, 224)]
    assert web_geometry(one).judged(0) == (10, 190)
    assert web_geometry(one).judged(24) == (-14, 190)


def test_a_cascade_doubts_nothing_for_what_is_not_judged() -> None:
    """A frame alone has its own first rows above it, repeated: what is wrong there hides no doubt about the rest."""

    class Blank:
        def describe(self) -> BackendInfo:
            return BackendInfo("b", "1", "d", "f32", "i", "")

    fields = {"source": Source(kind="marker"), "bundle": "marker", "plan": "cascade"}
    web = Web(mm_per_line=1, overlap_px=24)
    one = plan_station(Station(name="cam", frame=Frame(width_px=224, height_px=200), web=web, **fields))
    limits = limits_by_hand(Provenance.model_construct(), score_threshold=0.0, cascade_band=(-0.01, 0.01))
    tiles, out = np.zeros((1, 224, 224, 1), np.uint8), np.zeros((1, 224, 224, 1), np.float32)
    out[:, 2:20] = 1.0
    detector = Detector(one, Blank(), Blank())  # type: ignore[arg-type]
    assert detector.doubtful(tiles, out, limits, rows_before=24).tiles == []
    assert detector.doubtful(tiles, out, limits, rows_before=0).tiles == [0]


def test_a_report_of_a_web_measures_along_it_in_lines(tmp_path: Path) -> None:
    path, journal_file = marker_recipe(tmp_path), journal_path(tmp_path)
    web = "web = { mm_per_line = 0.25 }\n[stations.source]"
    path.write_text(path.read_text(encoding="utf-8").replace("[stations.source]", web), encoding="utf-8")
    recipe = load_recipe(path)
    rest = ([[140, 80, 20, 10]], None, "", 1, "b", "c", {}, [1, 2])
    view = View("s0", Decision.REJECT, None, 0.75, 0.5, *rest, areas_px=[120.0], scale_mm_per_px=0.05)
    with closing(Journal(journal_file, commit_interval_ms=100, reserve_mib=1)) as journal:
        run = journal.run(1000, recipe.sha256, recipe.model_dump_json())
        verdict = verdict_of(1, epoch=journal.epoch, run=run, lane="s0", views=[view])
        row = (run, "s0", 1, "s0", 1, verdict.decided_utc_ns, False, None, verdict.part_id)
        journal.write(partial(write_turn, run, [row], [], [(verdict, encode(verdict))], journal.head))
    (part,) = collect_run(tmp_path).parts
    assert where_words(part.views[0], None) == ["1.5 mm² in 1 x 2.5 mm at 7.5, 21.2 (120 px² in 20 x 10 px at 150, 85)"]


class TestTheMap:
    """100 frames of 32 lines of 0.5 mm: 1.6 m; frame 50 is missing, and there is a defect in frame 25."""

    ROLL = roll_map(
        [unseen(n) if n == 50 else seen(n, (12, 8, 12, 16)) if n == 25 else seen(n) for n in range(100)], geometry(32)
    )

    def test_as_a_table(self, tmp_path: Path) -> None:
        write_table(tmp_path / "map.csv", self.ROLL)
        with (tmp_path / "map.csv").open(newline="") as file:
            defect, gap = csv.DictReader(file)
        assert defect == {
            "kind": "defect",
            "from_m": "0.4040",
            "to_m": "0.4120",
            "left_mm": "6.00",
            "right_mm": "12.00",
            "length_mm": "8.00",
            "width_mm": "6.00",
            "score": "1",
            "frames": "25",
            "why": "",
            "pictures": "",
        }
        assert (gap["kind"], gap["from_m"], gap["to_m"], gap["why"]) == (
            "not_inspected",
            "0.8000",
            "0.8160",
            "missed_frame",
        )
        assert summary(self.ROLL) == "1.600 m of web, 1 defect; 0.016 m were not inspected: missed_frame."

    def test_a_file_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ResourceError, match="nowhere"):
            write_table(tmp_path / "nowhere" / "map.csv", self.ROLL)
        with pytest.raises(ResourceError, match="nowhere"):
            write_picture(tmp_path / "nowhere" / "map.png", np.zeros((4, 4, 3), np.uint8))

    def test_as_a_picture(self) -> None:
        across = draw(self.ROLL, "a roll")[TOP + 1 : TOP + 119, LEFT : LEFT + MAP_WIDTH_PX].astype(int)
        blue, green, red = np.moveaxis(across, 2, 0)
        columns = np.flatnonzero(((red > 150) & (blue < 100) & (green > 100)).all(axis=0))
        assert (columns.min(), columns.max()) == (800, 815), "not inspected, from side to side"
        rows, columns = np.nonzero((red > 150) & (green < 100))
        assert (columns.min(), columns.max()) == (404, 411)
        assert (rows.min() + 1, rows.max() + 1) == (120 * 12 // WIDTH, 120 * 24 // WIDTH - 1)

    def test_of_nothing(self) -> None:
        empty = roll_map([unseen(0)], geometry(32))
        assert empty.inspected_lines == 0
        assert draw(empty, "nothing").shape[2] == 3
