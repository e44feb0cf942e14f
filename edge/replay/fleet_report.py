"""The account of a fleet's replays: for the eye, for a file, for `--json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from edge.replay.fleet import Row, State

__all__ = ["figures", "report_text", "summary_lines"]

SHOWN = 20
"""Recordings that are named on the terminal."""


def summary_lines(rows: Sequence[Row]) -> list[str]:
    """How many are how; then the first `SHOWN` that are not as they should be, a line each."""
    states = Counter(r.state for r in rows)
    said: Counter[str] = sum((Counter(dict(r.decisions)) for r in rows), Counter())
    lines = [
        f"{len(rows)} recordings: " + ", ".join(f"{states[s]} {s.value}" for s in State if states[s]),
        f"{sum(r.parts for r in rows)} parts: " + ", ".join(f"{count} {name}" for name, count in sorted(said.items())),
    ]
    if turned := sum(r.turned for r in rows):
        lines.append(f"{turned} parts change side")
    if again := sum(r.tries - 1 for r in rows):
        lines.append(f"{again} replays were started again, because their process had died")
    bad = [r for r in rows if not r.state.good]
    lines += [f"  {_line(r, _where(rows))}" for r in bad[:SHOWN]]
    return lines + ([f"  and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else [])


def report_text(rows: Sequence[Row]) -> str:
    """Everything: a line per recording, then the differences of each that has any."""
    return "\n".join(_report(rows)) + "\n"


def figures(rows: Sequence[Row], seconds: float) -> dict[str, float]:
    """For `--json`: one flat object. `seconds`: how long it all took."""
    found = {f"fleet.{s.value}": float(sum(r.state is s for r in rows)) for s in State}
    return {
        "fleet.recordings": float(len(rows)),
        **found,
        "fleet.parts": float(sum(r.parts for r in rows)),
        "fleet.compared": float(sum(r.compared for r in rows)),
        "fleet.different_parts": float(sum(r.different for r in rows)),
        "fleet.apart": float(sum(r.apart for r in rows)),
        "fleet.turned": float(sum(r.turned for r in rows)),
        "fleet.started_again": float(sum(r.tries - 1 for r in rows)),
        "fleet.largest_score_difference": max((r.largest_score_difference for r in rows), default=0.0),
        "fleet.seconds": seconds,
        "fleet.replay_seconds": sum(r.seconds for r in rows),
    }


def _report(rows: Sequence[Row]) -> Iterator[str]:
    yield from summary_lines(rows)[:2]
    yield ""
    for row in rows:
        yield _line(row, _where(rows))
        yield from (f"  {note}" for note in row.notes)
    for row in rows:
        if row.differences:
            yield f"\n{row.differences.rstrip()}"


def _where(rows: Sequence[Row]) -> bool:
    """Whether it must be said which machine a replay ran on."""
    return len({r.machine for r in rows if r.machine}) > 1


def _line(row: Row, where: bool) -> str:
    """`different: a.mcap: 50 parts: 48 PASS, 2 REJECT; 3 of 50 different; answers 0123456789abcdef`"""
    if row.said:
        why = row.said if row.said.startswith(row.recording) else f"{row.recording}: {row.said}"
        on = f" (on {row.machine})" if where and row.machine else ""
        return f"{row.state.value}: {why}{on}" + (f" (tried {row.tries} times)" if row.tries > 1 else "")
    told = [f"{row.parts} parts: " + ", ".join(f"{count} {name}" for name, count in row.decisions)]
    if row.compared:
        told.append(f"{row.different} of {row.compared} different")
    if row.apart:
        told.append(f"{row.apart} apart")
    if row.turned:
        told.append(f"{row.turned} change side")
    return f"{row.state.value}: {row.recording}: {'; '.join(told)}; answers {row.answers[:16]}"
