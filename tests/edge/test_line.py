"""A whole line, as a user starts it: every trigger has one verdict, and every verdict is about its own part."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from edge.journal import open_for_reading
from edge.messages import Heartbeat, Verdict
from edge.paths import journal_path
from edge.recipes import load_recipe
from edge.sources.truth import truth_is_bad
from edge.testing import RunningLine, journal_verdicts, wait_until
from edge.verdict import Decision, GateState
from edge.verdicts import Gap, Refused
from tests.listeners import Listener
from tests.support import calibrate_marker, marker_recipe

PARTS = 25


def play(recipe: Path, tmp_path: Path, runtime_dir: Path) -> Listener:
    """Run a recipe until it ends by itself, and listen."""
    calibrate_marker(recipe, tmp_path / "state")
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as listener:
        assert line.wait() == 0, line.log.read_text()
    return listener


def triggers(state_dir: Path) -> Counter[str]:
    with closing(open_for_reading(journal_path(state_dir))) as db:
        return Counter(row[0] for row in db.execute("SELECT station FROM triggers"))


def assert_each_part_got_its_own(verdicts: list[Verdict], *, witnessed: bool = True) -> None:
    for verdict in verdicts:
        assert not verdict.late
        assert verdict.decision is (Decision.REJECT if truth_is_bad(7, verdict.part, 0.3) else Decision.PASS)
        for view in verdict.views:
            assert view.witness == (verdict.part if witnessed else None), "a verdict from another part's pixels"
            assert view.engine["backend"] == "marker"
            assert len(view.stamps) == 4
            assert view.at_ns <= view.stamps[0] <= view.stamps[1] <= view.stamps[2] <= view.stamps[3]
        assert verdict.trigger_ns <= verdict.decided_ns <= verdict.deadline_ns
        assert verdict.simulated


def assert_heard_to_the_end(heard: Listener, journaled: list[Verdict]) -> None:
    """What was published is what was journaled. A subscriber may join late: PUB keeps nothing for it."""
    assert heard.verdicts
    assert heard.verdicts == journaled[-len(heard.verdicts) :]


def test_a_live_station_answers_every_trigger(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = marker_recipe(tmp_path, parts=PARTS, rate_hz=20, deadline_ms=20_000)
    heard = play(recipe, tmp_path, runtime_dir)
    verdicts = journal_verdicts(tmp_path / "state")
    assert triggers(tmp_path / "state") == {"s0": PARTS}
    assert [v.part for v in verdicts] == list(range(PARTS))
    assert_each_part_got_its_own(verdicts)
    assert_heard_to_the_end(heard, verdicts)
    assert not [e for e in heard.events if isinstance(e, (Gap, Refused))]
    states = list(dict.fromkeys(e.state for e in heard.events if isinstance(e, Heartbeat)))
    assert GateState.READY in states
    assert GateState.DEGRADED not in states
    resolved = load_recipe(recipe)
    assert {v.recipe for v in verdicts} == {resolved.sha256}


def test_two_lossless_stations_inspect_every_part(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = marker_recipe(
        tmp_path, stations=2, parts=PARTS, mode="lossless", triggers="independent", slots=2, deadline_ms=60_000
    )
    play(recipe, tmp_path, runtime_dir)
    verdicts = journal_verdicts(tmp_path / "state")
    assert triggers(tmp_path / "state") == {"s0": PARTS, "s1": PARTS}
    for lane in ("s0", "s1"):
        mine = [v for v in verdicts if v.lane == lane]
        assert [v.part for v in mine] == list(range(PARTS))
        assert [v.topic_seq for v in mine] == list(range(1, PARTS + 1))
    assert [v.seq for v in verdicts] == list(range(1, 2 * PARTS + 1))
    assert_each_part_got_its_own(verdicts)


def test_stations_that_share_batches_get_each_its_own_answers(
    tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of both lie side by side; the marker engine reads no part numbers then, but a bad part is still one."""
    monkeypatch.setenv("MASKLINE__ENGINE__BATCH", "3")
    recipe = marker_recipe(tmp_path, stations=2, parts=PARTS, rate_hz=20, triggers="independent", deadline_ms=20_000)
    play(recipe, tmp_path, runtime_dir)
    verdicts = journal_verdicts(tmp_path / "state")
    assert triggers(tmp_path / "state") == {"s0": PARTS, "s1": PARTS}
    assert_each_part_got_its_own(verdicts, witnessed=False)


def test_a_lane_with_two_views_has_one_verdict_per_part(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = marker_recipe(
        tmp_path, stations=2, same_lane=True, parts=PARTS, rate_hz=20, triggers="independent", deadline_ms=20_000
    )
    play(recipe, tmp_path, runtime_dir)
    verdicts = journal_verdicts(tmp_path / "state")
    assert triggers(tmp_path / "state") == {"s0": PARTS, "s1": PARTS}
    assert [(v.lane, v.part) for v in sorted(verdicts, key=lambda v: v.part)] == [("lane", n) for n in range(PARTS)]
    assert {tuple(view.station for view in v.views) for v in verdicts} == {("s0", "s1")}
    assert_each_part_got_its_own(verdicts)


def test_sigterm_drains_what_is_in_flight(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = marker_recipe(tmp_path, parts=None, rate_hz=20, deadline_ms=20_000)
    calibrate_marker(recipe, tmp_path / "state")
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line, Listener(line.endpoint) as heard:
        wait_until(lambda: len(heard.verdicts) > 5)
        assert line.stop() == 0
    verdicts = journal_verdicts(tmp_path / "state")
    seen = triggers(tmp_path / "state")["s0"]
    assert [v.part for v in verdicts] == list(range(seen)), "every trigger that was seen has its verdict"
    assert_heard_to_the_end(heard, verdicts)
    assert heard.state is GateState.STOPPING
    assert heard.beats[-1].open == 0
    inspected = [v for v in verdicts if v.decision is not Decision.UNINSPECTED]
    assert_each_part_got_its_own(inspected)
    assert len(inspected) == len(verdicts), "the last trigger has its frame too"
    assert not list((runtime_dir / "test").glob("*.pid"))
