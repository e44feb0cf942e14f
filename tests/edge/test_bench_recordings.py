"""The benches of recordings, at small sizes: figures follow from what was measured. Nothing here is timed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from edge.bench import record, recovery, replay
from edge.bench.pipeline import write_recipe
from edge.messages import Verdict
from edge.recipes import load_recipe
from edge.recording import RecordedFrame, Recording, RecordingWriter
from edge.replay.run import ReplayOptions
from edge.verdict import Decision, Reason
from tests.edge.recording.mcap_helpers import picture, result, verdict

PARTS = 5


def write(path: Path, numbers: range, frameless: int, unanswered: int) -> None:
    """A roll of these parts, of which one has no frame and one no verdict."""
    with RecordingWriter(path, {}) as out:
        for number in numbers:
            out.trigger("top", number, number)
            if number != frameless:
                out.frame("top", number, number, picture(number))
            out.result(result(number), number)
            if number != unanswered:
                out.verdict(verdict(number), number)


def test_what_is_missing_in_the_files_and_what_was_not_inspected_is_dropped(tmp_path: Path) -> None:
    write(tmp_path / "a.mcap", range(3), frameless=1, unanswered=-1)
    write(tmp_path / "b.mcap", range(3, PARTS), frameless=-1, unanswered=4)
    nbytes = sum(path.stat().st_size for path in tmp_path.iterdir())
    found = record._recorded(tmp_path, PARTS, uninspected=1)
    assert found["record.dropped"] == 3
    assert found["record.mb_per_s"] == pytest.approx(nbytes / 1e6 / (PARTS / record.RATE_HZ))


def test_a_round_compares_lines_on_the_disk_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is temporary may lie in memory, which is no disk."""
    monkeypatch.chdir(tmp_path)
    lines: list[bool] = []

    def run_line(recipe: Path, timeout_s: float, runtime_dir: Path) -> list[Verdict]:
        """A line that takes 2 ms a part, and 3 where it records; its last part it does not inspect."""
        assert recipe.is_relative_to(tmp_path)
        assert not runtime_dir.is_relative_to(tmp_path)
        records = load_recipe(recipe).recording is not None
        lines.append(records)
        if records:
            (folder := recipe.parent / "state" / "recordings").mkdir()
            write(folder / "bench.mcap", range(PARTS), frameless=-1, unanswered=-1)
        verdicts = [
            replace(verdict(i), trigger_ns=0, decided_ns=3_000_000 - 1_000_000 * (not records)) for i in range(PARTS)
        ]
        verdicts[-1] = replace(verdicts[-1], decision=Decision.UNINSPECTED, reason=Reason.OVERLOAD)
        return verdicts

    monkeypatch.setattr(record, "run_line", run_line)
    monkeypatch.setattr(record, "WARM", 1)
    found = record.run(frames=PARTS, rounds=2)
    assert lines == [False, True] * 2
    assert record.BUDGETS.keys() <= found.keys()
    assert (found["record.p99_without_ms"], found["record.p99_ms"], found["record.p99_vs_without"]) == (2, 3, 1.5)
    assert found["record.dropped"] == 2, "of all rounds"
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_replay_is_compared_with_the_engine_of_the_same_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an engine that does nothing, and a replay that says how fast it was."""
    monkeypatch.setattr(replay, "PARTS", 4)
    monkeypatch.setattr(
        replay,
        "write_recipe",
        lambda folder, **fields: write_recipe(folder, **fields | {"backend": "null", "bundle": "null", "plan": "x1"}),
    )
    replayed = []

    def replay_recording(path: Path, options: ReplayOptions) -> SimpleNamespace:
        replayed.append([e.number for e in Recording(path).events("cam") if isinstance(e, RecordedFrame)])
        assert options.calibration is not None
        return SimpleNamespace(figures=lambda: {"replay.parts_per_s": 10.0})

    monkeypatch.setattr(replay, "replay_recording", replay_recording)
    found = replay._round()
    assert replayed == [[0, 1, 2, 3]]
    assert found["replay.throughput_vs_engine"] == pytest.approx(10 * found["replay.engine_alone_ms"] / 1e3)
    assert found["replay.engine_alone_ms"] > 0


def test_seeks_and_recovery_give_every_figure_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "SEEKS", 2)
    found = recovery.measure_seek(tmp_path, nbytes=40_000_000) | recovery.measure_recovery(tmp_path, nbytes=40_000_000)
    assert recovery.BUDGETS.keys() <= found.keys()
    assert all(value > 0 for name, value in found.items() if name != "replay.recover_growth_mib")
    assert found["replay.recover_growth_mib"] <= 64, "whatever the file has"
    assert not list(tmp_path.iterdir())
