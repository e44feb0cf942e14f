"""Journals as a gate leaves them, without a gate, and journals that somebody has tampered with."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from edge.journal import Head, Journal, write_turn
from edge.journal.heads import KeptHead
from edge.journal.schema import link, origin
from edge.messages import Verdict, View, ViewResult, encode
from edge.verdict import Decision

__all__ = ["HOUR_NS", "T0_NS", "keep_heads", "leave_journal", "rechain", "tamper", "verdict_of", "write_verdicts"]

T0_NS = 1_760_000_000_000_000_000  # 2025-10-09T08:53:20Z
HOUR_NS = 3_600_000_000_000


def verdict_of(
    seq: int, *, epoch: str, run: int = 1, lane: str = "a", part: int | None = None, **fields: object
) -> Verdict:
    """A verdict as good as any; one per hour, every fifth part a reject."""
    reject = seq % 5 == 0
    known: dict[str, object] = {
        "line": "test",
        "lane": lane,
        "part": seq if part is None else part,
        "part_id": 60_000 + seq,
        "count": None,
        "decision": Decision.REJECT if reject else Decision.PASS,
        "reason": None,
        "late": False,
        "epoch": epoch,
        "seq": seq,
        "topic_seq": seq,
        "run": run,
        "score": 0.75 if reject else 0.25,
        "threshold": 0.5,
        "views": [View(lane, Decision.PASS, None, 0.25, 0.5, [], None, "", seq, "b", "c", {"plan": "x1"}, [1, 2])],
        "simulated": True,
        "recipe": "r",
        "boot_id": "boot",
        "trigger_ns": seq,
        "deadline_ns": seq + 5,
        "decided_ns": seq + 2,
        "trigger_utc_ns": T0_NS + seq * HOUR_NS,
        "decided_utc_ns": T0_NS + seq * HOUR_NS,
    }
    return Verdict(**(known | fields))  # type: ignore[arg-type]


def leave_journal(path: Path, count: int, *, runs: int = 1, open_triggers: int = 0) -> list[Head]:
    """A journal of a stopped line with `count` verdicts in `runs` runs; all its heads, of verdict 0 first."""
    with closing(Journal(path, commit_interval_ms=100, reserve_mib=1)) as journal:
        return write_verdicts(journal, count, runs=runs, open_triggers=open_triggers)


def write_verdicts(journal: Journal, count: int, *, runs: int = 1, open_triggers: int = 0) -> list[Head]:
    """Go on with a journal."""
    heads = [journal.head]
    known = journal._db.execute("SELECT coalesce(max(run), 0) FROM runs").fetchone()[0]
    numbers = [journal.run(1000 + known + i, f"recipe{known + i}", "{}") for i in range(runs)]
    for i in range(count):
        seq = journal.head.seq + 1
        run = numbers[i * runs // count]
        verdict = verdict_of(seq, epoch=journal.epoch, run=run, lane="ab"[seq % 2])
        row = (run, verdict.lane, seq, verdict.lane, seq, verdict.decided_utc_ns, False, None, verdict.part_id)
        late = [ViewResult(verdict.lane, seq, seq, Decision.PASS, score=0.5)] if seq % 7 == 0 else []
        turn = partial(write_turn, run, [row], late, [(verdict, encode(verdict))], journal.head)
        journal.head = journal.write(turn)
        heads.append(journal.head)
    rows = [(numbers[-1], "a", 10**6 + i, "a", i, T0_NS, False, None, None) for i in range(open_triggers)]
    journal.write(partial(write_turn, numbers[-1], rows, [], [], journal.head))
    return heads


def keep_heads(path: Path, epoch: str, heads: list[Head]) -> Path:
    """Heads as somebody kept them on another machine."""
    kept = [KeptHead("2026-01-01T00:00:00Z", epoch, h.seq, h.chain.hex()) for h in heads]
    path.write_text("".join(f"{h.utc} {h.epoch} {h.seq} {h.chain}\n" for h in kept))
    return path


@contextlib.contextmanager
def tamper(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of somebody who may write everything."""
    with closing(sqlite3.connect(path)) as db, db:
        yield db


def rechain(db: sqlite3.Connection) -> None:
    """What a forger does who knows how the chain is made."""
    chain = origin(db).chain
    for seq, payload in db.execute("SELECT seq, payload FROM verdicts ORDER BY seq").fetchall():
        chain = link(chain, payload)
        db.execute("UPDATE verdicts SET chain = ? WHERE seq = ?", (chain, seq))
