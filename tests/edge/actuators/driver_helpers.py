"""Verdicts and outcomes for the drivers' tests."""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

from edge.actuators.driver import PartOutcome
from edge.messages import Verdict, field_names
from edge.verdict import Decision

__all__ = ["free_port", "outcome", "verdict"]

_VERDICT: dict[str, Any] = {
    "line": "line1",
    "lane": "a",
    "part": 7,
    "decision": Decision.REJECT,
    "late": False,
    "epoch": "e1",
    "seq": 41,
    "topic_seq": 41,
    "run": 1,
    "score": 1.5,
    "threshold": 1.0,
    "views": [],
    "simulated": True,
    "recipe": "r",
    "boot_id": "b",
    "trigger_ns": 1,
    "deadline_ns": 2,
    "decided_ns": 2,
    "trigger_utc_ns": 1_700_000_000_000_000_000,
    "decided_utc_ns": 1_700_000_000_020_000_000,
}


def verdict(**changes: Any) -> Verdict:
    """A verdict; fields that are not given and not above are None."""
    fields = dict.fromkeys(field_names(Verdict))
    return Verdict(**(fields | _VERDICT | changes))


def outcome(number: int | None = 7, *, part_id: int | None = None, **changes: Any) -> PartOutcome:
    """A part whose decision follows from its number, so that a mixed-up one is noticed."""
    decision = list(Decision)[(part_id or number or 0) % 3]
    why = {Decision.PASS: "", Decision.REJECT: "", Decision.UNINSPECTED: "deadline"}[decision]
    made = PartOutcome(number, "a", part_id, decision, why, decision is not Decision.PASS)
    return dataclasses.replace(made, **changes)


def free_port() -> int:
    """A TCP port of loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
