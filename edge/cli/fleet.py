"""`maskline replay` with several recordings, or on a Ray cluster. Thin, as `edge.cli` is."""

from __future__ import annotations

import glob
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import MasklineError

if TYPE_CHECKING:
    from rich.console import Console

    from edge.replay.fleet import Pool, Row, Work
    from edge.replay.run import ReplayOptions

__all__ = ["recording_paths", "replay_fleet", "require_one"]

REPORT = Path("replays.txt")


def recording_paths(given: Sequence[str]) -> list[Path]:
    """The files that are named, or that match: `recordings/*.mcap`, in order of their names. Raises MasklineError."""
    paths: list[Path] = []
    for name in given:
        found = [Path(name)] if Path(name).exists() or not glob.has_magic(name) else []
        found = found or [Path(p) for p in sorted(glob.glob(name, recursive=True))]
        if not found:
            raise MasklineError(f"{name}: no file matches; name recordings, such as 'recordings/*.mcap'")
        paths += found
    return list(dict.fromkeys(paths))


def require_one(**options: object) -> None:
    """Raise MasklineError for an option that is set, and is for a single recording."""
    if named := next((name for name, value in options.items() if value), None):
        raise MasklineError(f"--{named.replace('_', '-')} is for one recording on this box; name one, and no --ray")


def replay_fleet(
    recordings: Sequence[Path],
    options: ReplayOptions,
    *,
    process: str | None,
    what_if: bool,
    ray: str | None,
    workers: int | None,
    report: Path | None,
    json_path: Path | None,
    console: Console,
) -> None:
    """Replay them all, print a summary and write one report. Raises MasklineError when one is not as it should be."""
    from rich.markup import escape

    from edge.bench import write_json
    from edge.paths import write_durably
    from edge.replay.fleet import replay_row
    from edge.replay.fleet_report import figures, report_text, summary_lines

    report, began = report or REPORT, time.monotonic()
    work = partial(replay_row, options=options, process=process, what_if=what_if)
    rows = _rows([r.absolute() for r in recordings], _pool(work, ray, workers), console)
    for line in summary_lines(rows):
        console.print(escape(line), highlight=False)
    try:
        write_durably(report, report_text(rows).encode())
    except OSError as error:
        raise MasklineError(f"{report}: cannot write the report: {error.strerror or error}") from error
    console.print(f"Report: {report}", highlight=False)
    if json_path:
        write_json(json_path, figures(rows, time.monotonic() - began))
    if bad := sum(not r.state.good for r in rows):
        raise MasklineError(
            f"{bad} of {len(rows)} recordings are not as expected, or could not be compared or replayed: {report}"
        )


def _pool(work: Work, ray: str | None, workers: int | None) -> Pool:
    if ray is not None:
        from edge.replay.on_ray import OnRay

        return OnRay(work, ray, workers)
    from edge.replay.fleet import ThisBox

    return ThisBox(work, workers)


def _rows(recordings: Sequence[Path], pool: Pool, console: Console) -> list[Row]:
    from calib.run import progress_bars
    from edge.replay.fleet import run_fleet

    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # as Ctrl-C: nothing is left
    try:
        with progress_bars(console) as bars:
            bar = bars.add_task("replaying", total=len(recordings))
            return run_fleet(recordings, pool, lambda row: bars.advance(bar))
    finally:
        signal.signal(signal.SIGTERM, before)
