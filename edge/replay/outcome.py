"""What is compared of a verdict: its fields as plain values, but for those that differ from run to run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any

from edge.messages import Verdict, View, field_names, fields_of

__all__ = [
    "IGNORED",
    "PROVENANCE",
    "Outcome",
    "in_words",
    "known_fields",
    "outcome",
    "plain_outcome",
    "provenance_of",
]

Outcome = dict[str, Any]
"""What is compared of a verdict: plain JSON values, and its views in a list."""

IGNORED: Mapping[str, str] = MappingProxyType(
    {
        "line": "says where it was decided",
        "recipe": "a replay reads its frames from the recording, so its recipe has another hash",
        "simulated": "every replay is",
        "epoch": "of the journal",
        "seq": "of the journal",
        "topic_seq": "of the journal",
        "run": "of the journal",
        "boot_id": "of the box",
        "late": "time",
        "trigger_ns": "time",
        "deadline_ns": "time",
        "decided_ns": "time",
        "trigger_utc_ns": "time",
        "decided_utc_ns": "time",
        "views.at_ns": "time",
        "views.stamps": "time",
        "views.picture": "where pictures are kept",
    }
)
"""The fields that are not compared, and why."""

PROVENANCE = ("bundle", "engine", "calibration")
"""What scores and thresholds depend on."""


def outcome(verdict: Verdict, first: int = 0) -> Outcome:
    """What is compared of a verdict. `first`: the recorded number of the replay's part 0."""
    return plain_outcome({**fields_of(verdict), "part": verdict.part + first}, verdict.views)


def plain_outcome(fields: Mapping[str, Any], views: Iterable[View]) -> Outcome:
    """An outcome from the fields of a verdict, without those that are not compared, and its views."""
    told = {name: value for name, value in fields.items() if name not in IGNORED and name != "views"}
    told["views"] = [{n: v for n, v in fields_of(w).items() if f"views.{n}" not in IGNORED} for w in views]
    plain: Outcome = _plain(told)
    return plain


def known_fields() -> list[str]:
    """The fields that may be ignored: those of a verdict, and `views.NAME` of its views."""
    return [*field_names(Verdict), *(f"views.{name}" for name in field_names(View))]


def in_words(said: Outcome) -> str:
    """`UNINSPECTED (deadline)`"""
    return str(said["decision"]) + (f" ({said['reason']})" if said.get("reason") else "")


def provenance_of(view: Outcome) -> Iterator[tuple[str, str]]:
    """`bundle`, `calibration` and `engine.isa` and so on, of one view."""
    for name in PROVENANCE:
        value = view.get(name)
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", str(v)) for key, v in sorted(value.items()))
        elif value is not None:
            yield name, str(value)


def _plain(value: Any) -> Any:
    """The value as JSON would give it back."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
