"""Verdicts and actuators for tests of what happens between them."""

from __future__ import annotations

from typing import Any

from edge.actuators.settings import Actuator
from edge.clock import ClockOffset
from edge.messages import Heartbeat, Verdict
from edge.verdict import Decision, GateState, Reason
from edge.verdicts import Event

__all__ = ["BOOT", "EPOCH", "Events", "actuator", "heartbeat", "verdict"]

EPOCH, BOOT = "epoch-1", "boot-1"


class Events:
    """A channel that says what a test puts there."""

    def __init__(self) -> None:
        self.clock = ClockOffset()
        self.events: list[Event] = []

    def receive(self, timeout_ms: int | None = None) -> Event | None:
        return self.events.pop(0) if self.events else None


def actuator(**changes: Any) -> Actuator:
    """An actuator with an encoder: 60 counts from camera to sensor, parts at least 12 apart."""
    fields: dict[str, Any] = {
        "name": "ejector",
        "lane": "lane",
        "drivers": [{"kind": "simulated", "endpoint": "ipc:///nowhere"}],
        "at_rest": "reject",
        "match": {"by": "count", "distance_counts": 60, "window_counts": 4},
        "timing": {"unit": "counts", "delay": 4, "pulse": 8, "tolerance": 3, "min_spacing": 12},
        "max_age_ms": 1000,
    }
    return Actuator.model_validate(fields | changes)


def verdict(part: int, decision: Decision = Decision.PASS, **changes: Any) -> Verdict:
    """A verdict on part `part`, triggered at `trigger_ns` and at `count`."""
    fields: dict[str, Any] = {
        "line": "test",
        "lane": "lane",
        "part": part,
        "part_id": None,
        "count": None,
        "decision": decision,
        "reason": Reason.DEADLINE if decision is Decision.UNINSPECTED else None,
        "late": False,
        "epoch": EPOCH,
        "seq": part + 1,
        "topic_seq": part + 1,
        "run": 1,
        "score": None,
        "threshold": None,
        "views": [],
        "simulated": True,
        "recipe": "",
        "boot_id": BOOT,
        "trigger_ns": 0,
        "deadline_ns": 0,
        "decided_ns": 0,
        "trigger_utc_ns": 0,
        "decided_utc_ns": 0,
    }
    return Verdict(**(fields | changes))


def heartbeat(state: GateState = GateState.READY, **changes: Any) -> Heartbeat:
    """A gate's heartbeat."""
    fields: dict[str, Any] = {
        "line": "test",
        "epoch": EPOCH,
        "state": state,
        "trouble": [],
        "seq": 0,
        "chain": "0" * 64,
        "open": 0,
        "interval_ms": 250,
        "safe_state": "reject_all",
        "simulated": True,
        "at_ns": 0,
        "utc_ns": 0,
        "boot_id": BOOT,
        "counters": {},
    }
    return Heartbeat(**(fields | changes))
