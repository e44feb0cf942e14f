"""What a pool is given to do in tests, instead of a replay. Imported by the processes of the pool."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edge.replay import on_ray
from edge.replay.fleet import Row, State, Work, run_fleet
from edge.replay.on_ray import ClusterError, OnRay

__all__ = ["answer", "die", "die_once", "leave_a_child", "refusals", "replay_on_ray"]


def answer(recording: Path) -> Row:
    return Row(str(recording), State.SAME, notes=(tempfile.gettempdir(),))


def die(recording: Path) -> Row:
    os.kill(os.getpid(), signal.SIGKILL)
    return answer(recording)


def die_once(recording: Path) -> Row:
    """Dies at the first try; `recording` is a file that does not exist before."""
    if not recording.exists():
        recording.touch()
        die(recording)
    return answer(recording)


def leave_a_child(recording: Path) -> Row:
    """Starts a process that dies with this one, as a line's do, says which, and never ends."""
    code = f"from edge.parent import die_with_parent; die_with_parent({os.getpid()})\nimport time; time.sleep(1000)"
    child = subprocess.Popen([sys.executable, "-c", code])
    recording.write_text(str(child.pid))
    child.wait()
    return answer(recording)


def replay_on_ray(recordings: list[Path], work: Work, address: str) -> list[Row]:
    """What a command with --ray does."""
    return run_fleet(recordings, OnRay(work, address))


def refusals(address: str) -> list[str]:
    """What is said of a cluster with another maskline, another Ray, and nodes that are too small."""
    import ray

    said = []
    for module, name, value in (on_ray, "__version__", "99.0"), (ray, "__version__", "1.0"), (on_ray, "CORES", 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, value)
            with pytest.raises(ClusterError) as refused:
                OnRay(answer, address)
        said.append(str(refused.value))
    return said
