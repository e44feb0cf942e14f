"""A small fleet's recordings: of one line with the marker engine, good ones, one that disagrees, one that is broken."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from edge.messages import Verdict
from edge.recipes import load_recipe
from edge.recording import RecordedTrigger
from edge.replay.fleet import Row, ThisBox, Work, replay_row, run_fleet
from edge.replay.run import ReplayOptions
from edge.testing import RunningLine, calibrate_by_hand
from edge.verdict import Decision
from tests.replay.recording_helpers import rewriting
from tests.support import marker_recipe

__all__ = ["PARTS", "Fleet", "descendants", "record_fleet", "replay_work"]

PARTS = 6


@dataclass(frozen=True)
class Fleet:
    """Recordings, and what a replay of one after the other says of them."""

    folder: Path
    recordings: list[Path]
    serial: list[Row]

    @property
    def pattern(self) -> str:
        return str(self.folder / "*.mcap")

    @property
    def slow(self) -> Path:
        """A recording that takes a minute at its own speed."""
        return self.folder / "slow" / "slow.mcap"


def replay_work() -> Work:
    """Replays and compares with what was recorded."""
    return partial(replay_row, options=ReplayOptions(expected="recorded"))


def record_fleet(folder: Path) -> Fleet:
    """Run a line that records, and make recordings of that: a and d are as it was, in b the line had let all parts
    pass, c is no recording."""
    extra = 'recording = { folder = "rec", encoding = "png" }'
    recipe = marker_recipe(folder, parts=PARTS, mode="lossless", extra=extra)
    calibrate_by_hand(load_recipe(recipe), folder / "state")
    with tempfile.TemporaryDirectory(prefix="ml-") as sockets:
        with RunningLine(recipe, folder / "state", Path(sockets)) as line:
            assert line.wait() == 0, line.log.read_text()
    (recorded,) = (folder / "rec").glob("*.mcap")
    out = folder / "recordings"
    (out / "slow").mkdir(parents=True)
    paths = [out / f"{name}.mcap" for name in "abcd"]
    for same in paths[0], paths[3]:
        shutil.copyfile(recorded, same)
    _rewrite(recorded, paths[1], change=lambda v: replace(v, decision=Decision.PASS))
    paths[2].write_bytes(b"no recording")
    _rewrite(recorded, out / "slow" / "slow.mcap", slower_by_ns=10_000_000_000)
    return Fleet(out, paths, run_fleet(paths, ThisBox(replay_work(), 1)))


def descendants(pid: int) -> dict[int, str]:
    """Every process below this one, and its command line."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            found |= descendants(child)
    return found


def _rewrite(
    source: Path, out: Path, *, change: Callable[[Verdict], Verdict] = lambda v: v, slower_by_ns: int = 0
) -> None:
    """A copy in which the line said something else, or each part came so much later after the one before."""
    with rewriting(source, out) as (recording, copy):
        for station in recording.stations:
            for event in recording.events(station):
                at_ns = event.at_ns + slower_by_ns * event.number
                if isinstance(event, RecordedTrigger):
                    copy.trigger(station, event.number, at_ns, missed=event.missed)
                else:
                    copy.frame(station, event.number, at_ns, event.decode())
        for verdict in recording.verdicts():
            copy.verdict(change(verdict), verdict.decided_utc_ns)
