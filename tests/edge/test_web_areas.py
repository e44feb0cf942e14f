"""A defect that crosses the border of two frames is one, and its area that of all of it, also for the decision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from gate_helpers import recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_helpers import processes_of

from calib.fitting import GoodView, StationSpec, fit_station
from calib.run import calibrate
from edge import judge
from edge.detector import Detector
from edge.judge import Judge, Judgement, provenance
from edge.plan import StationPlan, plan_station
from edge.processes import JUDGE
from edge.recipes import load_recipe
from edge.scores import view_score
from edge.settings import Frame, Source, Station, Tiling, Web, scoring_sha256
from edge.testing import limits_by_hand
from edge.tiling import cut, grid
from edge.verdict import Decision, Reason
from edge.webs.carry import Carry, Chain, Seam
from edge.worker import Worker
from engines.backends import BackendInfo
from engines.backends.null import NullBackend
from engines.bundle import DirectMap, Score, find_bundle, load_bundle, write_bundle

AREA = Score(kind="area", map_quantile=0.99)
ENGINE = {"backend": "b", "version": "1", "device": "d", "precision": "f32", "isa": "i", "plan": "x1"}
LINES, OVERLAP, MARGIN, WIDTH = 200, 24, 8, 448
COMMON = OVERLAP - 2 * MARGIN
PASS, REJECT, UNINSPECTED = Decision.PASS, Decision.REJECT, Decision.UNINSPECTED


def largest(web: np.ndarray, first: int, end: int) -> int:
    """Of a web that is known up to line `end`: the largest area that has a pixel in line `first` or a later one."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(web[:end].astype(np.uint8), connectivity=8)
    return max((int(stats[i, cv2.CC_STAT_AREA]) for i in np.unique(labels[first:]) if i), default=0)


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.1, 0.3, 0.4, 0.5, 0.7]),
    lines=st.integers(8, 20),
    margin=st.integers(0, 2),
    common=st.integers(0, 4),
    width=st.integers(6, 30),
)
def test_frame_by_frame_areas_are_those_of_the_whole_web(
    seed: int, share: float, lines: int, margin: int, common: int, width: int
) -> None:
    """However they branch and join, and over as many frames as they like: no pixel is missing, none counts twice."""
    web, count = np.random.default_rng(seed).random((5 * lines, width)) < share, 5
    web[:margin] = False
    overlap, height = 2 * margin + common, lines + 2 * margin + common
    tiling = grid(height, width, 6, 2)
    chain = Chain(Carry.nothing(Seam(margin, margin + lines, height - margin), width))
    for number in range(count):
        window = np.zeros((height, width, 1), np.float32)
        seen = web[max(0, number * lines - overlap) : (number + 1) * lines]
        window[-len(seen) :, :, 0] = seen
        window[[*range(margin), *range(height - margin, height)]] = 0
        maps = cut(window, tiling, np.empty((tiling.count, 6, 6, 1), np.float32))[..., 0]
        found = view_score(maps, AREA, 0.5, None, tiling, chain.before(number, rows_before=1))
        chain.keep(number, found.carry)
        first = max(0, number * lines - overlap + margin) if number else 0
        assert found.score == largest(web, first, (number + 1) * lines - margin)


class Roll:
    """A web whose network answers with its map, so that areas are exact: two tiles of 224 px, 0.1 mm in x and in y."""

    def __init__(self, smallest_mm2: float | None = 4.0, overlap: int = OVERLAP, **changes: Any) -> None:
        station = Station(
            name="cam",
            bundle="marker",
            source=Source(kind="marker"),
            frame=Frame(width_px=WIDTH, height_px=224 - overlap),
            tiling=Tiling(margin_px=MARGIN if overlap else 0),
            scale_mm_per_px=0.1,
            smallest_defect_mm2=smallest_mm2,
            web=Web(mm_per_line=0.1, overlap_px=overlap),
            **changes,
        )
        plan = plan_station(station)
        manifest = plan.bundle.manifest.model_copy(update={"error_map": DirectMap(), "score": AREA})
        self.plan: StationPlan = replace(plan, bundle=replace(plan.bundle, manifest=manifest))
        self.engine = ENGINE | {"plan": station.plan}
        self.lines, self.overlap = station.frame.height_px, overlap
        self.limits = limits_by_hand(provenance(self.plan, self.engine), score_threshold=399)
        self.tiles = np.random.default_rng(0).integers(60, 180, plan.prepare.tiles_shape, np.uint8)
        self.web = np.zeros((6 * self.lines, WIDTH), np.float32)

    def defect(self, first: int, end: int, left: int, right: int) -> Roll:
        self.web[first:end, left:right] = 0.9
        return self

    def answer(self, number: int, web: np.ndarray | None = None) -> np.ndarray:
        """What the network answers to a frame, [2, 224, 224, 2]."""
        begin = number * self.lines - self.overlap
        window = np.zeros((224, WIDTH, 1), np.float32)
        seen = (self.web if web is None else web)[max(0, begin) : begin + 224, :, None]
        window[224 - len(seen) :] = seen
        maps = cut(window, self.plan.prepare.tiling, np.empty((2, 224, 224, 1), np.float32))
        return np.concatenate([(self.tiles / 255).astype(np.float32), maps], axis=-1)

    def judge(self, one: Judge, number: int, web: np.ndarray | None = None, before: int | None = None) -> Judgement:
        rows_before = before if before is not None else self.overlap if number else 0
        maps = np.empty(self.tiles.shape[:3], np.float32)
        return one.judge(self.tiles, self.answer(number, web), maps, self.engine, None, rows_before, number)

    def through(self, *numbers: int) -> list[tuple[Decision, float | None]]:
        """The decisions and scores of these frames, one after the other."""
        one = Judge(self.plan, self.limits)
        return [(said.decision, said.score) for said in (self.judge(one, n) for n in numbers)]


def test_a_scratch_over_three_frames_is_rejected_where_its_area_is_reached() -> None:
    """1 px wide: 142, 192 and 166 px, no two of which are 400. Frame 1 judges lines 184 to 391, of which frame 2 sees
    the last 8 again."""
    roll = Roll().defect(50, 550, 222, 223)
    assert roll.through(0, 1, 2, 3) == [(PASS, 142), (PASS, 342), (REJECT, 500), (PASS, 0)]
    one = Judge(roll.plan, roll.limits)
    *_, said = (roll.judge(one, n) for n in (0, 1, 2))
    assert said.boxes == [[222, MARGIN, 1, 550 - 2 * LINES + OVERLAP - MARGIN]], "its part in this frame"
    assert said.areas_px == [500], "all of it"


def test_each_frame_that_shows_more_of_it_is_rejected_too() -> None:
    assert Roll().defect(0, 700, 222, 224).through(1, 2, 3, 4) == [
        (REJECT, 416), (REJECT, 816), (REJECT, 1032), (PASS, 0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("left", "said"), [(103, (PASS, 258)), (102, (REJECT, 500)), (98, (REJECT, 500)), (97, (PASS, 258))]
)
def test_only_what_touches_is_added_a_corner_included(left: int, said: tuple[Decision, float]) -> None:
    """121 lines of 2 px above line 184, where frame 1 begins to judge, and 129 from there on."""
    roll = Roll().defect(63, 184, 100, 102).defect(184, 184 + 129, left, left + 2)
    assert roll.through(0, 1) == [(PASS, 242 if said[0] is PASS else 242 + COMMON * 2), said]


def test_what_both_frames_judge_counts_once() -> None:
    """20 x 8 px in the rows that both judge, and 20 x 19 px over both of their ends: 380 px, and never more."""
    assert Roll().defect(184, 192, 30, 50).through(0, 1, 2) == [(PASS, 160), (PASS, 160), (PASS, 0)]
    assert Roll().defect(180, 199, 30, 50).through(0, 1, 2) == [(PASS, 12 * 20), (PASS, 380), (PASS, 0)]


def test_in_the_rows_that_both_judge_what_either_sees_counts() -> None:
    """At the rim of what it judges a frame's own map is faint: it sees nothing of the first three rows."""
    roll = Roll().defect(100, 300, 60, 63)
    faint = roll.web.copy()
    faint[184:187] = 0
    one = Judge(roll.plan, roll.limits)
    assert roll.judge(one, 0).score == 92 * 3
    assert roll.judge(one, 1, faint).score == 600


@pytest.mark.parametrize("why", ["no rows of it", "not inspected", "too dark", "out of order"])
def test_nothing_is_added_behind_a_frame_that_is_not_the_one_before(why: str) -> None:
    """500 px in frames 0 to 2, of which 158, 200 and 142 are first judged in each."""
    roll = Roll().defect(34, 534, 222, 223)
    one = Judge(roll.plan, roll.limits)
    assert roll.judge(one, 0) == Judgement(PASS, None, 158, 399)
    if why == "no rows of it":
        assert roll.judge(one, 1, before=0) == Judgement(PASS, None, 392 - 208, 399)
        assert roll.judge(one, 2) == Judgement(PASS, None, 534 - 208, 399)
        return
    if why == "too dark":
        light, roll.tiles = roll.tiles, roll.tiles // 20
        assert roll.judge(one, 1).reason is Reason.BLACK_FRAME
        roll.tiles = light
    if why == "out of order":
        assert roll.judge(one, 0).score == 158, "it is no part of itself"
    assert roll.judge(one, 2) == Judgement(PASS, None, 534 - 384, 399)


def test_a_judge_that_was_started_again_passes_nothing_that_it_may_know_half_of() -> None:
    roll = Roll().defect(34, 234, 222, 224)
    again = Judge(roll.plan, roll.limits, forgot=True)
    assert roll.judge(again, 1) == Judgement(UNINSPECTED, Reason.NOT_READY, 100, 399)
    assert roll.judge(again, 2).decision is PASS
    assert roll.judge(Judge(roll.plan, roll.limits, forgot=True), 1, before=0).decision is PASS
    roll.defect(234, 434, 222, 224)
    assert roll.judge(Judge(roll.plan, roll.limits, forgot=True), 1).decision is REJECT
    parts = Roll(smallest_mm2=None)
    assert parts.judge(Judge(parts.plan, parts.limits, forgot=True), 1).decision is PASS


@pytest.mark.parametrize("again", [False, True])
def test_a_judge_knows_whether_it_was_started_again(
    again: bool, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    monkeypatch.setattr(judge, "Judge", lambda plan, limits, *, forgot: made.append(forgot))
    monkeypatch.setattr(Worker, "frames", lambda worker: iter(()))
    with processes_of(recipe(), runtime_dir, tmp_path) as start:
        worker = start(JUDGE)
        worker.slab.head["start_ns"] = int(again)
        judge.run(worker)
    assert made == [again]


def test_only_where_the_recipe_says_how_small_a_defect_counts_and_a_frame_that_it_follows() -> None:
    scratch = (34, 234, 222, 223)
    assert Roll().defect(*scratch).through(0, 1)[-1] == (PASS, 200)
    for roll in (Roll(smallest_mm2=None), Roll(overlap=0)):
        assert roll.plan.carry is None
        assert roll.defect(*scratch).through(0, 1)[-1][1] < 100
    bundle = roll.plan.bundle
    largest_value = replace(bundle, manifest=bundle.manifest.model_copy(update={"score": Score(kind="max")}))
    assert replace(Roll().plan, bundle=largest_value).carry is None


@pytest.mark.parametrize("resize", [0.5, 2.0])
@pytest.mark.parametrize("overlap", [14, 24])
def test_resized_frames_meet_where_they_are_judged(resize: float, overlap: int) -> None:
    """What resizing mixes with the rim of 7 rows is judged in neither frame: what lies on both sides of it meets."""
    changes = {
        "tiling": Tiling(margin_px=7, resize=resize),
        "frame": Frame(width_px=WIDTH, height_px=448 - overlap),
        "web": Web(mm_per_line=0.1, overlap_px=overlap),
    }
    plan = Roll().plan
    carry = replace(plan_station(plan.station.model_copy(update=changes)), bundle=plan.bundle).carry
    assert carry is not None
    top, onward, bottom = carry.seam
    assert top == {0.5: 4, 2.0: 15}[resize]
    assert (onward == bottom) is (overlap == 14)
    assert 0 <= (448 - overlap) * resize - (onward - top) <= 2
    assert len(carry.above) == 1 + bottom - onward


def test_good_frames_that_follow_each_other_are_scored_as_the_line_scores_them() -> None:
    """30 px of each frame lie up to the next one's first judged row and 10 from there on, 40 times."""
    roll = Roll()
    for border in range(LINES, 6 * LINES, LINES):
        roll.defect(border - 16 - 30, border - 16 + 10, 222, 223)
    manifest = roll.plan.bundle.manifest
    spec = StationSpec(
        *(manifest.error_map, manifest.score, provenance(roll.plan, ENGINE)), smallest_px=5, carry=roll.plan.carry
    )

    def fitted(rows_before: int) -> float:
        def views() -> Iterator[GoodView]:
            for number in range(40):
                answer = roll.answer(1 + number % 2)
                ignore = roll.plan.ignored(OVERLAP)
                yield GoodView(roll.tiles, answer, None, ignore, roll.plan.joined, rows_before if number else 0)

        return fit_station(views(), 40, spec).score_quantiles["max"]

    assert fitted(OVERLAP) == 40
    assert fitted(0) == 38, "30, and the 8 that both judge"


def test_a_line_is_calibrated_on_what_goes_on_from_frame_to_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stripe of 4 px without an end: the sixth held-out frame has that of all six."""

    def stripe(backend: NullBackend, tiles: np.ndarray, out: np.ndarray) -> None:
        np.multiply(tiles, np.float32(1 / 255), out=out)
        out[:, :, 10:14] += 0.5

    monkeypatch.setattr(NullBackend, "infer", stripe)
    shipped = load_bundle(find_bundle("null")).manifest
    score = Score(kind="area", map_quantile=0.9)
    write_bundle(tmp_path / "stripe", shipped.model_copy(update={"score": score}), {})
    (tmp_path / "recipe.toml").write_text(
        'line = "test"\nsafe_state = "reject_all"\nline_ok = { wired = "none", because = "a test" }\n'
        'deadline = { deadline_ms = 1000 }\nengine = { backend = "null" }\n[[stations]]\nname = "cam"\n'
        f'bundle = "{tmp_path / "stripe"}"\nframe = {{ width_px = 224, height_px = 200 }}\n'
        'source = { kind = "folder", path = "." }\nscale_mm_per_px = 1\nsmallest_defect_mm2 = 5\n'
        "web = { mm_per_line = 1, overlap_px = 24 }\n"
    )
    (tmp_path / "good").mkdir()
    for number in range(12):
        image = np.random.default_rng(number).integers(60, 190, (200, 224), np.uint8)
        cv2.imwrite(str(tmp_path / "good" / f"{number:02}.png"), image)
    quantiles = calibrate(load_recipe(tmp_path / "recipe.toml"), tmp_path / "good").stations["cam"].score_quantiles
    alone, whole = quantiles["min"], quantiles["max"]
    assert alone > 4 * 200
    assert whole == alone + 5 * 200 * (alone / 224)


def test_a_threshold_from_before_areas_were_added_up_holds_no_more() -> None:
    """Where none are, it does."""
    adding, apart = (scoring_sha256(Roll(overlap=overlap).plan.station)[:16] for overlap in (OVERLAP, 0))
    assert adding != "3c0d3f7d2c99f2df"
    assert apart == "3a05251b13285ea4"


class Answers:
    """A backend that is handed what it answers to the tiles of a frame, and is asked for some of them."""

    def __init__(self) -> None:
        self.now: np.ndarray = np.empty(0)
        self.asked: list[int] = []

    def describe(self) -> BackendInfo:
        return BackendInfo("b", "1", "d", "f32", "i", "")

    def infer(self, tiles: np.ndarray, out: np.ndarray) -> None:
        self.asked.append(len(tiles))
        out[:] = self.now[: len(tiles)]


def test_a_cascade_doubts_a_frame_for_what_it_adds_to() -> None:
    """200 px in each of two frames, 20 more or less: neither is near 400, and both together are."""
    roll = Roll(plan="cascade").defect(92, 292, 100, 102)
    limits = roll.limits.model_copy(update={"cascade_band": (-20.0, 20.0)})
    cheap, exact = Answers(), Answers()
    detector = Detector(roll.plan, exact, cheap)  # type: ignore[arg-type]
    out = np.empty_like(roll.answer(0))

    def doubted(number: int, rows_before: int) -> int:
        exact.asked.clear()
        exact.now = cheap.now = roll.answer(number)
        detector.infer(roll.tiles, out, limits, rows_before, number)
        return sum(exact.asked)

    assert [doubted(0, 0), doubted(1, OVERLAP), doubted(2, OVERLAP)] == [0, 1, 0]
    assert [doubted(4, 0), doubted(1, OVERLAP)] == [0, 0], "frame 0 is not the one before"


def test_which_way_frames_meet() -> None:
    seam = Roll().plan.carry
    assert seam is not None
    assert seam.seam == (MARGIN, MARGIN + LINES, 224 - MARGIN)
    assert seam.above.shape == (1 + COMMON, WIDTH)
