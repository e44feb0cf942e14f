"""A line that records against the same line that does not: what the disk costs the verdicts, and whether all of it is
recorded.

Frames of 2448x2048 mono at 20 per second, as in `maskline bench pipeline`, raw onto the disk of the current folder,
beside the journal: 100 MB/s, and record slots for 1.6 s of a disk that stands. (The temporary folder may lie in memory,
which is no disk.) Runs with and without take turns; the medians count, and every drop.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from edge.bench import Budget, Progress, percentile
from edge.bench.pipeline import RATE_HZ, run_line, write_recipe
from edge.recording import RecordedFrame, RecordedTrigger, Recording
from edge.verdict import Decision

__all__ = ["BUDGETS", "run"]

BUDGETS = {
    "record.dropped": Budget(at_most=0),
    "record.p99_vs_without": Budget(at_most=1.3),
}
SECTION = '[recording]\nencoding = "raw"\nslots = 32\n'
ROUNDS, FRAMES, WARM = 5, 200, 5


def run(progress: Progress = lambda _: None, frames: int = FRAMES, rounds: int = ROUNDS) -> dict[str, float]:
    """The median of some rounds; `record.dropped` counts frames, answers and verdicts that are missing in any."""
    found = []
    for i in range(rounds):
        progress(f"round {i + 1} of {rounds}")
        found.append(_round(frames))
    figures = {key: statistics.median(f[key] for f in found) for key in found[0]}
    return figures | {"record.dropped": sum(f["record.dropped"] for f in found)}


def _round(frames: int) -> dict[str, float]:
    without, _ = _line(frames, "")
    recording, files = _line(frames, SECTION)
    return {
        "record.p50_without_ms": percentile(without, 50),
        "record.p50_ms": percentile(recording, 50),
        "record.p99_without_ms": percentile(without, 99),
        "record.p99_ms": percentile(recording, 99),
        "record.p99_vs_without": percentile(recording, 99) / percentile(without, 99),
        **files,
    }


def _line(frames: int, section: str) -> tuple[list[float], dict[str, float]]:
    """Milliseconds from trigger to verdict, and what was recorded. The line has no other work."""
    with (
        tempfile.TemporaryDirectory(prefix="maskline-bench-", dir=Path.cwd()) as folder,
        tempfile.TemporaryDirectory(prefix="ml-") as runtime_dir,
    ):
        recipe = write_recipe(Path(folder), rate_hz=RATE_HZ, parts=frames)
        text = recipe.read_text(encoding="utf-8")
        recipe.write_text(text.replace("[[stations]]", f"{section}[[stations]]"), encoding="utf-8")
        verdicts = run_line(recipe, frames / RATE_HZ + 60, Path(runtime_dir))
        answered = [v for v in verdicts if v.decision is not Decision.UNINSPECTED]
        missing = frames - len(answered)
        files = _recorded(Path(folder) / "state" / "recordings", frames, missing) if section else {}
    return [(v.decided_ns - v.trigger_ns) / 1e6 for v in answered[WARM:]], files


def _recorded(folder: Path, frames: int, uninspected: int) -> dict[str, float]:
    """What the files of a run hold, read back, against what passed by."""
    found = {"frame": 0, "verdict": 0, "result": 0, "trigger": 0}
    nbytes = 0
    for path in folder.glob("*.mcap"):
        recording = Recording(path)
        nbytes += path.stat().st_size
        events = [type(e) for station in recording.stations for e in recording.events(station)]
        found["frame"] += events.count(RecordedFrame)
        found["trigger"] += events.count(RecordedTrigger)
        found["verdict"] += sum(1 for _ in recording.verdicts())
        found["result"] += sum(1 for _ in recording.results())
    missing = sum(frames - count for count in found.values())
    return {"record.dropped": missing + uninspected, "record.mb_per_s": nbytes / 1e6 / (frames / RATE_HZ)}
