"""`maskline journal ...`: read a line's journal while it runs or not, prove it, and retire what is old.

Thin, as `edge.cli` is.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edge.cli.arguments import StateDir
from edge.errors import LineBusyError, MasklineError

if TYPE_CHECKING:
    from edge.journal.select import Row

__all__ = ["journal"]

journal = typer.Typer(no_args_is_help=True, help="Read a line's journal, prove it, retire what is old.")

JournalArgument = Annotated[
    str,
    typer.Argument(help="A recipe: its line's journal; or the file of a journal or a segment.", metavar="RECIPE|FILE"),
]
Json = Annotated[bool, typer.Option("--json", help="JSON lines with all fields.")]
Since = Annotated[str | None, typer.Option(help="2026-11-22T10:00Z; without Z or an offset: local time.")]
Until = Annotated[str | None, typer.Option(help="Before this time.")]
Run = Annotated[int | None, typer.Option(help="Number of the line's start.")]

_SHOWN = "seq, decided_utc_ns, run, lane, part, part_id, decision, reason, late, score, threshold"
_HEADER = (
    f"{'utc':27} {'seq':>9} {'run':>4} {'lane':12} {'part':>9} {'id':>9}  {'verdict':28} {'score':>8} {'limit':>8}"
)
_FOLLOW_S = 0.25
_TOLD = 500
"""A gate may take back verdicts that it has not published: so many are looked at again."""


@contextlib.contextmanager
def _opened(name: str, state_dir: Path | None) -> Iterator[sqlite3.Connection]:
    from edge.journal import open_for_reading

    path = _path(name, state_dir)
    with contextlib.closing(open_for_reading(path)) as db:
        db.isolation_level = None
        try:
            yield db
        except sqlite3.Error as error:
            raise MasklineError(f"{path}: cannot be read: {error}; `maskline journal verify` says more") from error


def _path(name: str, state_dir: Path | None) -> Path:
    if name.endswith(".sqlite"):
        return Path(name)
    from edge.paths import journal_path
    from edge.paths import state_dir as default
    from edge.recipes import load_recipe

    return journal_path(state_dir or default(load_recipe(name).line))


def _time(text: str | None) -> int | None:
    from edge.journal.findings import parse_time

    try:
        return None if text is None else parse_time(text)
    except (ValueError, OverflowError) as error:
        raise MasklineError(f"{text!r} is no time; expected 2026-11-22T10:00Z, or without the Z local time") from error


@journal.command()
def tail(
    source: JournalArgument,
    state_dir: StateDir = None,
    count: Annotated[int, typer.Option("-n", min=0, help="So many of the newest verdicts.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Print the newest verdicts. One that its gate takes back before it goes out is printed again as it went out."""
    from edge.journal.select import newest_rows

    told: dict[int, bytes] = {}
    with _opened(source, state_dir) as db, contextlib.suppress(KeyboardInterrupt):
        if not as_json:
            typer.echo(_HEADER)
        rows = newest_rows(db, f"{_SHOWN}, payload, chain", max(count, 1))
        told.update((row[0], row[-1]) for row in rows)
        for row in rows[-count:] if count else []:
            _print(row, as_json)
        while follow:
            time.sleep(_FOLLOW_S)
            known = max(told, default=0)
            rows = db.execute(
                f"SELECT {_SHOWN}, payload, chain FROM verdicts WHERE seq > ? ORDER BY seq LIMIT 5000",
                (max(min(told, default=0) - 1, known - _TOLD),),
            ).fetchall()
            for row in rows:
                if told.get(row[0]) != row[-1]:
                    told[row[0]] = row[-1]
                    _print(row, as_json)
            for seq in sorted(told)[:-_TOLD]:
                del told[seq]


@journal.command()
def query(
    source: JournalArgument,
    state_dir: StateDir = None,
    since: Since = None,
    until: Until = None,
    run: Run = None,
    lane: Annotated[str | None, typer.Option()] = None,
    part: Annotated[int | None, typer.Option(help="Its trigger number.")] = None,
    part_id: Annotated[int | None, typer.Option(help="What the PLC calls it.")] = None,
    decision: Annotated[str | None, typer.Option(help="PASS, REJECT or UNINSPECTED.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why UNINSPECTED: deadline, restart, ...")] = None,
    score_min: Annotated[float | None, typer.Option()] = None,
    score_max: Annotated[float | None, typer.Option()] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many.")] = None,
    as_json: Json = False,
) -> None:
    """Print the verdicts that match everything that is asked for, oldest first."""
    from edge.journal.select import Selection, pages
    from edge.verdict import Decision, Reason

    chosen = Selection(
        since_ns=_time(since),
        until_ns=_time(until),
        run=run,
        lane=lane,
        part=part,
        part_id=part_id,
        decision=_one_of("--decision", decision and decision.upper(), [d.value for d in Decision]),
        reason=_one_of("--reason", reason, [r.value for r in Reason]),
        score_min=score_min,
        score_max=score_max,
    )
    found = 0
    with _opened(source, state_dir) as db:
        if not as_json:
            typer.echo(_HEADER)
        for page in pages(db, f"{_SHOWN}, payload, chain", chosen):
            for row in page[: None if limit is None else limit - found]:
                _print(row, as_json)
            found += len(page)
            if limit is not None and found >= limit:
                break
    if not as_json:
        typer.echo(f"{found if limit is None else min(found, limit)} verdicts", err=True)


def _one_of(option: str, said: str | None, allowed: list[str]) -> str | None:
    if said is not None and said not in allowed:
        raise MasklineError(f"{option} {said}: expected one of {', '.join(allowed)}")
    return said


def _print(row: Row, as_json: bool) -> None:
    from edge.journal.export import record
    from edge.journal.findings import utc_text

    if as_json:
        typer.echo(json.dumps(record(row[-2], row[-1]), separators=(",", ":")))
        return
    seq, utc_ns, run, lane, part, part_id, decision, reason, late, score, threshold = row[:11]
    verdict = decision + (f"({reason})" if reason else "") + (" late" if late else "")
    called = "-" if part_id is None else part_id
    typer.echo(
        f"{utc_text(utc_ns):27} {seq:9} {run:4} {lane:12} {part:9} {called:>9}  {verdict:28} "
        f"{_score(score):>8} {_score(threshold):>8}"
    )


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


@journal.command()
def export(
    source: JournalArgument,
    out: Annotated[Path, typer.Option(help="The file to write: .csv or .jsonl.")],
    table: Annotated[Literal["verdicts", "triggers", "late_results"], typer.Option(help="What of it.")] = "verdicts",
    state_dir: StateDir = None,
    since: Since = None,
    until: Until = None,
    run: Run = None,
) -> None:
    """Write verdicts, triggers or late results to a file, with all fields; the same journal gives the same file."""
    from edge.journal.export import export as write
    from edge.journal.select import Selection

    with _opened(source, state_dir) as db:
        count = write(db, table, out, Selection(since_ns=_time(since), until_ns=_time(until), run=run))
    typer.echo(f"{out}: {count} records")


@journal.command()
def verify(
    source: JournalArgument,
    state_dir: StateDir = None,
    heads: Annotated[
        list[Path] | None,
        typer.Option(help="Heads that were kept, or a log of the line (JSON lines); repeatable; default: beside it."),
    ] = None,
    segment: Annotated[list[Path] | None, typer.Option(help="A segment that was retired; repeatable.")] = None,
) -> None:
    """Prove that nothing was changed, missing, inserted or cut off, as far as heads were kept; else exit code 1."""
    from edge.journal.findings import account
    from edge.journal.heads import heads_path
    from edge.journal.verify import verify as check

    path = _path(source, state_dir)
    kept = heads or ([heads_path(path)] if heads_path(path).is_file() else [])
    found = check(path, kept, segment or [])
    for line in account(found):
        typer.echo(line)
    if wrong := [t for f in (found, *found.segments) for t in f.troubles]:
        raise MasklineError(f"{path}: {len(wrong)} things are wrong; the first: {wrong[0]}")


@journal.command()
def retire(
    recipe: Annotated[str, typer.Argument(help="A recipe; its line must be stopped.", metavar="RECIPE")],
    before: Annotated[str, typer.Option(help="Verdicts from before this time leave: 2026-10-01T00:00Z.")],
    to: Annotated[Path, typer.Option(help="The folder that gets the segment.")],
    state_dir: StateDir = None,
) -> None:
    """Move old verdicts out of a stopped line's journal into a closed segment: a file of its own, with its hash."""
    from edge.audit import operator
    from edge.journal import Journal, open_for_reading
    from edge.journal.connection import is_written
    from edge.journal.findings import utc_text
    from edge.journal.retire import retire as move
    from edge.paths import runtime_dir
    from edge.recipes import load_recipe

    resolved, before_ns = load_recipe(recipe), _time(before)
    assert before_ns is not None
    path = _path(recipe, state_dir)
    open_for_reading(path).close()
    if (owner := path.stat().st_uid) != os.geteuid():
        raise MasklineError(f"{path}: belongs to user {owner}; retire as that user, or its gate cannot write any more")
    if is_written(runtime_dir(resolved.line) / "lock") or is_written(path.with_suffix(".lock")):
        raise LineBusyError(f"line {resolved.line} runs, and its gate alone writes the journal: stop it, then retire")
    kept = resolved.journal
    with contextlib.closing(
        Journal(path, commit_interval_ms=kept.commit_interval_ms, reserve_mib=kept.reserve_mib)
    ) as held:
        made = move(held, before_ns, to, line=resolved.line, who=operator())
    if made is None:
        typer.echo(f"{path}: nothing to retire: the oldest verdict is not from before {utc_text(before_ns)}")
    else:
        typer.echo(f"verdicts {made.first} to {made.last}: {made.file}\nsha256 {made.sha256}")
        typer.echo("Keep the hash elsewhere. The journal's file stays as large as it is; its room is used again.")
