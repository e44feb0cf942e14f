"""Faults survive what kills the process, and only a reset that is recorded removes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.actuators.driver import Fault
from edge.actuators.latch import Latch, actuator_dir
from edge.audit import AuditError, AuditTrail, audit_path
from edge.errors import ResourceError


def open_latch(state_dir: Path) -> Latch:
    return Latch(actuator_dir(state_dir, "ejector"), "ejector", AuditTrail(audit_path(state_dir)))


def records(state_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in audit_path(state_dir).read_text().splitlines()]


def test_a_fault_survives_a_restart(tmp_path: Path) -> None:
    latch = open_latch(tmp_path)
    assert latch.first is Fault.NONE
    assert latch.raise_fault(Fault.LATE, "three in a row")
    assert not latch.raise_fault(Fault.LATE, "and again")
    assert latch.raise_fault(Fault.AIR, "too low")
    assert latch.unsaved, "outputs come before a slow disk"
    latch.save()
    again = open_latch(tmp_path)
    assert [(f.fault, f.detail) for f in again.faults] == [(Fault.LATE, "three in a row"), (Fault.AIR, "too low")]
    assert again.first is Fault.LATE


def test_a_reset_says_who_and_why(tmp_path: Path) -> None:
    latch = open_latch(tmp_path)
    latch.raise_fault(Fault.LATE, "three in a row")
    latch.save()
    assert [f.fault for f in latch.reset("ada", "valve changed")] == [Fault.LATE]
    assert latch.faults == ()
    assert open_latch(tmp_path).faults == ()
    (record,) = records(tmp_path)
    assert (record["what"], record["who"], record["why"]) == ("actuator.reset", "ada", "valve changed")
    assert (record["actuator"], record["faults"]) == ("ejector", ["late"])


def test_without_a_record_there_is_no_reset(tmp_path: Path) -> None:
    latch = open_latch(tmp_path)
    latch.raise_fault(Fault.LATE, "three in a row")
    latch.save()
    audit_path(tmp_path).mkdir()
    with pytest.raises(AuditError):
        latch.reset("ada", "valve changed")
    assert latch.first is Fault.LATE
    assert open_latch(tmp_path).first is Fault.LATE


def test_a_reset_that_does_not_reach_the_disk_is_none(tmp_path: Path) -> None:
    latch = open_latch(tmp_path)
    latch.raise_fault(Fault.LATE, "three in a row")
    (actuator_dir(tmp_path, "ejector") / "latch.json").mkdir()
    with pytest.raises(ResourceError):
        latch.reset("ada", "valve changed")
    assert latch.first is Fault.LATE


@pytest.mark.parametrize("content", ["", "{", "null", "[1]", '[{"fault": 99, "detail": "", "utc_ns": 0}]', "[" * 9999])
def test_what_cannot_be_read_is_a_fault(tmp_path: Path, content: str) -> None:
    open_latch(tmp_path)
    (actuator_dir(tmp_path, "ejector") / "latch.json").write_text(content)
    assert open_latch(tmp_path).first is Fault.OTHER
