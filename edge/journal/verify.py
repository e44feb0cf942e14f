"""Whether a journal is still what the gate wrote, as far as the heads reach that somebody kept.

Who can write the journal can also write its chain anew; only a head that was kept elsewhere finds that. And behind the
newest head that anyone kept, nothing can be proved.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from edge.journal.connection import is_written
from edge.journal.findings import HeadsSeen, Tombstone, Verified, utc_text
from edge.journal.heads import KeptHead, heads_path, read_heads
from edge.journal.rows import COLUMNS, columns_of
from edge.journal.schema import Head, epoch_of, link, newest, open_for_reading, origin, skipped
from edge.journal.select import Row, pages
from edge.messages import ProtocolError, Verdict, decode

__all__ = ["file_sha256", "verify"]

_PAYLOAD, _CHAIN = len(COLUMNS), len(COLUMNS) + 1


def file_sha256(path: Path) -> str:
    """The hash of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(path: Path, heads: Iterable[Path] = (), segments: Iterable[Path] = (), upto: int | None = None) -> Verified:
    """Hold a journal, or a retired segment, against its own chain, its columns, its triggers, and kept `heads`.

    `segments`: files of retired verdicts, to be held against their tombstones. `upto`: what heads say of later records
    is no matter here. Raises ResourceError when a file is not
    there or no journal of this schema; what is wrong with one that is goes into `Verified.troubles`.
    """
    kept = {source: [h for h in read_heads(source) if upto is None or h.seq <= upto] for source in heads}
    found = Verified(path, live=is_written(path.with_suffix(".lock")))
    with contextlib.closing(open_for_reading(path)) as db:
        db.isolation_level = None
        try:
            found.epoch = epoch_of(db)
            found.tombstones = _tombstones(db)
            found.skipped = skipped(db)
            _Walk(db, found, kept).walk()
            _triggers(db, found)
        except (sqlite3.Error, TypeError) as error:
            found.trouble(f"the file cannot be read any further: {error}")
    _segments(found, list(segments), list(kept))
    return found


def _tombstones(db: sqlite3.Connection) -> list[Tombstone]:
    rows = db.execute(
        "SELECT first_seq, last_seq, chain_before, chain_after, file, sha256, who, utc_ns FROM retired "
        "ORDER BY first_seq"
    )
    return [Tombstone(*row) for row in rows]


def named(row: Row) -> str:
    """A record, so that people find it."""
    seq, _, lane, part, part_id = row[:5]
    called = "" if part_id is None else f", id {part_id}"
    return f"record {seq} (lane {lane}, part {part}{called}, {utc_text(row[12])})"


def _bytes(value: object) -> bytes:
    """What should be bytes, and is something else where somebody wrote it."""
    return value if isinstance(value, bytes) else repr(value).encode()


class _Walk:
    """One pass over the verdicts, by seq."""

    def __init__(self, db: sqlite3.Connection, found: Verified, kept: dict[Path, list[KeptHead]]) -> None:
        self._db, self._found = db, found
        self._origin = self._follow_tombstones()
        self._heads: dict[int, list[tuple[HeadsSeen, KeptHead]]] = {}
        self._last: Row | None = None
        self._proved = self._origin.seq
        for source, heads in kept.items():
            seen = HeadsSeen(str(source))
            found.heads.append(seen)
            for head in heads:
                if head.epoch != found.epoch:
                    seen.other_epochs += 1
                else:
                    self._heads.setdefault(head.seq, []).append((seen, head))

    def _follow_tombstones(self) -> Head:
        """Where the verdicts that are there must go on."""
        before = Head(0, hashlib.sha256(self._found.epoch.encode()).digest())
        for stone in self._found.tombstones:
            if (stone.first, stone.chain_before) != (before.seq + 1, before.chain):
                self._found.trouble(
                    f"the tombstone of records {stone.first} to {stone.last} does not continue record {before.seq}"
                )
            before = Head(stone.last, stone.chain_after)
        return before

    def walk(self) -> None:
        found, origin = self._found, self._origin
        want, chains = origin.seq + 1, {origin.chain}
        self._check_heads(origin.seq, origin.chain)
        for rows in pages(self._db, f"{', '.join(COLUMNS)}, payload, chain"):
            for row in rows:
                seq, payload, chain = row[0], _bytes(row[_PAYLOAD]), _bytes(row[_CHAIN])
                if seq <= origin.seq:
                    found.left_over += 1
                    continue
                if seq != want:
                    want = self._behind_skipped(want)
                if seq != want:
                    self._missing(want, seq - 1)
                    chains = set()
                links = {link(c, payload) for c in chains}
                if chains and chain not in links:
                    found.trouble(
                        f"{named(row)}: it was changed, or put in another's place: its payload and the chain before it "
                        "do not give its chain"
                    )
                self._check_row(row)
                self._check_heads(seq, chain)
                # Behind a break either what is stored or what should be goes on: it says which of the two was changed.
                chains = {chain} if not chains or chain in links else {chain, *links}
                want, self._last = seq + 1, row
        if self._last:
            found.last, found.last_utc_ns = self._last[0], self._last[12]
        self._beyond(self._behind_skipped(want) - 1)
        found.proved = self._proved

    def _behind_skipped(self, want: int) -> int:
        """The number that follows, where the next ones were skipped. A gate that has given none of its own yet tells
        the last of them with the chain of the verdict before."""
        for first, last in self._found.skipped:
            if first == want:
                self._check_heads(last, _bytes(self._last[_CHAIN]) if self._last else self._origin.chain)
                want = last + 1
        return want

    def _missing(self, first: int, last: int) -> None:
        what = f"record {first} is" if first == last else f"records {first} to {last} are"
        self._found.trouble(f"{what} missing, behind {named(self._last) if self._last else 'the beginning'}")

    def _check_row(self, row: Row) -> None:
        found = self._found
        if not found.records:
            found.first, found.first_utc_ns = row[0], row[12]
        found.records += 1
        try:
            verdict: Verdict = decode(row[_PAYLOAD], Verdict)
        except (ProtocolError, TypeError) as error:
            found.trouble(f"{named(row)}: its payload is no verdict: {error}")
            return
        if verdict.epoch != found.epoch:
            found.trouble(f"{named(row)}: it is of another journal, epoch {verdict.epoch}")
        for name, column, said in zip(COLUMNS, row, columns_of(verdict), strict=False):
            if column != said:
                found.trouble(f"{named(row)}: its column {name} says {column!r}, its payload {said!r}")
        key = "SELECT 1 FROM triggers WHERE run = ? AND station = ? AND number = ?"
        if not any(self._db.execute(key, (verdict.run, v.station, verdict.part)).fetchone() for v in verdict.views):
            found.trouble(f"{named(row)}: its trigger is missing")

    def _check_heads(self, seq: int, chain: bytes) -> None:
        for seen, head in self._heads.pop(seq, []):
            if bytes.fromhex(head.chain) == chain:
                seen.matched, seen.newest, self._proved = seen.matched + 1, head, max(self._proved, seq)
            else:
                self._found.trouble(
                    f"{seen.source}: the head of {head.utc} has another chain for record {seq}: of the records "
                    f"{self._proved + 1} to {seq} at least one was changed, and the chain written anew behind it"
                )

    def _beyond(self, last: int) -> None:
        """Heads of verdicts that are not there: before the first, or behind the last."""
        cut = lost = 0
        for seq in sorted(self._heads):
            for seen, _ in self._heads[seq]:
                if seq <= self._origin.seq:
                    seen.not_reached += 1
                elif seq > last:
                    cut = max(cut, seq)
                elif any(first <= seq <= end for first, end in self._found.skipped):
                    lost = max(lost, seq)
        if cut:
            seen, head = self._heads[cut][0]
            where = f"behind {named(self._last)}" if self._last else "all that there was"
            self._found.trouble(
                f"records {last + 1} to {cut} are cut off, {where}: {seen.source} has the head of record {cut}, "
                f"{head.utc}"
            )
        if lost:
            seen, head = self._heads[lost][0]
            self._found.trouble(
                f"{seen.source} has the head of record {lost}, {head.utc}, which is not there: a power cut took it, or "
                "it was cut off"
            )
        for seen in self._found.heads:
            known = seen.matched or seen.not_reached or self._found.tombstones
            if seen.other_epochs and not known and not self._found.troubles:
                self._found.trouble(
                    f"{seen.source}: none of its heads is of this journal, epoch {self._found.epoch}: it was put in "
                    "another's place, or these are another line's heads"
                )


def _triggers(db: sqlite3.Connection, found: Verified) -> None:
    """Each trigger has its verdict. Those of the newest run may be open: the gate, or the next one, answers them."""
    newest_run = db.execute("SELECT max(run) FROM runs").fetchone()[0]
    run, station, number = -(1 << 63), "", -1
    while True:
        rows = db.execute(
            "SELECT t.run, t.station, t.number, t.lane, t.seen_utc_ns, "
            "EXISTS (SELECT 1 FROM verdicts v WHERE v.run = t.run AND v.lane = t.lane AND v.part = t.number) "
            "FROM triggers t WHERE (t.run, t.station, t.number) > (?, ?, ?) "
            "ORDER BY t.run, t.station, t.number LIMIT 5000",
            (run, station, number),
        ).fetchall()
        for run, station, number, lane, utc_ns, answered in rows:
            found.triggers += 1
            if answered:
                continue
            if run == newest_run:
                found.open_triggers += 1
            else:
                found.trouble(
                    f"trigger {number} of station {station} (run {run}, lane {lane}, {utc_text(utc_ns)}) has no "
                    "verdict, and its run is over"
                )
        if len(rows) < 5000:
            return


def _segments(found: Verified, paths: list[Path], heads: list[Path]) -> None:
    stones = {stone.sha256: stone for stone in found.tombstones}
    for path in paths:
        stone, own = stones.get(file_sha256(path)), heads_path(path)
        segment = verify(path, [*heads, *([own] if own.is_file() else [])], upto=stone.last if stone else None)
        found.segments.append(segment)
        if stone is None:
            segment.trouble(f"{path}: no tombstone of {found.path} has the hash of this file: one of them was changed")
            continue
        with contextlib.closing(open_for_reading(path)) as db:
            if (origin(db), newest(db)) != (
                Head(stone.first - 1, stone.chain_before),
                Head(stone.last, stone.chain_after),
            ):
                segment.trouble(f"{path}: its chain is not that of its tombstone")
