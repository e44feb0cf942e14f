"""The journal of a real line, while it runs and after its gate was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge.journal.heads import heads_path, read_heads
from edge.journal.verify import verify
from edge.paths import journal_path
from edge.verdict import GateState
from tests.listeners import Listener
from tests.support import RunningLine, calibrate_marker, marker_recipe, wait_until


@pytest.mark.line
def test_a_line_whose_gate_is_killed_keeps_a_journal_that_verifies_all_the_while(
    tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKLINE_RUNTIME_DIR", str(runtime_dir))
    storm = "supervision = { restarts = 1000, window_s = 60 }"
    recipe = marker_recipe(tmp_path, stations=2, parts=None, rate_hz=50, deadline_ms=500, extra=storm)
    state = tmp_path / "state"
    path = journal_path(state)
    calibrate_marker(recipe, state)

    def maskline(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edge.cli", "journal", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    with RunningLine(recipe, state, runtime_dir) as line, Listener(line.endpoint) as heard:
        wait_until(lambda: len(heard.verdicts) > 50)
        for _ in range(3):
            said, gate = len(heard.verdicts), line.children()["gate"]
            os.kill(gate, signal.SIGKILL)
            wait_until(lambda s=said: len(heard.verdicts) > s + 50)
            found = verify(path, [heads_path(path)])
            assert found.live
            assert found.ok, found.troubles
        done = maskline("verify", recipe, "--state-dir", state)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "a gate writes it" in done.stdout
        done = maskline(
            "retire", recipe, "--state-dir", state, "--before", "2100-01-01T00:00Z", "--to", tmp_path / "old"
        )
        assert done.returncode == 75, done.stderr
        assert not (tmp_path / "old").exists()
        wait_until(lambda: heard.state is GateState.READY)
        assert line.stop() == 0
        beats = [(b.seq, b.chain) for b in heard.beats if b.seq]
        log = line.log
    told = tmp_path / "beats.heads"
    epoch = heard.beats[-1].epoch
    told.write_text("".join(f"2026-01-01T00:00:00Z {epoch} {seq} {chain}\n" for seq, chain in beats))
    found = verify(path, [heads_path(path), log, told])
    assert found.ok, found.troubles
    assert found.heads[0].matched >= 2
    assert [s.matched for s in found.heads] == [len(list(read_heads(p))) for p in (heads_path(path), log, told)]
    assert found.proved == found.last == max(v.seq for v in heard.verdicts)
