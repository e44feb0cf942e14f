"""The audit trail: what is changed, missing, inserted or cut off is found, as far as a chain can find it."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge import audit
from edge.audit import AuditError, AuditTrail, audit_path, verify


@pytest.fixture
def trail(tmp_path: Path) -> AuditTrail:
    """A trail of five records."""
    made = AuditTrail(audit_path(tmp_path / "state"))
    for i in range(5):
        made.record("keys.allow", "anna", name=f"gate-{i}", note="Tür\nzu")
    return made


def lines(trail: AuditTrail) -> list[bytes]:
    return trail.path.read_bytes().splitlines(keepends=True)


def test_records_are_lines_of_json_that_others_can_verify(trail: AuditTrail) -> None:
    head = trail.record("fault.reset", "anna", station="top")
    previous = "0" * 64
    for i, line in enumerate(lines(trail)):
        record = json.loads(line)
        assert record["previous"] == previous
        assert record["who"] == "anna"
        assert i == 5 or (record["name"], record["note"]) == (f"gate-{i}", "Tür\nzu")
        done = subprocess.run(["sha256sum"], input=line[:-1], capture_output=True, check=True)
        previous = done.stdout[:64].decode()
    assert head == previous
    assert verify(trail.path, [head]) == audit.Verified(6, head, ())


def test_only_the_owner_may_read_it(trail: AuditTrail) -> None:
    assert trail.path.stat().st_mode & 0o777 == 0o600
    assert trail.path.parent.stat().st_mode & 0o777 == 0o700


def edit(old: bytes, new: bytes) -> Callable[[list[bytes]], list[bytes]]:
    return lambda found: [*found[:2], found[2].replace(old, new), *found[3:]]


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (edit(b"anna", b"otto"), "line 4: does not follow"),
        (edit(b'"who"', b' "who"'), "line 4: does not follow"),
        (edit(b"{", b"["), "line 3: not a record"),
        (lambda found: found[:2] + found[3:], "line 3: does not follow"),
        (lambda found: found[1:], "line 1: does not follow"),
        (lambda found: [*found[:3], found[2], *found[3:]], "line 4: does not follow"),
        (lambda found: [found[1], found[0], *found[2:]], "line 1: does not follow"),
        (lambda found: found[:3], "cut off"),
        (lambda found: found[:0], "cut off"),
        (lambda found: [*found[:4], found[4].replace(b"anna", b"otto")], "cut off, changed"),
        (lambda found: [*found[:4], found[4][:-10]], "line 5: its end is missing"),
        (lambda found: [*found, found[4]], "line 6: does not follow"),
        (lambda found: [*found, b"\xff" * 40_000], "line 6: its end is missing"),
        (lambda found: [*found, b"[" * 10_000 + b"\n"], "line 6: not a record"),
    ],
)
def test_what_was_tampered_with_is_found(
    trail: AuditTrail, tamper: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    trail.path.write_bytes(b"".join(tamper(lines(trail))))
    assert words in "; ".join(verify(trail.path).troubles)


def test_who_writes_the_chain_and_its_head_anew_is_found_by_a_head_that_was_noted(
    trail: AuditTrail, tmp_path: Path
) -> None:
    noted = verify(trail.path).head
    forged = AuditTrail(audit_path(tmp_path / "forged"))
    for i in range(5):
        forged.record("keys.allow", "otto", name=f"gate-{i}")
    assert verify(forged.path).troubles == (), "so far a chain can be trusted and no further"
    assert [noted in trouble for trouble in verify(forged.path, [noted]).troubles] == [True]


@pytest.mark.parametrize("kept", [0, 2, 3])
def test_a_cut_is_not_healed_by_the_next_record(trail: AuditTrail, kept: int) -> None:
    head = verify(trail.path).head
    trail.path.write_bytes(b"".join(lines(trail)[:kept]))
    trail.record("keys.allow", "anna")
    assert head in "; ".join(verify(trail.path).troubles)


def test_a_record_that_somebody_added_by_hand_is_found_after_the_next_one(trail: AuditTrail) -> None:
    for _ in range(2):  # with a right chain; one alone looks like a writer that died before it wrote the head
        last = verify(trail.path).head
        with trail.path.open("ab") as file:
            file.write(json.dumps({"what": "x", "previous": last}).encode() + b"\n")
    assert "written by something else" in verify(trail.path).troubles[0]
    trail.record("keys.allow", "anna")
    assert verify(trail.path).troubles


def test_a_removed_head_is_found(trail: AuditTrail) -> None:
    trail.path.with_suffix(".head").unlink()
    assert verify(trail.path).troubles
    trail.record("keys.allow", "anna")
    assert verify(trail.path).troubles


@pytest.mark.parametrize("torn", [b"{", b'{"utc":"2026-01-01","what":"keys.allow"'])
def test_what_a_power_cut_left_of_a_record_is_taken_away(trail: AuditTrail, torn: bytes) -> None:
    with trail.path.open("ab") as file:
        file.write(torn)
    assert "its end is missing" in verify(trail.path).troubles[0]
    trail.record("keys.allow", "anna")
    assert verify(trail.path).troubles == ()
    assert verify(trail.path).records == 6


@pytest.mark.parametrize("before", [0, 5])
def test_a_death_between_a_record_and_its_head_is_no_trouble(
    trail: AuditTrail, before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail = trail if before else AuditTrail(audit_path(tmp_path / "other"))
    with monkeypatch.context() as died:
        died.setattr(audit, "write_durably", lambda *_: None)
        trail.record("keys.allow", "anna")
    assert verify(trail.path).troubles == ()
    trail.record("keys.allow", "anna")
    assert verify(trail.path) == audit.Verified(before + 2, verify(trail.path).head, ())


def test_nothing_was_recorded_yet(tmp_path: Path) -> None:
    assert verify(audit_path(tmp_path)) == audit.Verified(0, "0" * 64, ())


def test_many_processes_write_one_chain(tmp_path: Path) -> None:
    path = audit_path(tmp_path / "state")
    code = (
        "import sys, pathlib; from edge.audit import AuditTrail\n"
        "for i in range(20): AuditTrail(pathlib.Path(sys.argv[1])).record('x', sys.argv[2], i=i)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)]) for n in range(3)]
    assert [w.wait(100) for w in writers] == [0, 0, 0]
    found = verify(path)
    assert (found.records, found.troubles) == (60, ())


def test_a_lock_that_is_never_given_back_ends_in_a_message(trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "LOCK_PATIENCE_S", 0.05)
    with trail.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(AuditError, match="locked"):
            trail.record("keys.allow", "anna")
        with pytest.raises(AuditError, match="locked"):
            verify(trail.path)


def test_what_cannot_be_written_leaves_the_trail_as_it_was(trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
    before = trail.path.read_bytes()
    with pytest.raises(AuditError, match="at most"):
        trail.record("keys.allow", "anna", note="x" * 20_000)
    with pytest.raises(ValueError, match="previous"):
        trail.record("keys.allow", "anna", previous="0")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit.os, "fsync", full)
    with pytest.raises(AuditError, match="No space left"):
        trail.record("keys.allow", "anna")
    assert trail.path.read_bytes() == before


def test_a_line_without_end_is_no_trail_to_write_to(trail: AuditTrail) -> None:
    trail.path.write_bytes(b"x" * 200_000)
    with pytest.raises(AuditError, match="no audit trail"):
        trail.record("keys.allow", "anna")
    assert trail.path.stat().st_size == 200_000


def test_the_command_prints_the_trail_and_finds_what_was_changed(trail: AuditTrail) -> None:
    def maskline(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edge.cli", "audit", "web", "--state-dir", str(trail.path.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    head = verify(trail.path).head
    printed = maskline("--head", head)
    assert printed.returncode == 0, printed.stderr
    assert "keys.allow" in printed.stdout
    assert "anna: name=gate-3" in printed.stdout
    assert f"5 records, head {head}" in printed.stdout
    trail.path.write_bytes(trail.path.read_bytes().replace(b"gate-3", b"gate-7"))
    printed = maskline()
    assert printed.returncode == 1
    assert "line 5: does not follow the line before it" in printed.stderr
    trail.path.unlink()
    assert "nothing was changed yet" in maskline().stdout
