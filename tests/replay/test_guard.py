"""The recording in this folder, through the line as it is now: what it says must not change unnoticed.

`tests/replay/make.py` says what is in it, and how references are written anew.
"""

from __future__ import annotations

import pytest

from calib.calibration import Calibration
from edge.recording import Recording
from edge.replay.alone import PROCESSES, replay_process
from edge.replay.differences import short_text
from edge.replay.references import read_references
from edge.replay.run import ReplayOptions, ReplayResult, replay_recording
from edge.verdict import Reason
from tests.replay.make import RECORDING, REFERENCES


@pytest.fixture(scope="module")
def replayed() -> ReplayResult:
    return replay_recording(RECORDING, ReplayOptions(expected=REFERENCES))


@pytest.mark.line
def test_the_line_says_what_it_said(replayed: ReplayResult) -> None:
    """Decisions anywhere; scores to the bit where the same library and instruction set made the references."""
    assert replayed.comparison is not None
    assert replayed.comparison.parts == 9
    assert replayed.comparison.same, short_text(replayed.comparison)
    assert not replayed.comparison.apart, short_text(replayed.comparison)


@pytest.mark.line
def test_the_scores_are_the_same_to_the_bit(replayed: ReplayResult) -> None:
    assert replayed.comparison is not None
    if others := [p for p in replayed.comparison.provenance if p.of_scores]:
        changed = ", ".join(f"{p.name} {p.expected} -> {p.found}" for p in others)
        pytest.skip(f"the references were computed with something else, only decisions are compared: {changed}")
    assert replayed.comparison.scores_compared == 15
    assert replayed.comparison.largest_score_difference == 0


def test_the_recording_shows_what_can_go_wrong() -> None:
    """Or the guard would guard less than it seems to."""
    said = read_references(REFERENCES).outcomes
    assert {o["decision"] for o in said} == {"PASS", "REJECT", "UNINSPECTED"}
    shown = {v["reason"] for o in said for v in o["views"]} - {None}
    assert shown == {
        Reason.BLACK_FRAME,
        Reason.MISSED_FRAME,
        Reason.DEFOCUSED,
        Reason.FROZEN_FRAME,
        Reason.WRONG_SIZE,
    }
    assert [o["part_id"] for o in said] == list(range(100, 109))


def test_no_decision_hangs_on_the_last_bits() -> None:
    """On another machine scores differ a little, and decisions must not."""
    for part in read_references(REFERENCES).outcomes:
        for view in part["views"]:
            if view["score"] is not None:
                assert abs(view["score"] / view["threshold"] - 1) > 0.1


@pytest.mark.parametrize("name", PROCESSES)
def test_each_process_alone_answers_as_it_did(name: str) -> None:
    result = replay_process(RECORDING, name, ReplayOptions())
    assert result.comparison is not None
    assert result.comparison.same, short_text(result.comparison)
    assert result.comparison.parts == (9 if name == "gate" else 15)


@pytest.mark.parametrize(
    ("name", "field", "differs"),
    [("judge", "score_threshold", True), ("judge", "map_threshold", True), ("detect", "score_threshold", False)],
)
def test_a_process_that_answers_otherwise_is_found(name: str, field: str, differs: bool) -> None:
    calibration = Recording(RECORDING).calibration()
    assert calibration is not None
    result = replay_process(RECORDING, name, ReplayOptions(calibration=_scaled(calibration, field)))
    assert result.comparison is not None
    assert result.comparison.same is not differs


def _scaled(calibration: Calibration, field: str) -> Calibration:
    stations = {name: s.model_copy(update={field: getattr(s, field) * 0.5}) for name, s in calibration.stations.items()}
    return calibration.model_copy(update={"stations": stations})


def test_the_recording_is_small() -> None:
    assert RECORDING.stat().st_size + REFERENCES.stat().st_size < 500_000
