"""Every topic that leaves the line, in one table. Topics end in a delimiter: `verdict.a.1.` is not `verdict.a.10.`"""

from __future__ import annotations

from dataclasses import dataclass

from edge.messages import VERSION, Heartbeat, Verdict

__all__ = ["HEALTH", "HEARTBEAT_INTERVAL_MS", "SILENCE_INTERVALS", "TOPICS", "VERDICT", "Topic", "topic"]

HEARTBEAT_INTERVAL_MS = 250
SILENCE_INTERVALS = 3
"""Heartbeats that may be missed before a client calls it silence."""


@dataclass(frozen=True)
class Topic:
    """One row of the table."""

    name: str
    fields: str  # what stands between the dots
    message: type
    version: int
    rate: str
    publisher: str


VERDICT = Topic("verdict", "<line>.<lane>.", Verdict, VERSION, "one per part", "gate")
HEALTH = Topic("health", "<line>.", Heartbeat, VERSION, f"every {HEARTBEAT_INTERVAL_MS} ms", "gate")
TOPICS = (VERDICT, HEALTH)


def topic(kind: Topic, *fields: str) -> bytes:
    """The topic's bytes: `topic(VERDICT, "line1", "top")` is `b"verdict.line1.top."`."""
    return ".".join((kind.name, *fields, "")).encode()
