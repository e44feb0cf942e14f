"""What a storm has cost, from four witnesses: the conveyor's bins, the journal, the recorders, and the marks that every
part carries in its pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge.actuators.belt import End, Part
from edge.journal import open_for_reading
from edge.messages import Verdict, decode, encode
from edge.paths import journal_path
from edge.verdict import Decision

__all__ = ["Balance", "Record", "balance"]


@dataclass(frozen=True)
class Record:
    """What a subscriber of the acknowledged channel has got."""

    name: str
    verdicts: Sequence[Verdict]
    holes: Sequence[str]


@dataclass
class Balance:
    """Counts that must be 0 have the things themselves in `wrong`, in words."""

    parts: int = 0
    good_parts: int = 0
    passed: int = 0  # in the good bin
    false_pass: int = 0  # in the good bin without a PASS of its own that was in time
    bad_passed: int = 0  # bad parts in the good bin
    lost: int = 0  # triggers in the journal without a verdict, and holes in the numbers
    duplicated: int = 0  # more than one final record for a part, or one part in two records
    subscriber_gaps: int = 0
    subscriber_repeats: int = 0
    unjournalled: int = 0  # published, and not in the journal byte for byte
    verdicts: Counter[str] = field(default_factory=Counter)
    """By decision, UNINSPECTED by reason."""
    wrong: list[str] = field(default_factory=list)

    def add(self, figure: str, what: str) -> None:
        setattr(self, figure, getattr(self, figure) + 1)
        self.wrong.append(f"{figure}: {what}")

    @property
    def good_share(self) -> float:
        """Good parts that reached the good bin."""
        return (self.passed - self.bad_passed) / max(1, self.good_parts)


def balance(
    ended: Sequence[Part],
    noticed_ns: Mapping[int, int],
    state_dir: Path,
    published: Sequence[tuple[int, bytes]],
    records: Sequence[Record],
) -> Balance:
    """After the line has ended. `noticed_ns`: serial -> when the part was seen in its bin; `published`: seq and bytes
    of what went out on PUB."""
    found = Balance(parts=len(ended), good_parts=sum(not p.bad for p in ended))
    payloads, open_triggers = _read(state_dir)
    verdicts = {seq: decode(payload, Verdict) for seq, payload in payloads.items()}
    _count_records(found, verdicts, open_triggers)
    _count_escapes(found, ended, noticed_ns, verdicts)
    for seq, payload in published:
        if payloads.get(seq) != payload:
            found.add("unjournalled", f"published as seq {seq}, and not in the journal like that")
    for record in records:
        _count_record(found, record, payloads)
    return found


def _read(state_dir: Path) -> tuple[dict[int, bytes], list[tuple[int, str, int]]]:
    db = open_for_reading(journal_path(state_dir))
    try:
        payloads = dict(db.execute("SELECT seq, payload FROM verdicts ORDER BY seq"))
        unanswered = db.execute(
            "SELECT DISTINCT t.run, t.lane, t.number FROM triggers t "
            "LEFT JOIN verdicts v ON v.run = t.run AND v.lane = t.lane AND v.part = t.number WHERE v.seq IS NULL"
        ).fetchall()
        return payloads, unanswered
    finally:
        db.close()


def _count_records(found: Balance, verdicts: dict[int, Verdict], open_triggers: list[tuple[int, str, int]]) -> None:
    for trigger in open_triggers:
        found.add("lost", f"trigger {trigger} has no verdict")
    for seq in sorted(set(range(1, max(verdicts, default=0) + 1)) - set(verdicts)):
        found.add("lost", f"seq {seq} is not in the journal")
    times = Counter((v.run, v.lane, v.part) for v in verdicts.values())
    numbers: dict[tuple[int, str], set[int]] = {}
    for run, lane, part in times:
        numbers.setdefault((run, lane), set()).add(part)
    for run, lane, part in open_triggers:
        numbers.setdefault((run, lane), set()).add(part)
    for of_run, seen in numbers.items():
        for part in sorted(set(range(max(seen))) - seen):
            found.add("lost", f"run and lane {of_run}: number {part} has no record")
    for key, count in times.items():
        if count > 1:
            found.add("duplicated", f"{count} final records for {key}")
    marks = Counter(view.witness for v in verdicts.values() for view in v.views if view.witness is not None)
    for serial, count in marks.items():
        if count > 1:
            found.add("duplicated", f"the part {serial} was inspected {count} times")
    found.verdicts = Counter(v.reason.value if v.reason else v.decision.value for v in verdicts.values())


def _count_escapes(
    found: Balance, ended: Sequence[Part], noticed_ns: Mapping[int, int], verdicts: dict[int, Verdict]
) -> None:
    passes = {
        view.witness: v
        for v in verdicts.values()
        for view in v.views
        if v.decision is Decision.PASS and not v.late and v.decided_ns <= v.deadline_ns
    }
    for part in ended:
        if part.end is not End.GOOD:
            continue
        found.passed += 1
        own = passes.get(part.serial)
        if part.bad:
            found.add("bad_passed", f"{part}, {own}")
        if own is None or own.decided_ns > noticed_ns[part.serial]:
            found.add("false_pass", f"{part}, {own}")


def _count_record(found: Balance, record: Record, payloads: dict[int, bytes]) -> None:
    for hole in record.holes:
        found.add("subscriber_gaps", f"{record.name}: {hole}")
    before = 0
    for verdict in record.verdicts:
        if verdict.seq <= before:
            found.add("subscriber_repeats", f"{record.name}: seq {verdict.seq} after {before}")
        elif verdict.seq > before + 1:
            found.add("subscriber_gaps", f"{record.name}: seq {verdict.seq} after {before}")
        before = max(before, verdict.seq)
        if payloads.get(verdict.seq) != encode(verdict):
            found.add("unjournalled", f"{record.name}: seq {verdict.seq} came, and is not in the journal like that")
    if before < max(payloads, default=0):
        found.add("subscriber_gaps", f"{record.name}: ends at seq {before} of {max(payloads)}")
