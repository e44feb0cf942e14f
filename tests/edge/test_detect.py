"""Detect, turn by turn: whose tiles go through which engine when, and what becomes of the frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gate_helpers import recipe
from structlog.testing import CapturingLogger

from calib.calibration import Calibration, Provenance
from edge import detect, detector
from edge.detect import Serving
from edge.errors import EXIT_STALE
from edge.messages import FrameRef
from edge.plan import plan_line
from edge.processes import DETECT
from edge.settings import Recipe
from edge.slab import Ending, Slab
from edge.testing import limits_by_hand
from edge.verdict import Reason
from engines.backends import BackendInfo
from engines.bundle import Bundle, Score, find_bundle, load_bundle, write_bundle
from engines.plans import CHEAP_PLAN, EXACT_PLAN

MS = 1_000_000
HANDED_ON = 4
"""The judge's number."""


class Recording:
    """A backend that answers with the tiles as they are, and remembers the greys of each call."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.warmed = 0
        self.fails = 0
        self.plan = ""

    def load(self, bundle: Bundle, plan: str, *, precision: str, threads: int, batch: int) -> None:
        self.plan, self.batch = plan, batch

    def warm_up(self) -> None: ...

    def infer(self, tiles: np.ndarray, out: np.ndarray) -> None:
        self.calls.append([int(tile[0, 0, 0]) for tile in tiles])
        if self.fails:
            self.fails -= 1
            raise ArithmeticError("told to fail")
        np.multiply(tiles, np.float32(1 / 255), out=out)
        if self.plan == CHEAP_PLAN:
            out[tiles[:, 0, 0, 0] == DOUBTFUL] += np.float32(0.4)
            out[tiles[:, 0, 0, 0] == NO_PICTURE] = np.nan

    def keep_warm(self) -> None:
        self.warmed += 1

    def describe(self) -> BackendInfo:
        return BackendInfo("recording", "1", "none", "f32", "any", self.plan)


class RecordingBlocks(Recording):
    """One that repaints some blocks alone, 28 pixels wide, and remembers which."""

    blocks = 3

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[int]] = []

    def repaint(self, tiles: np.ndarray, out: np.ndarray, blocks: np.ndarray) -> None:
        for tile, answer, chosen in zip(tiles, out, blocks, strict=True):
            self.asked.append(chosen.tolist())
            for row, column in (divmod(block, 8) for block in chosen):
                here = np.s_[28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
                np.multiply(tile[here], np.float32(1 / 255), out=answer[here])


DOUBTFUL, NO_PICTURE = 99, 98
"""Greys of tiles that look strange to the cheap plan, and that it cannot repaint; the exact plan repaints all."""


class HandWorker:
    """What detect sees of the line, in the test's hands."""

    def __init__(
        self, calibration: Calibration | None = None, station: dict[str, Any] | None = None, **sections: Any
    ) -> None:
        """`station`: what is special about both stations; `sections` of the recipe."""
        fields = recipe(2, **sections).model_dump(mode="json")
        stations = [{**s, **(station or {})} for s in fields["stations"]]
        self.recipe = Recipe.model_validate({**fields, "stations": stations})
        self.plan = plan_line(self.recipe)
        self.slab = Slab.create(self.plan.layouts)
        self.me = next(p.index for p in self.plan.processes if p.name == DETECT)
        self.log = CapturingLogger()
        self.now_ns = 0
        self.line_ending, self.was_ready = Ending.NO, False
        self.ended: set[str] = set()
        self.done: list[FrameRef] = []
        self._calibration = calibration

    def calibration(self) -> Calibration | None:
        return self._calibration

    def source_ended(self, station: str) -> bool:
        return station in self.ended

    def frame(self, station: str, number: int, *greys: int, reason: Reason | None = None) -> FrameRef:
        """A frame that comes now; its tiles are of these greys."""
        taken = self.slab.acquire(station, self.me)
        assert taken is not None, "the station has no free slot"
        for tile, grey in zip(self.slab.arrays(taken[0])["tiles"], greys, strict=True):
            tile.fill(grey)
        return FrameRef(station, number, *taken, self.now_ns, [self.now_ns], reason)

    def pass_on(self, frame: FrameRef, to: str) -> None:
        assert to == "judge"
        self.done.append(frame)
        self.slab.hand_over(frame.slot, HANDED_ON)

    def answer(self, frame: FrameRef) -> list[int]:
        """The greys that a frame came back with."""
        return [round(255 * float(a[5, 5, 0])) for a in self.slab.arrays(frame.slot)["reconstruction"]]

    def count(self, counter: str) -> None: ...
    def inbox(self) -> None: ...
    def beat(self) -> None: ...
    def ready(self) -> None:
        self.was_ready = True

    def turns(self, wait_ms: Callable[[], int], held: Callable[[], Any]) -> Iterator[list[FrameRef]]:
        yield from ([], [], [])

    @property
    def parts(self) -> list[tuple[str, int]]:
        return [(f.station, f.number) for f in self.done]


class Line:
    """Detect on a clock that the test moves."""

    def __init__(self, worker: HandWorker, backends: list[Recording]) -> None:
        self.worker, self.backends = worker, backends
        self.serving = Serving(worker)  # type: ignore[arg-type]
        for backend in backends:
            backend.calls.clear()

    def at(self, ms: int, *frames: FrameRef) -> list[tuple[str, int]]:
        """What is passed on in a turn at this time, in which these frames come."""
        before = len(self.worker.done)
        self.worker.now_ns = ms * MS
        for frame in frames:
            self.serving.add(frame)
        self.serving.turn()
        return self.worker.parts[before:]


@pytest.fixture
def open_line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Line]]:
    lines: list[Line] = []

    def make(kind: type[Recording] = Recording, **how: Any) -> Line:
        backends: list[Recording] = []

        def open_backend(*_: Any, **__: Any) -> Recording:
            backends.append(kind())
            return backends[-1]

        worker = HandWorker(**how)
        monkeypatch.setattr(detector, "open_backend", open_backend)
        monkeypatch.setattr(detect, "time", SimpleNamespace(monotonic_ns=lambda: worker.now_ns))
        lines.append(Line(worker, backends))
        return lines[-1]

    yield make
    for line in lines:
        line.worker.slab.close()


def in_batches(batch: int, deadline_ms: int = 100, **more: Any) -> dict[str, Any]:
    return {"engine": {"backend": "marker", "batch": batch}, "deadline_ms": deadline_ms, **more}


def test_stations_with_one_bundle_share_an_engine_and_its_batches(open_line: Callable[..., Line]) -> None:
    line = open_line(**in_batches(2))
    first = line.worker.frame("s0", 0, 10)
    assert line.at(0, first) == []
    second = line.worker.frame("s1", 0, 20)
    assert line.at(1, second) == [("s0", 0), ("s1", 0)]
    assert [b.calls for b in line.backends] == [[[10, 20]]]
    assert (line.worker.answer(first), line.worker.answer(second)) == ([10], [20])
    assert all(f.reason is None and f.engine["backend"] == "recording" for f in line.worker.done)


def test_a_frame_waits_for_others_until_its_deadline_leaves_no_more_time(open_line: Callable[..., Line]) -> None:
    line = open_line(**in_batches(8, deadline_ms=100))
    frame = line.worker.frame("s0", 0, 10)
    assert line.at(0, frame) == []
    assert line.serving.wait_ms() == 70, "a quarter, and the gate's 5 ms, are for those after us"
    assert line.at(69) == []
    assert line.serving.slots() == {frame.slot}
    assert line.at(70) == [("s0", 0)]
    assert not line.serving.slots()
    assert line.serving.wait_ms() == 100


def test_without_batches_each_frame_goes_as_it_lies_at_once(open_line: Callable[..., Line]) -> None:
    line = open_line()
    frames = line.worker.frame("s0", 0, 10), line.worker.frame("s1", 0, 20)
    assert line.at(0, *frames) == [("s0", 0)]
    assert line.serving.wait_ms() == 0
    assert line.at(0) == [("s1", 0)]
    assert line.backends[0].calls == [[10], [20]]


def test_a_lossless_source_is_not_kept_waiting(open_line: Callable[..., Line]) -> None:
    line = open_line(station={"source": {"kind": "marker", "mode": "lossless"}}, **in_batches(8))
    assert line.at(0, line.worker.frame("s0", 0, 10)) == [("s0", 0)]


def test_waiting_never_takes_the_slot_of_the_next_trigger(open_line: Callable[..., Line]) -> None:
    line = open_line(**in_batches(8))
    slots = line.worker.slab.station_slots["s0"]
    for number in range(len(slots) // 2):
        assert line.at(0, line.worker.frame("s0", number, 10)) == []
    assert len(line.at(0, line.worker.frame("s0", 9, 10))) == len(slots) // 2 + 1


@pytest.mark.parametrize("ending", ["line", "sources"])
def test_when_nothing_more_comes_nobody_waits(open_line: Callable[..., Line], ending: str) -> None:
    line = open_line(**in_batches(8))
    assert line.at(0, line.worker.frame("s0", 0, 10)) == []
    line.worker.ended.add("s0")
    assert line.at(0) == [], "the other station may bring more"
    line.worker.line_ending = Ending.STOP if ending == "line" else Ending.NO
    line.worker.ended.add("s1" if ending == "sources" else "s0")
    assert line.at(0) == [("s0", 0)]


def test_a_frame_that_cannot_be_inspected_goes_on_at_once(open_line: Callable[..., Line]) -> None:
    line = open_line(**in_batches(8))
    waiting, refused = line.worker.frame("s0", 0, 10), line.worker.frame("s0", 1, 20, reason=Reason.BLACK_FRAME)
    assert line.at(0, waiting, refused) == [("s0", 1)]
    assert line.worker.done[0].reason is Reason.BLACK_FRAME


def test_a_batch_that_fails_costs_its_frames_and_no_other(open_line: Callable[..., Line]) -> None:
    line = open_line(**in_batches(2))
    line.backends[0].fails = 1
    failing = line.worker.frame("s0", 0, 10), line.worker.frame("s1", 0, 20)
    assert line.at(0, *failing) == [("s0", 0), ("s1", 0)]
    assert {f.reason for f in line.worker.done} == {Reason.ENGINE_ERROR}
    line.at(1, line.worker.frame("s0", 1, 10), line.worker.frame("s1", 1, 20))
    assert [f.reason for f in line.worker.done[2:]] == [None, None]


def test_an_engine_that_fails_again_and_again_is_started_anew(open_line: Callable[..., Line]) -> None:
    line = open_line()
    line.backends[0].fails = 2
    for number in range(3):
        line.at(0, line.worker.frame("s0", number, 10))
        line.worker.slab.release(line.worker.done[-1].slot)
    assert [f.reason for f in line.worker.done] == [Reason.ENGINE_ERROR, Reason.ENGINE_ERROR, None]
    line.backends[0].fails = 3
    for number in range(2):
        line.at(0, line.worker.frame("s1", number, 10))
    with pytest.raises(RuntimeError, match="failed 3 times in a row"):
        line.at(0, line.worker.frame("s1", 2, 10))


def limits(name: str, **changes: Any) -> Calibration:
    usual = {"map_threshold": 0.1, "score_threshold": 0.4, "cascade_band": (-0.3, 0.3)}
    station = limits_by_hand(Provenance.model_construct(), **usual | changes)
    return Calibration.model_construct(stations={name: station})


CASCADE = {"plan": "cascade", "frame": {"width_px": 448, "height_px": 224}}
"""A station of two tiles."""


def test_a_cascade_repaints_what_is_in_doubt_again_and_passes_the_rest_on(open_line: Callable[..., Line]) -> None:
    line = open_line(calibration=limits("s0"), station=CASCADE, **in_batches(2))
    cheap, exact = line.backends
    assert (cheap.plan, exact.plan, cheap.batch) == (CHEAP_PLAN, EXACT_PLAN, 2)
    sure, doubtful = line.worker.frame("s0", 0, 10, 20), line.worker.frame("s0", 1, 30, DOUBTFUL)
    assert line.at(0, sure) == [("s0", 0)]
    assert line.at(0, doubtful) == []
    assert line.worker.answer(doubtful) == [30, DOUBTFUL + 102]
    assert line.at(0) == [("s0", 1)], "a tail of one tile does not wait"
    assert (cheap.calls, exact.calls) == ([[10, 20], [30, DOUBTFUL]], [[DOUBTFUL]])
    assert line.worker.answer(doubtful) == [30, DOUBTFUL]
    uncalibrated = line.worker.frame("s1", 0, 10, DOUBTFUL)
    assert line.at(0, uncalibrated) == [("s1", 0)]
    assert exact.calls[-1] == [10, DOUBTFUL], "without a calibration all is exact"


def test_an_engine_that_knows_blocks_is_asked_for_those_that_are_in_doubt(open_line: Callable[..., Line]) -> None:
    whole_tile = 224 * 224
    near = limits("s0", score_threshold=0.8 * whole_tile, cascade_band=(-0.5 * whole_tile, 0.0))
    line = open_line(kind=RecordingBlocks, calibration=near, station=CASCADE | {"bundle": "texture-s"}, **in_batches(2))
    cheap, exact = line.backends
    frame = line.worker.frame("s0", 0, 10, DOUBTFUL)
    assert line.at(0, frame) == []
    assert line.at(0) == [("s0", 0)]
    assert (cheap.calls, exact.calls, exact.asked) == ([[10, DOUBTFUL]], [], [[0, 1, 2]])
    first, doubtful = (255 * line.worker.slab.arrays(frame.slot)["reconstruction"][..., 0]).round()
    np.testing.assert_array_equal(first, 10)
    np.testing.assert_array_equal(doubtful[:28, :84], DOUBTFUL)
    np.testing.assert_array_equal(doubtful[:28, 84:], DOUBTFUL + 102)
    np.testing.assert_array_equal(doubtful[28:], DOUBTFUL + 102)


def test_a_cascade_has_the_worst_blocks_from_x1_and_the_rest_from_x32() -> None:
    worker = HandWorker(
        station={"plan": "cascade", "bundle": "texture-s"}, engine={"backend": "openvino", "threads": 1}
    )
    one = detector.open_detectors(worker.plan)["s0"]
    rows, columns = np.mgrid[:224, :224]
    tiles = (128 + 60 * np.sin(rows / 3) * np.cos(columns / 4)).astype(np.uint8)[None, ..., None]
    tiles[0, 90:110, 60:75] = 20
    exact, cheap, found = (np.empty(tiles.shape, np.float32) for _ in range(3))
    one.exact.infer(tiles, exact)
    assert one.cheap is not None
    one.cheap.infer(tiles, cheap)
    near = limits("s0", score_threshold=300.0, cascade_band=(-1e5, 1e5)).stations["s0"]
    one.infer(tiles, found, near)
    doubt = one.doubtful(tiles, cheap, near)
    assert doubt.tiles == [0]
    assert {3 * 8 + 2} < set(doubt.blocks[0].tolist()), "the dark spot's, and more"
    for block in range(64):
        row, column = (28 * n for n in divmod(block, 8))
        here = np.s_[0, row : row + 28, column : column + 28]
        np.testing.assert_array_equal(found[here], (exact if block in doubt.blocks else cheap)[here])
    assert not np.array_equal(exact, cheap)
    worker.slab.close()


@pytest.mark.parametrize("adds_up", [False, True])
def test_frames_whose_areas_are_added_up_are_passed_on_in_their_order(
    open_line: Callable[..., Line], adds_up: bool, tmp_path: Path
) -> None:
    """A cascade is in doubt about every other one; elsewhere the judge has those that are sure at once."""
    shipped = load_bundle(find_bundle("marker")).manifest
    write_bundle(tmp_path / "area", shipped.model_copy(update={"score": Score(kind="area")}), {})
    web: dict[str, Any] = {"scale_mm_per_px": 1.0, "web": {"mm_per_line": 1.0, "overlap_px": 24}}
    web |= {"smallest_defect_mm2": 9.0} if adds_up else {}
    station = CASCADE | web | {"frame": {"width_px": 448, "height_px": 200}, "bundle": str(tmp_path / "area")}
    a_tile_alone = limits("s0", score_threshold=200 * 224, cascade_band=(-1.0, 1.0))
    line = open_line(calibration=a_tile_alone, station=station, **in_batches(2))
    frames = [line.worker.frame("s0", n, 10, 20 if n % 2 else DOUBTFUL) for n in range(4)]
    sure = [] if adds_up else [("s0", 1)], [] if adds_up else [("s0", 3)]
    assert [line.at(0, f) for f in frames] == [[], sure[0], [], sure[1]]
    assert line.serving.slots() == {f.slot for f in (frames if adds_up else frames[::2])}
    assert line.at(0) == [("s0", n) for n in (range(4) if adds_up else (0, 2))]
    assert not line.serving.slots()


def test_a_cheap_answer_that_is_no_picture_costs_its_frame_and_not_its_neighbour(
    open_line: Callable[..., Line],
) -> None:
    line = open_line(calibration=limits("s0"), station=CASCADE, **in_batches(4))
    frames = line.worker.frame("s0", 0, 10, NO_PICTURE), line.worker.frame("s0", 1, 10, 20)
    assert line.at(0, *frames) == [("s0", 0), ("s0", 1)]
    assert [f.reason for f in line.worker.done] == [Reason.ENGINE_ERROR, None]


def test_engines_are_kept_warm_while_no_part_comes_and_left_alone_while_one_waits(
    open_line: Callable[..., Line],
) -> None:
    line = open_line(**in_batches(8))
    detect.run(line.worker)  # type: ignore[arg-type]
    assert line.worker.was_ready
    assert [b.warmed for b in line.backends] == [0, 3], "each engine once per turn; the first are of another Serving"
    line.at(0, line.worker.frame("s0", 0, 10))
    assert [b.warmed for b in line.backends] == [0, 3]


def test_a_stale_engine_has_an_exit_code_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKLINE_CACHE_DIR", str(tmp_path))
    worker: Any = HandWorker(engine={"backend": "marker", "marker_build_ms": 0})
    with pytest.raises(SystemExit) as ended:
        detect.run(worker)
    assert ended.value.code == EXIT_STALE
    assert not worker.was_ready
    worker.slab.close()
