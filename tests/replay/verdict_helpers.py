"""Verdicts and views with every field filled in."""

from __future__ import annotations

from typing import Any

from edge.messages import Verdict, View
from edge.verdict import Decision, Reason

__all__ = ["ENGINE", "refused", "rejected", "verdict", "view"]

ENGINE = {"backend": "openvino", "version": "1", "device": "CPU", "precision": "f32", "isa": "avx2", "plan": "x1"}


def view(station: str = "near", **fields: Any) -> View:
    usual: dict[str, Any] = {
        "decision": Decision.PASS,
        "reason": None,
        "score": 0.25,
        "threshold": 0.5,
        "boxes": [],
        "witness": None,
        "picture": "",
        "at_ns": 1,
        "bundle": "b" * 64,
        "calibration": "c" * 64,
        "engine": ENGINE,
        "stamps": [1, 2],
    }
    return View(station, **usual | fields)


def verdict(part: int, *views: View, **fields: Any) -> Verdict:
    first = views[0] if views else view()
    usual: dict[str, Any] = {
        "line": "l",
        "lane": "lane",
        "part_id": None,
        "count": None,
        "decision": first.decision,
        "reason": first.reason,
        "late": False,
        "epoch": "e",
        "seq": part,
        "topic_seq": part,
        "run": 1,
        "score": first.score,
        "threshold": first.threshold,
        "views": list(views or [first]),
        "simulated": False,
        "recipe": "r" * 64,
        "boot_id": "boot",
        "trigger_ns": 1,
        "deadline_ns": 2,
        "decided_ns": 3,
        "trigger_utc_ns": 4,
        "decided_utc_ns": 5,
    }
    return Verdict(part=part, **usual | fields)


def rejected(**fields: Any) -> View:
    return view(**{"decision": Decision.REJECT, "score": 0.75, "boxes": [[1, 2, 3, 4]]} | fields)


def refused(reason: Reason, **fields: Any) -> View:
    return view(**{"decision": Decision.UNINSPECTED, "reason": reason, "score": None} | fields)
