"""What is in a journal, as CSV or JSON lines. The same journal gives the same bytes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import msgpack

from edge.errors import ResourceError
from edge.journal.findings import utc_text
from edge.journal.select import Row, Selection, pages
from edge.messages import Verdict, field_names

__all__ = ["export", "record"]

_COLUMNS = {
    "triggers": "run, station, number, lane, at_ns, seen_utc_ns, missed, count, part_id",
    "late_results": "run, station, number, decision, reason, score, threshold, arrived_ns, arrived_utc_ns",
}
_TIME = {"triggers": "seen_utc_ns", "late_results": "arrived_utc_ns"}
PAGE = 5_000


def record(payload: bytes, chain: bytes) -> dict[str, Any]:
    """A verdict with all its fields as they were published, its time in words (`utc`) and its chain (hex).

    Raises ResourceError for a payload that is none.
    """
    try:
        fields = msgpack.unpackb(payload)
        utc = utc_text(fields["decided_utc_ns"])
        del fields["v"], fields["type"]
    except Exception as error:  # msgpack raises ValueError, its own classes and, on deep nesting, RecursionError
        raise ResourceError(
            f"a verdict's payload cannot be read: {error}; `maskline journal verify` says more"
        ) from error
    return {"utc": utc, **fields, "chain": chain.hex()}


def export(db: sqlite3.Connection, table: str, out: Path, chosen: Selection | None = None) -> int:
    """Write `verdicts`, `triggers` or `late_results` to a file, .csv or .jsonl: all of it is there, or nothing.

    `chosen` selects; of triggers and late results by time and run alone. Returns the number of records. Raises
    ResourceError.
    """
    chosen = chosen or Selection()
    if out.suffix not in (".csv", ".jsonl"):
        raise ResourceError(f"{out}: expected a name that ends in .csv or .jsonl")
    if table == "verdicts":
        names, records = ["utc", *field_names(Verdict), "chain"], _verdicts(db, chosen)
    else:
        names, records = ["utc", *_COLUMNS[table].split(", ")], _others(db, table, chosen)
    try:
        with _durable(out) as file:
            return _write_csv(file, names, records) if out.suffix == ".csv" else _write_lines(file, records)
    except OSError as error:
        raise ResourceError(f"{out}: cannot write this file: {error.strerror}") from error


def _verdicts(db: sqlite3.Connection, chosen: Selection) -> Iterator[dict[str, Any]]:
    for page in pages(db, "payload, chain", chosen):
        for payload, chain in page:
            yield record(payload, chain)


def _others(db: sqlite3.Connection, table: str, chosen: Selection) -> Iterator[dict[str, Any]]:
    """Triggers by run, station and number; late results as they came."""
    names = _COLUMNS[table].split(", ")
    key = "run, station, number" if table == "triggers" else "rowid"
    last: Row = (-(1 << 63), "", -1) if table == "triggers" else (0,)
    while True:
        rows = db.execute(
            f"SELECT {_COLUMNS[table]}, {key} FROM {table} WHERE ({key}) > ({', '.join('?' * len(last))}) "
            f"ORDER BY {key} LIMIT {PAGE}",
            last,
        ).fetchall()
        for row in rows:
            fields = dict(zip(names, row, strict=False))
            utc_ns = fields[_TIME[table]]
            if (
                (chosen.run is None or fields["run"] == chosen.run)
                and (chosen.since_ns is None or utc_ns >= chosen.since_ns)
                and (chosen.until_ns is None or utc_ns < chosen.until_ns)
            ):
                yield {"utc": utc_text(utc_ns), **fields}
        if len(rows) < PAGE:
            return
        last = rows[-1][len(names) :]


def _write_csv(file: IO[bytes], names: list[str], records: Iterable[dict[str, Any]]) -> int:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    count = 0
    for fields in records:
        writer.writerow([_cell(fields.get(name)) for name in names])
        count += 1
    text.detach()
    return count


def _cell(value: object) -> object:
    return json.dumps(value, separators=(",", ":")) if isinstance(value, (list, dict, bool)) else value


def _write_lines(file: IO[bytes], records: Iterable[dict[str, Any]]) -> int:
    count = 0
    for fields in records:
        file.write(json.dumps(fields, separators=(",", ":")).encode() + b"\n")
        count += 1
    return count


@contextlib.contextmanager
def _durable(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its place, whole and on disk, once the block has ended well. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put_in_place(Path(name), path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def put_in_place(made: Path, path: Path) -> None:
    """Give a file that is on disk its name, which it keeps through a power cut. Raises OSError."""
    os.replace(made, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
