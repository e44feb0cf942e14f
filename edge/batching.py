"""Which tiles go through an engine next, until when they may wait for more, and how they lie side by side. No clock, no
socket.

An engine takes a fixed number of tiles at a time, and costs the same however many of them are real. The frames of all
stations that share it go through it side by side, the earliest deadline first:

* A batch that is full goes at once.
* One that is not waits for more tiles until waiting longer would miss the first deadline; then it goes, and the rest of
  it is padding.
* Tails never wait: a frame that fills a batch goes whole, and what is left of one that was begun goes at once. With
  them, and with a frame that is not `patient`, go all those that wait for the same engine.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batch", "Piece", "Schedule", "Share", "SideBySide"]

FORGETS = 8
"""A batch that takes longer than estimated is believed at once, one that is faster by one part in so many."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Share:
    """Tiles of one frame in a batch."""

    frame: int
    tiles: Sequence[int]
    last: bool
    """No tile of the frame waits for this engine any more."""


@dataclass(frozen=True)
class Batch(Generic[Key]):
    """What goes through an engine in one call, in `rounds` runs; the last of them may have to be filled up."""

    engine: Key
    shares: tuple[Share, ...]
    rounds: int


@dataclass(frozen=True)
class _Work:
    """The tiles of a frame that an engine has not seen yet."""

    frame: int
    tiles: Sequence[int]
    deadline_ns: int
    then_ns: int
    patient: bool

    @property
    def due_ns(self) -> int:
        """When the engine must be done with it."""
        return self.deadline_ns - self.then_ns


class _Queue(Generic[Key]):
    """What waits for one engine, by deadline."""

    def __init__(self, engine: Key, size: int, cost_ns: int) -> None:
        self.engine, self.size, self.cost_ns = engine, size, cost_ns
        self.works: list[_Work] = []

    @property
    def waits(self) -> bool:
        """Whether more tiles would be of use, and nobody minds waiting for them."""
        return all(w.patient for w in self.works) and sum(len(w.tiles) for w in self.works) < self.size

    @property
    def rounds(self) -> int:
        """How often the engine must run for all tiles of the first frame."""
        return -(-len(self.works[0].tiles) // self.size)

    @property
    def due_ns(self) -> int:
        return min(w.due_ns for w in self.works)

    def pop(self) -> Batch[Key]:
        """All tiles of the first frame, and as many of the next ones as fill up the last round."""
        rounds, shares = self.rounds, []
        room = rounds * self.size
        while room and self.works:
            work = self.works.pop(0)
            share = Share(work.frame, work.tiles[:room], last=len(work.tiles) <= room)
            shares.append(share)
            room -= len(share.tiles)
            if not share.last:
                self.works.insert(0, replace(work, tiles=work.tiles[len(share.tiles) :], patient=False))
        return Batch(self.engine, tuple(shares), rounds)


class Schedule(Generic[Key]):
    """The order of work on one thread that serves several engines. Times are those of the caller's clock, in ns."""

    def __init__(self, engines: Mapping[Key, tuple[int, int]]) -> None:
        """`engines`: for each its tiles at a time, and the time that one run takes, as measured."""
        self._queues = {key: _Queue(key, size, cost_ns) for key, (size, cost_ns) in engines.items()}

    def add(
        self, engine: Key, frame: int, tiles: Sequence[int], *, deadline_ns: int, then_ns: int = 0, patient: bool = True
    ) -> None:
        """Tiles (numbers within their frame, at least one) that wait for an engine.

        `then_ns`: what is still to be done with them after it before the deadline. `patient`: whether they may wait for
        others.
        """
        if not tiles:
            raise ValueError(f"frame {frame}: no tiles")
        work = _Work(frame, tiles, deadline_ns, then_ns, patient)
        insort(self._queues[engine].works, work, key=lambda w: w.deadline_ns)

    def take(self, now_ns: int, *, hurry: bool = False) -> Batch[Key] | None:
        """The batch that goes now; None when all may wait. `hurry`: nothing may, because nothing more will come.

        Of several that are ready the one with the earliest deadline goes. One that might still wait goes before it, if
        its deadline is earlier and would be missed behind it.
        """
        heads = self._heads()
        ready = [q for q in heads if hurry or not q.waits]
        if ready:
            free_ns = now_ns + ready[0].rounds * ready[0].cost_ns
            return next(q for q in heads if q in ready or q.due_ns - q.cost_ns < free_ns).pop()
        start_by_ns = self.start_by_ns()
        return heads[0].pop() if start_by_ns is not None and now_ns >= start_by_ns else None

    def start_by_ns(self) -> int | None:
        """When a batch must go at the latest, so that this one and those that wait after it are in time.

        0 when one is ready, None when nothing waits.
        """
        heads = self._heads()
        if not all(q.waits for q in heads):
            return 0
        done_after_ns = accumulate(q.cost_ns for q in heads)
        return min((q.due_ns - after_ns for q, after_ns in zip(heads, done_after_ns, strict=True)), default=None)

    def took(self, engine: Key, rounds: int, spent_ns: int) -> None:
        """What a batch cost."""
        queue, found_ns = self._queues[engine], spent_ns // rounds
        queue.cost_ns = max(found_ns, queue.cost_ns - (queue.cost_ns - found_ns) // FORGETS)

    def cost_ns(self, engine: Key, tiles: int) -> int:
        """What so many tiles would cost, alone."""
        queue = self._queues[engine]
        return -(-tiles // queue.size) * queue.cost_ns

    def drop(self, frame: int) -> None:
        """Forget what waits of a frame."""
        for queue in self._queues.values():
            queue.works = [w for w in queue.works if w.frame != frame]

    def _heads(self) -> list[_Queue[Key]]:
        """The engines that something waits for, by the deadline of their first frame."""
        return sorted((q for q in self._queues.values() if q.works), key=lambda q: q.works[0].deadline_ns)


class Piece(NamedTuple):
    """Some tiles of a frame, and where the engine's answers belong."""

    tiles: NDArray[np.uint8]
    """All of the frame's, [N, h, w, C]."""
    answers: NDArray[np.float32]
    """For all of them, `Manifest.answer_shape`."""
    chosen: Sequence[int]


class SideBySide:
    """The arrays in which tiles of several frames lie side by side; made once."""

    def __init__(self, tiles: tuple[int, ...], answers: tuple[int, ...]) -> None:
        """The shapes, for as many tiles as ever go through in one call."""
        self.tiles, self.answers = np.zeros(tiles, np.uint8), np.zeros(answers, np.float32)

    def through(
        self, infer: Callable[[NDArray[np.uint8], NDArray[np.float32]], int | None], pieces: Sequence[Piece]
    ) -> int | None:
        """All pieces through `infer` (see `Backend`) in one call; returns its witness.

        A whole frame that is alone goes as it lies.
        """
        if len(pieces) == 1 and len(pieces[0].chosen) == len(pieces[0].tiles):
            return infer(pieces[0].tiles, pieces[0].answers)
        ends = list(accumulate(len(p.chosen) for p in pieces))
        places = [slice(end - len(p.chosen), end) for p, end in zip(pieces, ends, strict=True)]
        for piece, place in zip(pieces, places, strict=True):
            np.take(piece.tiles, piece.chosen, axis=0, out=self.tiles[place], mode="clip")  # "raise" would make a copy
        witness = infer(self.tiles[: ends[-1]], self.answers[: ends[-1]])
        for piece, place in zip(pieces, places, strict=True):
            piece.answers[list(piece.chosen)] = self.answers[place]
        return witness
