"""References: what a replay is expected to say, in a JSON file with a line per part, so that a change of it can be
reviewed as any other.

What made the scores of a station stands once, at the top; a view repeats it only where it is another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge import __version__
from edge.errors import ResourceError
from edge.paths import write_durably
from edge.replay.outcome import Outcome

__all__ = ["References", "ReferencesError", "read_references", "write_references"]

FORMAT = 1
MAX_BYTES = 1 << 30
_MADE_WITH = ("bundle", "calibration", "engine")


class ReferencesError(ResourceError):
    """A file of references that is missing, unreadable or no such file."""


@dataclass(frozen=True)
class References:
    """What is expected of one recording."""

    recording: str  # the file's name
    machine: str  # where the scores were computed
    outcomes: list[Outcome]


def write_references(path: Path, references: References) -> None:
    """Write the file whole or not at all. Raises ReferencesError."""
    made_with = _made_with(references.outcomes)
    head = {
        "format": FORMAT,
        "maskline_version": __version__,
        "recording": references.recording,
        "machine": references.machine,
        "made_with": made_with,
    }
    parts = [_line(_without(o, made_with)) for o in references.outcomes]
    text = json.dumps(head, indent=1)[:-2] + ',\n "parts": [\n' + ",\n".join(parts) + "\n ]\n}\n"
    try:
        write_durably(path, text.encode())
    except OSError as error:
        raise ReferencesError(f"{path}: cannot write the references: {error.strerror or error}") from error


def read_references(path: Path) -> References:
    """Raises ReferencesError, which names the file and what is wrong with it."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ReferencesError(f"{path}: no references here; --update-reference writes them") from error
    except OSError as error:
        raise ReferencesError(f"{path}: cannot read the references: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise ReferencesError(f"{path}: larger than {MAX_BYTES} bytes; these are no references")
    try:
        found = json.loads(content)
        if found["format"] != FORMAT:
            raise ReferencesError(
                f"{path}: references of format {found['format']!r}, this maskline reads {FORMAT}; write them again "
                "with --update-reference"
            )
        outcomes = [_checked(part, found["made_with"]) for part in found["parts"]]
        return References(str(found["recording"]), str(found["machine"]), outcomes)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ReferencesError(f"{path}: these are no references: {error!r}; --update-reference writes them") from error


def _made_with(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Station -> what made its scores, of the first view that has any."""
    found: dict[str, dict[str, Any]] = {}
    for part in outcomes:
        for view in part["views"]:
            if view["engine"]:
                found.setdefault(view["station"], {name: view[name] for name in _MADE_WITH})
    return found


def _without(part: Outcome, made_with: dict[str, dict[str, Any]]) -> Outcome:
    views = []
    for view in part["views"]:
        common = made_with.get(view["station"], {})
        same = all(view[name] == common.get(name) for name in _MADE_WITH)
        views.append({n: v for n, v in view.items() if not (same and n in _MADE_WITH)})
    return {**part, "views": views}


def _checked(part: Outcome, made_with: dict[str, dict[str, Any]]) -> Outcome:
    """The outcome as `edge.replay.compare` wants it. Raises ValueError and its like."""
    if type(part["lane"]) is not str or type(part["part"]) is not int or type(part["decision"]) is not str:
        raise ValueError(f"a part of lane {part['lane']!r} and number {part['part']!r}")
    views = [{**(made_with.get(v["station"], {}) if "engine" not in v else {}), **v} for v in part["views"]]
    for view in views:
        _check_view(view)
    return {**part, "views": views}


def _check_view(view: Outcome) -> None:
    if type(view["decision"]) is not str or type(view["engine"]) is not dict:
        raise ValueError(f"station {view['station']!r}: decision {view['decision']!r}, engine {view['engine']!r}")
    for name in ("score", "threshold"):
        if view[name] is not None and type(view[name]) not in (int, float):
            raise ValueError(f"station {view['station']!r}: {name} {view[name]!r}")


def _line(part: Outcome) -> str:
    return "  " + json.dumps(part, separators=(",", ":"), allow_nan=False)
