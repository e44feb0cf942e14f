"""Resident memory of each process of a line over many frames: after warm-up it must not grow."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from edge.bench import Budget, Progress
from edge.bench.pipeline import write_recipe
from edge.testing import RunningLine

__all__ = ["BUDGETS", "run"]

BUDGETS = {"pipeline.rss_slope_mib_per_1000": Budget(at_most=0.02)}

FRAMES, RATE_HZ, WARM_UP = 40_000, 250.0, 20_000
"""The channel keeps the newest 4,096 verdicts, and its allocator settles some ten thousand later."""
_PAGE_MIB = os.sysconf("SC_PAGESIZE") / 2**20


def run(progress: Progress = lambda _: None, frames: int = FRAMES) -> dict[str, float]:
    """The steepest slope of all processes, and the resident memory of each at the end.

    Frames are small, so that many pass: what leaks leaks per frame, not per pixel. Shared memory counts as resident
    from the first touch on; that is over when the warm-up is.
    """
    samples: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="ml-") as folder:
        tiling = "resize = 1.0"
        recipe = write_recipe(Path(folder), width=224, height=224, tiling=tiling, rate_hz=RATE_HZ, parts=frames)
        with RunningLine(recipe, Path(folder) / "state", Path(folder) / "run") as line:
            start = time.monotonic()
            while line.popen.poll() is None:
                for name, pid in {**line.children(), "supervisor": line.popen.pid}.items():
                    if (now_mib := _resident_mib(pid)) is not None:
                        samples.setdefault(name, []).append((time.monotonic() - start, now_mib))
                progress(f"about {min(frames, int((time.monotonic() - start) * RATE_HZ))} of {frames} frames")
                time.sleep(1.0)
            if line.popen.returncode != 0:
                raise RuntimeError(f"the line failed:\n{line.log.read_text()}")
    slopes = {f"pipeline.rss_slope_{name}_mib_per_1000": _slope_per_1000(values) for name, values in samples.items()}
    resident = {f"pipeline.rss_{name}_mib": values[-2][1] for name, values in samples.items()}
    return {"pipeline.rss_slope_mib_per_1000": max(slopes.values()), **slopes, **resident}


def _slope_per_1000(samples: list[tuple[float, float]]) -> float:
    """MiB per 1,000 frames, by least squares over what follows the warm-up."""
    late = np.array([s for s in samples[:-2] if s[0] > WARM_UP / RATE_HZ])
    per_second = np.polyfit(late[:, 0], late[:, 1], 1)[0]
    return float(per_second / RATE_HZ * 1000)


def _resident_mib(pid: int) -> float | None:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_MIB
    except (FileNotFoundError, ProcessLookupError):
        return None
