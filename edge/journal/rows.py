"""What one turn of the gate leaves in the journal."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence

from edge.journal.schema import Head, link
from edge.messages import Verdict, ViewResult

__all__ = ["write_turn"]


def write_turn(
    run: int,
    triggers: Iterable[Sequence[object]],
    late: Iterable[ViewResult],
    verdicts: Sequence[tuple[Verdict, bytes]],
    published: Head,
    db: sqlite3.Connection,
) -> Head:
    """Write one turn's rows, in the caller's transaction, in place of any verdict that was not published.

    `published`: the newest verdict that is final; the chain goes on from there. Returns the head once these are final.
    """
    db.execute("DELETE FROM verdicts WHERE seq > ?", (published.seq,))
    db.executemany("INSERT INTO triggers VALUES (?,?,?,?,?,?,?,?,?)", triggers)
    now_ns, utc_ns = time.monotonic_ns(), time.time_ns()
    db.executemany(
        "INSERT INTO late_results VALUES (?,?,?,?,?,?,?,?,?)",
        [
            (
                *(run, r.station, r.number, r.decision.value, r.reason and r.reason.value, r.score, r.threshold),
                *(now_ns, utc_ns),
            )
            for r in late
        ],
    )
    head, rows = published, []
    for verdict, payload in verdicts:
        head = Head(verdict.seq, link(head.chain, payload))
        rows.append((*columns_of(verdict), payload, head.chain))
    db.executemany(f"INSERT INTO verdicts VALUES ({','.join('?' * 16)})", rows)
    return head


def columns_of(verdict: Verdict) -> tuple[object, ...]:
    """What of a verdict stands in columns of its own, in their order, before payload and chain."""
    v = verdict
    return (
        *(v.seq, v.run, v.lane, v.part, v.part_id, v.decision.value, v.reason and v.reason.value, int(v.late)),
        *(v.score, v.threshold, v.trigger_ns, v.decided_ns, v.decided_utc_ns, v.topic_seq),
    )


COLUMNS = (
    *("seq", "run", "lane", "part", "part_id", "decision", "reason", "late"),
    *("score", "threshold", "trigger_ns", "decided_ns", "decided_utc_ns", "topic_seq"),
)
"""The names of `columns_of`."""
