"""The roll map as a table: one row for each defect and each stretch that was not inspected, along the web."""

from __future__ import annotations

import csv
from pathlib import Path

from edge.errors import ResourceError
from edge.webs.defects import Defect
from edge.webs.roll import Gap, RollMap

__all__ = ["COLUMNS", "rows", "summary", "write_table"]

COLUMNS = (
    "kind",  # defect; rejected: a frame as a whole, without a place in it or with too many; not_inspected
    "from_m",
    "to_m",
    "left_mm",
    "right_mm",
    "length_mm",
    "width_mm",
    "score",
    "frames",
    "why",
    "pictures",
)


def rows(roll: RollMap) -> list[tuple[object, ...]]:
    """The rows of the table, by position along the web; positions from the roll's beginning, and from the left."""
    found = [(d.box.y, _defect("defect", d, roll)) for d in roll.defects]
    found += [(d.box.y, _defect("rejected", d, roll)) for d in roll.rejected]
    found += [(gap.start, _gap(gap, roll)) for gap in roll.gaps]
    return [row for _, row in sorted(found, key=lambda one: one[0])]


def _defect(kind: str, defect: Defect, roll: RollMap) -> tuple[object, ...]:
    box, geometry = defect.box, roll.geometry
    return (
        kind,
        f"{geometry.metres(box.y):.4f}",
        f"{geometry.metres(box.y + box.height):.4f}",
        f"{box.x * geometry.mm_per_px:.2f}",
        f"{(box.x + box.width) * geometry.mm_per_px:.2f}",
        f"{box.height * geometry.mm_per_line:.2f}",
        f"{box.width * geometry.mm_per_px:.2f}",
        "" if defect.score is None else f"{defect.score:.6g}",
        " ".join(map(str, defect.numbers)),
        "",
        " ".join(dict.fromkeys(p.picture for p in defect.pieces if p.picture)),
    )


def _gap(gap: Gap, roll: RollMap) -> tuple[object, ...]:
    geometry = roll.geometry
    ends = (f"{geometry.metres(gap.start):.4f}", f"{geometry.metres(gap.end):.4f}")
    length = f"{(gap.end - gap.start) * geometry.mm_per_line:.2f}"
    width = geometry.width_px * geometry.mm_per_px
    return ("not_inspected", *ends, "0.00", f"{width:.2f}", length, f"{width:.2f}", "", "", gap.why, "")


def write_table(path: Path, roll: RollMap) -> None:
    """Write the table as CSV. Raises ResourceError that names a file which cannot be written."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows(roll))
    except OSError as error:
        raise ResourceError(f"{path}: cannot write the roll map there: {error.strerror}") from error


def summary(roll: RollMap) -> str:
    """A roll in a sentence or two."""
    geometry, lines = roll.geometry, roll.end - roll.start
    left_out = lines - roll.inspected_lines
    said = f"{geometry.metres(lines):.3f} m of web, {_many(len(roll.defects), 'defect')}"
    if roll.rejected:
        said += f", {_many(len(roll.rejected), 'frame')} rejected as a whole"
    if left_out == 0:
        return f"{said}; every line was inspected."
    reasons = ", ".join(dict.fromkeys(reason for gap in roll.gaps for reason in gap.why.split()))
    return f"{said}; {geometry.metres(left_out):.3f} m were not inspected: {reasons}."


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
