"""Whole lines that replay what a line has recorded."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner, Result

from calib.calibration import Calibration, load_calibration
from edge.cli import app
from edge.demo.simulate import simulate
from edge.errors import MasklineError, ResourceError
from edge.paths import calibration_path
from edge.processes import JUDGE
from edge.recipes import load_recipe
from edge.recording import RecordedFrame, Recording, RecordingWriter
from edge.replay import run
from edge.replay.compare import Why, compare
from edge.replay.references import read_references
from edge.replay.run import ReplayError, ReplayOptions, ReplayResult, expected_outcomes, replay_recording
from edge.replay.what_if import what_if, write_what_if
from edge.settings import Recipe
from edge.slab import State
from edge.supervisor import Supervisor
from edge.testing import RunningLine, calibrate_by_hand, journal_verdicts
from edge.verdict import Decision, Reason
from engines.bundle import Score, find_bundle, load_bundle, write_bundle
from tests.replay.make import RECORDING, REFERENCES
from tests.replay.recording_helpers import rewriting
from tests.support import marker_recipe

pytestmark = pytest.mark.line
PARTS = 24


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a line of two cameras with the marker engine has recorded."""
    folder = tmp_path_factory.mktemp("recorded")
    extra = 'recording = { folder = "rec", encoding = "png" }'
    recipe = marker_recipe(folder, stations=2, same_lane=True, parts=PARTS, mode="lossless", extra=extra)
    calibrate_by_hand(load_recipe(recipe), folder / "state")
    with tempfile.TemporaryDirectory(prefix="ml-") as sockets:
        with RunningLine(recipe, folder / "state", Path(sockets)) as line:
            assert line.wait() == 0, line.log.read_text()
    (path,) = (folder / "rec").glob("*.mcap")
    return path


def maskline(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["replay", *map(str, arguments)])


def _cut(recorded: Path, path: Path, firsts: dict[str, int], first_verdict: int) -> Path:
    """A recording that was begun while the line ran: each station from another part on."""
    whole = Recording(recorded)
    with RecordingWriter(path, whole.metadata) as out:
        calibration = whole.calibration()
        assert calibration is not None
        out.calibration(calibration.to_bytes())
        for station, first in firsts.items():
            for event in whole.events(station):
                if event.number < first:
                    continue
                if isinstance(event, RecordedFrame):
                    out.frame(station, event.number, event.at_ns, event.decode())
                else:
                    out.trigger(station, event.number, event.at_ns)
        for verdict in whole.verdicts():
            if verdict.part >= first_verdict:
                out.verdict(verdict, verdict.decided_utc_ns)
    return path


def test_a_replay_says_what_the_line_said(recorded: Path, tmp_path: Path) -> None:
    """From part 7 on: before it not all was recorded, and of the parts 5 and 6 only what was said of them."""
    told: list[tuple[int, int]] = []
    path, parts = _cut(recorded, tmp_path / "cut.mcap", {"s0": 5, "s1": 7}, first_verdict=5), PARTS - 7
    options = ReplayOptions(expected="recorded", out=tmp_path / "out")
    result = replay_recording(path, options, progress=lambda done, total: told.append((done, total)))
    assert result.comparison is not None
    assert result.comparison.same, result.comparison.differences
    assert [(a.part, a.why) for a in result.comparison.apart] == [(5, Why.OUTSIDE), (6, Why.OUTSIDE)]
    assert (result.comparison.parts, result.comparison.scores_compared, result.notes) == (parts, 2 * parts, ())
    assert [o["part"] for o in result.outcomes] == list(range(7, PARTS))
    assert [{v["witness"] for v in o["views"]} for o in result.outcomes] == [{n} for n in range(7, PARTS)]
    assert set(result.decisions) == {"PASS", "REJECT"}
    assert all(total == 2 * parts for _, total in told)
    verdicts = journal_verdicts(tmp_path / "out")
    assert len(verdicts) == parts
    assert all(v.simulated for v in verdicts)
    with pytest.raises(ResourceError, match="is not empty"):
        replay_recording(path, options)


def test_a_difference_ends_with_exit_code_1_and_is_written_down(recorded: Path, tmp_path: Path) -> None:
    calibration = Recording(recorded).calibration()
    assert calibration is not None
    other, diff, figures = tmp_path / "other.json", tmp_path / "diff.txt", tmp_path / "figures.json"
    other.write_bytes(_with_threshold(calibration, 10.0).to_bytes())
    said = maskline(recorded, "--calibration", other, "--compare", "--diff", diff, "--json", figures)
    assert said.exit_code == 1
    assert isinstance(said.exception, MasklineError)
    assert said.exception.exit_code == 1
    assert str(diff) in str(said.exception)
    verdicts = list(Recording(recorded).verdicts())  # a busy recorder may have missed some
    rejects = sum(v.decision is Decision.REJECT for v in verdicts)
    assert f"{len(verdicts)} parts compared: 0 equal, {len(verdicts)} different" in said.output
    assert diff.read_text().count("  decision: expected 'REJECT', found 'PASS'") == rejects > 0
    flat = json.loads(figures.read_text())
    assert (flat["replay.parts"], flat["replay.different"], flat["replay.pass"]) == (PARTS, len(verdicts), PARTS)
    assert all(isinstance(value, (str, float)) for value in flat.values())


def test_a_replay_that_is_stopped_says_so(recorded: Path) -> None:
    signals = [signal.SIGINT]  # one: once the replay has stopped, the next would be for pytest

    def interrupt(*_: object) -> None:
        if signals:
            signal.raise_signal(signals.pop())

    with pytest.raises(ReplayError, match=r"stopped after \d+ of 24 parts"):
        replay_recording(recorded, ReplayOptions(), progress=interrupt)


def test_what_would_change_side_with_another_calibration(tmp_path: Path) -> None:
    """On the recording that this folder keeps: part 0 is rejected by little."""
    calibration = Recording(RECORDING).calibration()
    assert calibration is not None
    other, page = tmp_path / "other.json", tmp_path / "page.html"
    other.write_bytes(_with_threshold(calibration, 1200.0).to_bytes())
    said = maskline(RECORDING, "--calibration", other, "--report", page)
    assert said.exit_code == 0, said.exception
    assert "1 of 9 parts would change side: 1 from REJECT to PASS" in said.output
    html = page.read_text()
    assert html.count('<article class="card"') == 1
    assert 'id="brick-0"' in html
    assert html.count("data:image/jpeg") >= 6, "image, reconstruction and map of both views"
    assert "http" not in html.replace("http://www.w3.org", "")


def test_a_station_that_the_recording_calls_otherwise_has_a_page_too(tmp_path: Path) -> None:
    recording = Recording(RECORDING)
    recipe, calibration = recording.recipe(), recording.calibration()
    assert recipe is not None
    assert calibration is not None
    near, far = recipe.stations
    left = near.model_copy(update={"name": "left", "source": near.source.model_copy(update={"channel": "near"})})
    limits = {"left": calibration.stations["near"], "far": calibration.stations["far"]}
    options = ReplayOptions(
        recipe=recipe.model_copy(update={"stations": (left, far)}),
        calibration=calibration.model_copy(update={"stations": limits}),
        expected="recorded",
    )
    expected = expected_outcomes(recording, options)
    said = json.loads(json.dumps(expected).replace('"near"', '"left"'))
    said[0]["decision"] = said[0]["views"][0]["decision"] = "PASS"
    result = ReplayResult(str(RECORDING), "bricks", said, compare(expected, said), (), seconds=1.0)
    found = what_if(RECORDING, options, result)
    assert [(c.part, c.direction) for c in found.changes] == [(0, "REJECT to PASS")]
    write_what_if(found, tmp_path / "page.html")
    assert "not recorded under this name" in (tmp_path / "page.html").read_text()


def test_a_process_that_hangs_on_a_frame_is_found_before_the_longest_deadline(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judge stands still when the line begins, and is killed with all frames in its hands."""
    open_the_line, stopped = Supervisor._open_the_line, set[int]()

    def with_a_judge_that_stands_still(self: Supervisor, now_ns: int) -> None:
        up = [int(self.slab.row(c.process.index)["state"]) == State.RUNNING for c in self._children.values() if c.popen]
        if not stopped and all(up) and (judge := self._children[JUDGE].popen):
            stopped.add(judge.pid)
            os.kill(judge.pid, signal.SIGSTOP)
        open_the_line(self, now_ns)

    monkeypatch.setattr(Supervisor, "_open_the_line", with_a_judge_that_stands_still)
    monkeypatch.setattr(run, "IDLE_S", 0.5)
    result = replay_recording(recorded, ReplayOptions(expected="recorded"))
    assert result.notes == ("the process judge died during this replay (1x): what it had in hand is lost",)
    assert result.decisions.keys() <= {"PASS", "REJECT", "UNINSPECTED(stopping)"}
    assert result.comparison is not None
    assert result.decisions["UNINSPECTED(stopping)"] >= result.comparison.different > 0
    assert {a.why for a in result.comparison.apart} <= {Why.UNEXPECTED}, "a busy recorder missed verdicts"


def test_a_recording_of_which_nothing_can_be_compared_ends_with_exit_code_1(recorded: Path, tmp_path: Path) -> None:
    """Its line was overloaded all the time."""
    with rewriting(recorded, tmp_path / "late.mcap") as (whole, out):
        for station in whole.stations:
            for event in whole.events(station):
                if isinstance(event, RecordedFrame):
                    out.frame(station, event.number, event.at_ns, event.decode())
                else:
                    out.trigger(station, event.number, event.at_ns)
        for said in whole.verdicts():
            lost = [replace(v, decision=Decision.UNINSPECTED, reason=Reason.OVERLOAD, score=None) for v in said.views]
            late = replace(said, decision=Decision.UNINSPECTED, reason=Reason.OVERLOAD, score=None, views=lost)
            out.verdict(late, said.decided_utc_ns)
    said = maskline(tmp_path / "late.mcap", "--compare")
    assert said.exit_code == 1
    assert f"0 parts compared: 0 equal, 0 different, {PARTS} apart" in said.output
    assert f"nothing was compared: {PARTS} parts are told apart" in str(said.exception)


def test_references_are_written_only_when_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    missing = maskline(RECORDING, "--reference", path)
    assert "--update-reference writes them" in str(missing.exception)
    assert not path.exists()
    assert maskline(RECORDING, "--reference", path, "--update-reference").exit_code == 0
    said, kept = ([(o["part"], o["decision"]) for o in read_references(p).outcomes] for p in (path, REFERENCES))
    assert said == kept


def test_scores_are_bit_equal_whatever_the_speed_the_batch_and_the_processes(tmp_path: Path) -> None:
    """One line at a time with single tiles, and two lines at once with batches: as fast as it goes, and live."""
    recipe, calibration = _scored_to_the_bit(tmp_path)
    simulate(tmp_path / "a.mcap", {"near": "brick", "far": "grass"}, parts=6, rate_hz=4, defect_share=0.5, seed=3)
    batches = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"batch": 3})})
    alone = replay_recording(tmp_path / "a.mcap", ReplayOptions(recipe, calibration))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        others = [
            pool.submit(replay_recording, tmp_path / "a.mcap", ReplayOptions(batches, calibration, live=live))
            for live in (False, True)
        ]
        at_once, live = (other.result() for other in others)
    scores = [v["score"] for o in alone.outcomes for v in o["views"]]
    assert len(set(scores)) == 12, "each view has a score of its own"
    assert all(score != round(score, 6) for score in scores), "and it hangs on the last bits"
    assert at_once == alone
    assert _without_those_in_a_hurry(live, alone) == alone.outcomes


def _without_those_in_a_hurry(live: ReplayResult, alone: ReplayResult) -> list[object]:
    """A live line has no slot for a frame on a machine that is busy: such a part says so, and no other may."""
    late = [o["reason"] in ("overload", "deadline", "missed_frame") for o in live.outcomes]
    assert sum(late) <= len(late) // 2
    return [b if is_late else a for a, b, is_late in zip(live.outcomes, alone.outcomes, late, strict=True)]


RECIPE = """
line = "bits"
safe_state = "reject_all"
line_ok = { wired = "none", because = "a test" }
deadline = { deadline_ms = 60000 }
pictures = { keep = "none" }
[[stations]]
name = "near"
bundle = "mean"
plan = "x16"
slots = 8
frame = { width_px = 224, height_px = 224 }
source = { kind = "recording", path = "a.mcap" }
[[stations]]
name = "far"
bundle = "mean"
plan = "x16"
slots = 8
frame = { width_px = 224, height_px = 224 }
tiling = { resize = 1.25, overlap_px = 20 }
source = { kind = "recording", path = "a.mcap" }
"""


def _scored_to_the_bit(folder: Path) -> tuple[Recipe, Calibration]:
    """A line whose scores are means over all pixels, and not areas, which forgive a change of the last bits."""
    shipped = load_bundle(find_bundle("texture-s"))
    manifest = shipped.manifest.model_copy(update={"score": Score(kind="mean")})
    write_bundle(folder / "mean", manifest, {name: shipped.read(name) for name in shipped.manifest.files})
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(folder / "recipe.toml")
    calibrate_by_hand(recipe, folder / "state", score_threshold=0.02)
    calibration = load_calibration(calibration_path(folder / "state"))
    assert calibration is not None
    return recipe, calibration


def _with_threshold(calibration: Calibration, threshold: float) -> Calibration:
    stations = {n: s.model_copy(update={"score_threshold": threshold}) for n, s in calibration.stations.items()}
    return calibration.model_copy(update={"stations": stations})
