"""A comparison in words: short for the eye, long for a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from edge.replay.compare import Apart, Comparison, Difference

__all__ = ["long_text", "short_text"]

SHOWN = 10
"""Parts in the short text, of each kind."""
_CLOSE = 1e-3
"""Numbers that are nearer to each other than this share are shown with all their digits."""


def short_text(comparison: Comparison) -> str:
    """What differs, at most `SHOWN` parts of it, a line each; then what is apart, and why."""
    return "\n".join(_lines(comparison, SHOWN, _on_one_line))


def long_text(comparison: Comparison, title: str) -> str:
    """Everything, a line per field."""
    return "\n".join([title, "", *_lines(comparison, None, _on_lines_of_their_own)]) + "\n"


Shape = Callable[[str, list[Difference]], list[str]]


def _lines(found: Comparison, most: int | None, shape: Shape) -> Iterator[str]:
    yield (
        f"{_parts(found.parts)} compared: {found.equal} equal, {found.different} different, {found.apart_parts} apart"
    )
    yield from _provenance(found)
    by_part = [(key, list(those)) for key, those in groupby(found.differences, lambda d: (d.lane, d.part))]
    for (lane, part), those in by_part[:most]:
        yield from shape(f"{lane} {part}", those)
    if most is not None and len(by_part) > most:
        yield f"  and {len(by_part) - most} more"
    yield from _apart(found, most)


def _provenance(found: Comparison) -> Iterator[str]:
    for it in found.provenance:
        yield f"{it.station}: {it.name} was {_short(it.expected)}, is {_short(it.found)} ({_views(it.views)})"
    if found.scores_left_out:
        yield (
            f"{_views(found.scores_left_out)}: scores are not compared, because something else made them; they differ "
            f"by at most {found.largest_score_difference:.3g}. Decisions are compared"
        )


def _apart(found: Comparison, most: int | None) -> Iterator[str]:
    for why, count in Counter(a.why for a in found.apart).items():
        those = [a for a in found.apart if a.why is why]
        yield f"apart, {why.value}: {_parts(count)}"
        yield from (f"  {_describe(a)}" for a in those[:most])
        if most is not None and count > most:
            yield f"  and {count - most} more"


def _describe(apart: Apart) -> str:
    return f"{apart.lane} {apart.part}: {apart.expected or 'nothing'}, now {apart.found or 'nothing'}"


def _on_one_line(part: str, those: list[Difference]) -> list[str]:
    of_views = {(d.field.partition(".")[2], repr(d.expected), repr(d.found)) for d in those if "." in d.field}
    told = [d for d in those if (d.field, repr(d.expected), repr(d.found)) not in of_views]  # by a view already
    return [f"  {part}: " + "; ".join(f"{d.field} {_change(d)}" for d in told)]


def _on_lines_of_their_own(part: str, those: list[Difference]) -> list[str]:
    return [part, *(f"  {d.field}: expected {d.expected!r}, found {d.found!r}" for d in those)]


def _change(difference: Difference) -> str:
    before, now = difference.expected, difference.found
    numbers = all(isinstance(v, float) for v in (before, now))
    exact = numbers and abs(before - now) <= _CLOSE * max(abs(before), abs(now))
    return " -> ".join(repr(v) if exact else _said(v) for v in (before, now))


def _said(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _short(value: str) -> str:
    return (f"{value[:12]}…" if len(value) == 64 else value) or "not said"


def _parts(count: int) -> str:
    return f"{count} part{'' if count == 1 else 's'}"


def _views(count: int) -> str:
    return f"{count} view{'' if count == 1 else 's'}"
