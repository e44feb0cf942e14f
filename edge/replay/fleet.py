"""Many recordings through their lines, several at once, and one account of all.

A recording that cannot be replayed is a row of that account, not the end of the run. Each replay runs in a process of
its own (`edge.replay.isolated`); one whose process dies is tried again, at most `TRIES` times in all. Where replays
run, here or on a cluster (`edge.replay.on_ray`), is a `Pool`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Protocol

from edge.errors import MasklineError
from edge.recording import Recording
from edge.replay.alone import replay_process
from edge.replay.compare import Comparison
from edge.replay.differences import long_text
from edge.replay.isolated import POLL_S, Isolated, LostError
from edge.replay.run import ReplayOptions, ReplayResult, replay_recording
from edge.verdict import Decision

__all__ = ["CORES", "TRIES", "Lost", "Pool", "Row", "State", "ThisBox", "Work", "replay_row", "row_of", "run_fleet"]

TRIES = 3
"""How often a replay is started whose process dies."""
CORES = 1
"""What a replay gets: an engine of one thread, where the recipe leaves that to the machine; scores do not depend on it.
With as many replays as there are cores none is idle, neither while lines start nor while engines wait for frames."""
_DIFFERENCES = 1000
"""In the account of one recording; all of them are counted."""


class State(str, Enum):
    """What became of a recording."""

    SAME = "same"
    REPLAYED = "replayed"  # and compared with nothing, or asked what would change
    DIFFERENT = "different"
    UNCOMPARED = "uncompared"  # it was to be compared, and every part was told apart
    FAILED = "failed"  # it cannot be replayed, and why is said
    LOST = "lost"  # its process died each time

    @property
    def good(self) -> bool:
        return self in (State.SAME, State.REPLAYED)


@dataclass(frozen=True)
class Row:
    """What became of a recording, small enough to keep thousands. Equal for equal replays, wherever they ran."""

    recording: str
    state: State
    said: str = field(default="", compare=False)  # why there is no answer
    parts: int = 0
    decisions: tuple[tuple[str, int], ...] = ()  # PASS, REJECT, UNINSPECTED(reason), and how many
    answers: str = ""  # SHA-256 of all outcomes: score by score, bit by bit
    compared: int = 0
    different: int = 0
    apart: int = 0
    turned: int = 0  # parts that change side: they passed and do not, or the other way round
    largest_score_difference: float = 0.0
    differences: str = ""  # field by field, in words
    notes: tuple[str, ...] = ()
    machine: str = field(default="", compare=False)
    seconds: float = field(default=0.0, compare=False)  # with the start of the line
    tries: int = field(default=1, compare=False)


Work = Callable[[Path], Row]
"""Replays a recording; can be pickled."""


@dataclass(frozen=True)
class Lost:
    """A replay whose process died, and how."""

    why: str


class Pool(Protocol):
    """Where replays run."""

    at_once: int

    def start(self, recording: Path) -> None:
        """Start one."""

    def wait(self) -> tuple[Path, Row | Lost]:
        """Wait until one of those that were started has ended."""

    def close(self) -> None:
        """End those that run; nothing is left of them."""


def run_fleet(recordings: Sequence[Path], pool: Pool, tell: Callable[[Row], None] = lambda row: None) -> list[Row]:
    """Replay them all; a row for each, in their order. `tell` gets each row as it comes. Closes the pool."""
    waiting, tries, rows = deque(dict.fromkeys(recordings)), Counter[Path](), dict[Path, Row]()
    running = 0
    try:
        while waiting or running:
            while waiting and running < pool.at_once:
                recording = waiting.popleft()
                tries[recording] += 1
                pool.start(recording)
                running += 1
            recording, answer = pool.wait()
            running -= 1
            if isinstance(answer, Lost):
                if tries[recording] < TRIES:
                    waiting.append(recording)
                    continue
                answer = Row(str(recording), State.LOST, answer.why)
            rows[recording] = replace(answer, tries=tries[recording])
            tell(rows[recording])
    finally:
        pool.close()
    return [rows[recording] for recording in dict.fromkeys(recordings)]


class ThisBox:
    """A pool of processes on this machine."""

    def __init__(self, work: Work, at_once: int | None = None) -> None:
        """`at_once`: how many; absent: as many as there are cores for."""
        self.at_once = at_once or max(1, len(os.sched_getaffinity(0)) // CORES)
        self._work = work
        self._running: dict[Path, Isolated] = {}

    def start(self, recording: Path) -> None:
        self._running[recording] = Isolated(partial(self._work, recording))

    def wait(self) -> tuple[Path, Row | Lost]:
        while not (ended := next((r for r, process in self._running.items() if process.ended()), None)):
            time.sleep(POLL_S)
        try:
            return ended, self._running.pop(ended).answer()
        except LostError as error:
            return ended, Lost(str(error))

    def close(self) -> None:
        for process in self._running.values():
            process.end()
        self._running.clear()


def replay_row(recording: Path, options: ReplayOptions, process: str | None = None, what_if: bool = False) -> Row:
    """Replay one, the whole line or one process of it. Raises nothing: what goes wrong is in the row.

    With `what_if` the recording is asked what would change, where it has verdicts, and a change is no fault.
    """
    began = time.monotonic()
    try:
        options = replace(options, threads=CORES)
        if what_if and next(Recording(recording).verdicts(), None) is not None:
            options = replace(options, expected="recorded")
        result = (
            replay_recording(recording, options) if process is None else replay_process(recording, process, options)
        )
        row = row_of(recording, result, what_if)
    except MasklineError as error:
        row = Row(str(recording), State.FAILED, str(error))
    except Exception:
        row = Row(str(recording), State.FAILED, f"an error of maskline itself: {traceback.format_exc().strip()}")
    return replace(row, machine=platform.node(), seconds=time.monotonic() - began)


def row_of(recording: Path, result: ReplayResult, what_if: bool) -> Row:
    """What is kept of a replay's answer."""
    row = Row(
        recording=str(recording),
        state=State.REPLAYED,
        parts=len(result.outcomes),
        decisions=tuple(result.decisions.items()),
        answers=hashlib.sha256(json.dumps(result.outcomes, sort_keys=True).encode()).hexdigest(),
        notes=result.notes,
    )
    if (found := result.comparison) is None:
        return row
    row = replace(
        row,
        compared=found.parts,
        different=found.different,
        apart=found.apart_parts,
        turned=_turned(found),
        largest_score_difference=found.largest_score_difference,
    )
    if what_if:
        return row
    if found.same:
        return replace(row, state=State.SAME if found.parts else State.UNCOMPARED)
    return replace(row, state=State.DIFFERENT, differences=_in_words(recording, result.line, found))


def _turned(found: Comparison) -> int:
    sides = [d for d in found.differences if d.field == "decision" and Decision.PASS.value in (d.expected, d.found)]
    return len({(d.lane, d.part) for d in sides})


def _in_words(recording: Path, line: str, found: Comparison) -> str:
    left_out = len(found.differences) - _DIFFERENCES
    text = long_text(replace(found, differences=found.differences[:_DIFFERENCES]), f"{recording}: {line}")
    return text + (f"and {left_out} differences more; replay this recording alone\n" if left_out > 0 else "")
