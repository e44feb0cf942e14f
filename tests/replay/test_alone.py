"""One process alone: the gate on triggers and results at their times, the stages on frames that lost something."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from calib.calibration import load_calibration
from edge.ledger import Ledger, view_of
from edge.messages import ViewResult
from edge.paths import calibration_path
from edge.recipes import load_recipe
from edge.recording import RecordedFrame, Recording, RecordingWriter
from edge.replay.alone import replay_process
from edge.replay.compare import Comparison, Why
from edge.replay.run import ReplayError, ReplayOptions
from edge.replay.setup import SetUp, set_up
from edge.replay.stages import Stages
from edge.settings import Recipe, Web
from edge.sources.marker import MarkerFeed
from edge.testing import calibrate_by_hand
from edge.verdict import Decision, Reason
from tests.replay.make import RECORDING
from tests.replay.recording_helpers import rewriting
from tests.replay.verdict_helpers import verdict
from tests.support import marker_recipe

UTC_NS, MONOTONIC_NS = 1_800_000_000_000_000_000, 77_000_000_000
MS = 1_000_000


class Written:
    """A recording of two cameras of one lane, whose parts come every 100 ms and wait 1000 ms at most."""

    def __init__(self, folder: Path) -> None:
        self.recipe = load_recipe(marker_recipe(folder, stations=2, same_lane=True, deadline_ms=1000))
        self.path = folder / "a.mcap"
        self._out = RecordingWriter(self.path, {"recipe": self.recipe.model_dump_json()})
        self._results: list[tuple[int, ViewResult]] = []

    def part(
        self,
        number: int,
        *results: ViewResult | None,
        said: tuple[Decision, Reason | None],
        saw: tuple[ViewResult | None, ...] | None = None,
        lost: bool = False,
        late: bool = False,
    ) -> None:
        """What each camera's judge said, None for one that never triggered; and what the gate made of it.

        `saw`: the views of its verdict, where they are others. `lost`: the recorder has missed the results. `late`: the
        gate answered after the deadline.
        """
        for station, result in zip(("s0", "s1"), results, strict=True):
            if result is not None:
                self._out.trigger(station, number, UTC_NS + 100 * MS * number, part_id=number + 50)
                waited_ns = result.stamps[-1] - result.at_ns if result.stamps else 0
                at_ns = UTC_NS + 100 * MS * number + waited_ns
                if not lost:
                    self._results.append((at_ns, replace(result, station=station, number=number)))
        saw = results if saw is None else saw
        views = [
            view_of(replace(r, station=s) if r else refused(Reason.MISSED_FRAME, s), "")
            for s, r in zip(("s0", "s1"), saw, strict=True)
        ]
        decision, reason = said
        leading = max((r for r in saw if r and r.score is not None), key=lambda r: r.score or 0, default=None)
        told = verdict(number, *views, decision=decision, reason=reason, part_id=number + 50, late=late)
        told = replace(
            told,
            score=leading.score if leading else None,
            threshold=leading.threshold if leading else None,
        )
        self._out.verdict(told, UTC_NS + 100 * MS * number + 5)

    def replayed(self) -> Comparison:
        for at_ns, result in sorted(self._results, key=lambda r: r[0]):
            self._out.result(result, at_ns)
        self._out.close()
        found = replay_process(self.path, "gate", ReplayOptions()).comparison
        assert found is not None
        return found


def answered(after_ms: float, decision: Decision = Decision.PASS, score: float = 0.1) -> ViewResult:
    stamps = [MONOTONIC_NS + round(after_ms * MS)]
    return ViewResult("s0", 0, MONOTONIC_NS, decision, score=score, threshold=0.5, stamps=stamps)


def refused(reason: Reason, station: str = "s0") -> ViewResult:
    return ViewResult(station, 0, MONOTONIC_NS, Decision.UNINSPECTED, reason)


PASS, REJECT = (Decision.PASS, None), (Decision.REJECT, None)


def test_the_gate_decides_as_it_did(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.part(10, answered(20), answered(30), said=PASS)
    written.part(11, answered(20), answered(900, Decision.REJECT, 0.7), said=REJECT)
    written.part(12, refused(Reason.BAD_IMAGE), answered(10), said=(Decision.UNINSPECTED, Reason.BAD_IMAGE))
    written.part(13, answered(20), None, said=(Decision.UNINSPECTED, Reason.MISSED_FRAME))
    written.part(14, answered(20), answered(30), said=PASS)
    found = written.replayed()
    assert found.same, found.differences
    assert (found.parts, found.apart) == (5, ())


@pytest.mark.parametrize(
    ("after_ms", "different", "apart"),
    [(990, False, []), (999, False, [Why.ON_THE_EDGE]), (1001, True, []), (5000, True, [])],
)
def test_a_pass_after_the_deadline_is_found(tmp_path: Path, after_ms: float, different: bool, apart: list[Why]) -> None:
    """The gate closes a part 5 ms before its deadline: one that wakes late may take an answer until then."""
    written = Written(tmp_path)
    written.part(0, answered(20), answered(after_ms), said=PASS)
    found = written.replayed()
    assert [(d.expected, d.found) for d in found.differences if d.field == "decision"] == (
        [("PASS", "UNINSPECTED")] if different else []
    )
    assert [a.why for a in found.apart] == apart


@pytest.mark.parametrize(
    ("after_ms", "different", "apart"),
    [(20, True, []), (989, True, []), (992, False, [Why.ON_THE_EDGE]), (996, False, []), (1010, False, [])],
)
def test_an_answer_in_time_that_the_gate_refused_is_found(
    tmp_path: Path, after_ms: float, different: bool, apart: list[Why]
) -> None:
    """Its way to the gate may take 5 ms."""
    written = Written(tmp_path)
    overdue = (Decision.UNINSPECTED, Reason.DEADLINE)
    written.part(0, answered(20), answered(after_ms), said=overdue, saw=(answered(20), refused(Reason.DEADLINE)))
    found = written.replayed()
    assert [(d.expected, d.found) for d in found.differences if d.field == "decision"] == (
        [("UNINSPECTED", "PASS")] if different else []
    )
    assert [a.why for a in found.apart] == apart


@pytest.mark.parametrize("overdue", [False, True])
def test_a_ledger_that_forgets_its_deadlines_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overdue: bool
) -> None:
    """Or that has them too early. What the line said is right, and the replay is wrong."""
    written, late = Written(tmp_path), refused(Reason.DEADLINE)
    written.part(
        0, answered(20), answered(1500), said=(Decision.UNINSPECTED, Reason.DEADLINE), saw=(answered(20), late)
    )
    written.part(1, answered(20), answered(30), said=PASS)
    wrong_ns = -985_000_000 if overdue else 1_000_000_000
    closing = Ledger._closing_ns
    monkeypatch.setattr(Ledger, "_closing_ns", lambda self, part: closing(self, part) + wrong_ns)
    found = written.replayed()
    assert {d.part for d in found.differences} == ({0, 1} if overdue else {0})


def test_what_the_recording_does_not_say_of_an_answer_is_told_apart(tmp_path: Path) -> None:
    written = Written(tmp_path)
    overdue, both_overdue = (Decision.UNINSPECTED, Reason.DEADLINE), (refused(Reason.DEADLINE),) * 2
    written.part(0, answered(20), answered(30), said=PASS, lost=True)
    written.part(1, refused(Reason.OVERLOAD), answered(30), said=overdue, saw=(refused(Reason.DEADLINE), answered(30)))
    written.part(2, answered(20), answered(30), said=overdue, saw=both_overdue, late=True)
    found = written.replayed()
    assert found.same, found.differences
    assert [(a.part, a.why) for a in found.apart] == [(0, Why.UNTOLD), (1, Why.UNTIMED), (2, Why.HELD_UP)]
    assert found.parts == 0


def test_a_late_pass_is_none_whatever_held_the_gate_up(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.part(0, answered(20), answered(1500), said=PASS, late=True)
    assert not written.replayed().same


def test_what_only_the_end_of_a_line_causes_is_told_apart(tmp_path: Path) -> None:
    written = Written(tmp_path)
    for number, reason in enumerate((Reason.RESTART, Reason.STOPPING, Reason.CHANGE_OVER)):
        open_still = (refused(reason),) * 2
        written.part(number, answered(20), answered(30), said=(Decision.UNINSPECTED, reason), saw=open_still)
    written.part(3, refused(Reason.OVERLOAD), answered(30), said=PASS)
    found = written.replayed()
    assert [a.why for a in found.apart] == [Why.CLOCK] * 3
    assert [d.part for d in found.differences if d.field == "decision"] == [3], "an overload is an input of the gate"


@pytest.mark.parametrize("said", [PASS, (Decision.UNINSPECTED, Reason.ENGINE_ERROR)])
def test_a_gate_that_decides_otherwise_is_found(tmp_path: Path, said: tuple[Decision, Reason | None]) -> None:
    written = Written(tmp_path)
    written.part(0, answered(20), answered(30, Decision.REJECT, 0.7), said=said)
    assert "decision" in [d.field for d in written.replayed().differences]


def _seen(folder: Path, recipe: Recipe, without: Iterable[int] = ()) -> SetUp:
    """What a replay of ten parts needs, recorded from the markers of a line that has a calibration."""
    calibrate_by_hand(recipe, folder / "state")
    calibration = load_calibration(calibration_path(folder / "state"))
    assert calibration is not None
    with RecordingWriter(folder / "seen.mcap", {"recipe": recipe.model_dump_json()}) as out:
        out.calibration(calibration.to_bytes())
        for station in recipe.stations:
            feed = MarkerFeed(station)
            for number in range(10):
                image = feed.part(number).load().image
                assert image is not None
                out.trigger(station.name, number, number)
                if number not in set(without):
                    out.frame(station.name, number, number, image)
    return set_up(Recording(folder / "seen.mcap"), None, None)


def _stages(ready: SetUp) -> list[Stages]:
    return [Stages(plan, ready.detectors[name], ready.calibration) for name, plan in ready.plan.stations.items()]


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Ten parts of two cameras, and what the marker engine says of them: the same on every machine."""
    ready = _seen(tmp_path, load_recipe(marker_recipe(tmp_path, stations=2)))
    said = [view for stages in _stages(ready) for view in stages.views()]
    return _rewritten(tmp_path / "seen.mcap", tmp_path / "judged.mcap", lambda _: None, also=said)


def test_a_web_is_joined_to_the_frame_before(tmp_path: Path) -> None:
    """On the way through the recording, and when one part of it is looked at."""
    recipe = load_recipe(marker_recipe(tmp_path))
    web = Web(mm_per_line=0.1, overlap_px=24)
    recipe = recipe.model_copy(update={"stations": (recipe.stations[0].model_copy(update={"web": web}),)})
    ready = _seen(tmp_path, recipe, without=[4])
    assert ready.survey.unrecorded == {("s0", 0), ("s0", 4), ("s0", 5)}
    (passing,), (looking,) = _stages(ready), _stages(ready)
    rows = {}
    for view in passing.views():
        rows[view.number] = view.rows_before
        assert looking.look(ready.recording, view.number)
        for name, array in passing.arrays.items():
            np.testing.assert_array_equal(array, looking.arrays[name], err_msg=f"{name} of part {view.number}")
    assert rows == {n: 0 if n in (0, 5) else 24 for n in range(10) if n != 4}
    assert not looking.look(ready.recording, 4)


def _rewritten(
    kept: Path,
    path: Path,
    change: Callable[[ViewResult], ViewResult | None],
    encoding: str = "png",
    also: Iterable[ViewResult] = (),
) -> Path:
    """A recording with other frames and results."""
    with rewriting(kept, path) as (recording, out):
        for station in recording.stations:
            for event in recording.events(station):
                if isinstance(event, RecordedFrame):
                    out.frame(station, event.number, event.at_ns, event.decode(), encoding, 90)
                else:
                    out.trigger(station, event.number, event.at_ns)
        for result in (*(r for _, r in recording.results()), *(replace(v, stamps=[1, 2]) for v in also)):
            if (changed := change(result) if not also else result) is not None:
                out.result(changed, result.number)
    return path


def test_frames_that_lost_something_are_compared_with_a_tolerance_only(judged: Path, tmp_path: Path) -> None:
    """The marker engine reads through the losses; a little more score stands for what a network would make of them."""

    def a_little_more(result: ViewResult) -> ViewResult:
        return replace(result, score=(result.score or 0) + 0.01, boxes=[])

    path = _rewritten(judged, tmp_path / "lossy.mcap", a_little_more, "jpeg")
    with pytest.raises(ReplayError, match=r"compressed with losses.*--tolerance"):
        replay_process(path, "judge", ReplayOptions())
    found, strict = (replay_process(path, "judge", ReplayOptions(tolerance=t)).comparison for t in (0.03, 0.01))
    assert found is not None
    assert found.same, found.differences
    assert found.largest_score_difference == pytest.approx(0.01)
    assert strict is not None
    assert {d.field for d in strict.differences} == {"s0.score", "s1.score"}


ELSE: dict[str, list[dict[str, object]]] = {
    "prepare": [
        {"place": [1.0, 0.0, 0.0]},
        {"reason": Reason.NO_PART, "decision": Decision.UNINSPECTED},
        {"rows_before": 3},
    ],
    "detect": [
        {"score": 1.0},
        {"witness": 8},
        {"reason": Reason.ENGINE_ERROR, "decision": Decision.UNINSPECTED},
    ],
    "judge": [{"boxes": [[1, 2, 3, 4]]}, {"decision": Decision.UNINSPECTED}, {"threshold": 3.0}, {"areas_px": [2.0]}],
}


@pytest.mark.parametrize("name", ELSE)
def test_a_stage_that_answered_otherwise_is_found(judged: Path, tmp_path: Path, name: str) -> None:
    """Each of the first parts was answered in another way."""

    def changed(result: ViewResult) -> ViewResult:
        ours = dict(enumerate(ELSE[name]))
        return replace(result, **ours.get(result.number, {})) if result.station == "s0" else result  # type: ignore[arg-type]

    found = replay_process(_rewritten(judged, tmp_path / "a.mcap", changed), name, ReplayOptions()).comparison
    assert found is not None
    assert {(d.lane, d.part) for d in found.differences} == {("s0", n) for n in range(len(ELSE[name]))}


def test_a_stage_answers_for_itself_alone(judged: Path, tmp_path: Path) -> None:
    def changed(result: ViewResult) -> ViewResult:
        return replace(result, threshold=3.0, boxes=[[1, 2, 3, 4]], decision=Decision.PASS, reason=None)

    found = replay_process(_rewritten(judged, tmp_path / "a.mcap", changed), "detect", ReplayOptions()).comparison
    assert found is not None
    assert found.same


def test_what_time_alone_causes_is_told_apart(judged: Path, tmp_path: Path) -> None:
    def late(result: ViewResult) -> ViewResult:
        return replace(result, decision=Decision.UNINSPECTED, reason=Reason.OVERLOAD, score=None)

    found = replay_process(_rewritten(judged, tmp_path / "a.mcap", late), "judge", ReplayOptions()).comparison
    assert found is not None
    assert found.same
    assert {a.why for a in found.apart} == {Why.CLOCK}


def test_a_recording_without_answers(judged: Path, tmp_path: Path) -> None:
    path = _rewritten(judged, tmp_path / "a.mcap", lambda _: None)
    with pytest.raises(ReplayError, match="no view results in this recording"):
        replay_process(path, "judge", ReplayOptions())
    with pytest.raises(ReplayError, match="no verdicts in this recording"):
        replay_process(path, "gate", ReplayOptions())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (ReplayOptions(tolerance=0.1), "computes no scores; leave --tolerance out"),
        (ReplayOptions(live=True), "leave --speed 1 out"),
        (ReplayOptions(out=Path("kept")), "leave --out out"),
        (ReplayOptions(calibration=Recording(RECORDING).calibration()), "knows no thresholds; leave --calibration out"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: ReplayOptions, said: str) -> None:
    with pytest.raises(ReplayError, match=f"--process gate: .*{said}"):
        replay_process(RECORDING, "gate", options)


def test_a_process_that_cannot_be_replayed_alone() -> None:
    with pytest.raises(ReplayError, match=r"--process archive: .* these can: prepare, detect, judge, gate"):
        replay_process(RECORDING, "archive", ReplayOptions())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ignore", "skore"], "--ignore skore: no such field; there are: line, lane"),
        (["--update-reference"], "name the file that is to be written with --reference"),
        (["--update-reference", "--compare", "--reference", "r.json"], "compare in a run of its own"),
        (["--process", "gate", "--reference", "r.json"], "leave --reference out"),
        (["--process", "judge", "--out", "kept"], "--process judge: there is no line whose journal could be kept"),
        (["--process", "gate", "--speed", "1"], "--process gate: its inputs come at no speed; leave --speed 1 out"),
        (["--calibration", "no.json"], "no.json: no calibration here"),
        (["--recipe", "no.toml"], "no.toml: cannot read this recipe"),
        (["--speed", "2"], "'2' is not one of"),
    ],
)
def test_what_the_command_refuses(tmp_path: Path, arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "edge.cli", "replay", str(RECORDING), *arguments]
    environment = os.environ | {"COLUMNS": "300", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
