"""From the boxes of single frames to the defects of a web: what crosses from frame to frame is one defect; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge.tiling import Box

__all__ = ["Defect", "Piece", "join"]


@dataclass(frozen=True)
class Piece:
    """What one frame shows of a defect."""

    box: Box  # on the web: columns and lines
    number: int  # of the frame; pieces of one frame are different defects
    score: float | None = None
    picture: str = ""


@dataclass(frozen=True)
class Defect:
    """A defect of the web, and the pieces that it was joined from, in the order of their frames."""

    box: Box
    pieces: tuple[Piece, ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The frames that show it."""
        return tuple(sorted({p.number for p in self.pieces}))

    @property
    def score(self) -> float | None:
        """The highest score of its frames."""
        return max((p.score for p in self.pieces if p.score is not None), default=None)


def join(pieces: Iterable[Piece], gap: int = 0) -> list[Defect]:
    """Join pieces of different frames that overlap or touch, a corner included; along the web they may be `gap` lines
    apart. Ordered along the web.

    Pieces of one frame stay apart unless another frame, which saw more of it, connects them.
    """
    ordered = sorted(pieces, key=lambda p: (p.box.y, p.box.x))
    parent = list(range(len(ordered)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    open_ones: list[int] = []
    for i, piece in enumerate(ordered):
        open_ones = [k for k in open_ones if ordered[k].box.y + ordered[k].box.height + gap >= piece.box.y]
        for k in open_ones:
            if ordered[k].number != piece.number and _touch_across(ordered[k].box, piece.box):
                parent[root(i)] = root(k)
        open_ones.append(i)
    groups: dict[int, list[Piece]] = {}
    for i, piece in enumerate(ordered):
        groups.setdefault(root(i), []).append(piece)
    return sorted((_defect(group) for group in groups.values()), key=lambda d: (d.box.y, d.box.x))


def _touch_across(a: Box, b: Box) -> bool:
    return a.x <= b.x + b.width and b.x <= a.x + a.width


def _defect(pieces: list[Piece]) -> Defect:
    left, top = min(p.box.x for p in pieces), min(p.box.y for p in pieces)
    right, bottom = max(p.box.x + p.box.width for p in pieces), max(p.box.y + p.box.height for p in pieces)
    return Defect(Box(left, top, right - left, bottom - top), tuple(sorted(pieces, key=lambda p: p.number)))
