"""A recorder in the test's own process, and what it is given."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge.ledger import view_of
from edge.messages import Trigger, Verdict, ViewResult
from edge.recorder.open_recording import Frame
from edge.recorder.retention import Place, RollFolder
from edge.recorder.rolls import Bounds
from edge.recorder.settings import RecordingSettings
from edge.recorder.writing import Recorder
from edge.recording import RecordedFrame, Recording
from edge.testing import PATIENCE_S
from edge.verdict import Decision

__all__ = ["MIB", "SIDE", "Feed", "image_of", "numbers", "quickly", "record_into", "verdict_of"]

MIB, SIDE = 1 << 20, 256
"""Frames of 64 KiB that no encoder makes smaller."""


def image_of(number: int) -> np.ndarray:
    """The frame of a part: noise, and another one for each part."""
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 1), np.uint8)


def verdict_of(result: ViewResult, trigger_ns: int, at_ns: int) -> Verdict:
    """What a gate says of a part with one view, at `at_ns`."""
    return Verdict(
        line="line",
        lane=result.station,
        part=result.number,
        part_id=None,
        count=None,
        decision=result.decision,
        reason=result.reason,
        late=False,
        epoch="e",
        seq=result.number + 1,
        topic_seq=result.number + 1,
        run=1,
        score=result.score,
        threshold=result.threshold,
        views=[view_of(result, "bundle")],
        simulated=True,
        recipe="r",
        boot_id="b",
        trigger_ns=trigger_ns,
        deadline_ns=trigger_ns + 10**9,
        decided_ns=at_ns + 1,
        trigger_utc_ns=trigger_ns,
        decided_utc_ns=at_ns,
    )


def quickly(condition: Callable[[], bool]) -> None:
    """`edge.testing.wait_until` for what takes a millisecond."""
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, f"not true within {PATIENCE_S} s: {condition}"
        time.sleep(0.000_2)


class Feed:
    """Gives parts to a recorder, one after the other, and waits until each is written."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.next, self.released = recorder, 0, 0
        self._triggers_ns: dict[int, int] = {}

    def part(self, decision: Decision = Decision.PASS) -> None:
        """One part with all that is said of it."""
        self.judge(self.expose(), decision)

    def expose(self) -> int:
        """Trigger and frame of the next part; its number."""
        number, at_ns = self.next, time.monotonic_ns()
        self.next += 1
        self._triggers_ns[number] = at_ns
        self.recorder.put(Trigger("cam", number, at_ns))
        self.recorder.put(Frame("cam", number, at_ns, image_of(number), self._release))
        return number

    def judge(self, number: int, decision: Decision = Decision.PASS) -> None:
        """What is said of a part."""
        at_ns = time.monotonic_ns()
        result = ViewResult("cam", number, at_ns, decision, score=0.1, threshold=0.5, stamps=[at_ns])
        self.recorder.put(result)
        self.recorder.put(verdict_of(result, self._triggers_ns[number], at_ns))

    def parts(self, count: int, decision: Decision = Decision.PASS) -> None:
        for _ in range(count):
            self.part(decision)
            quickly(lambda: self.released == self.next)

    def _release(self) -> None:
        self.released += 1


def record_into(folder: Path, place: Place | None = None, **settings: object) -> tuple[Recorder, Feed]:
    """A recorder that was started, and its feed."""
    chosen = RecordingSettings.model_validate({"encoding": "raw", **settings})
    bounds = Bounds(chosen.roll_mib * MIB, chosen.max_mib * MIB, chosen.marked_mib * MIB)
    recorder = Recorder(
        place or RollFolder(folder, "line", bounds, 0),
        chosen,
        lambda: {"line": "line"},
        at_end=lambda counts: {"frames": str(counts.frames)},
    )
    recorder.start()
    return recorder, Feed(recorder)


def numbers(path: Path) -> list[int]:
    """The parts of which a recording has a frame; each must be the right one."""
    recording = Recording(path)
    found = [e for e in recording.events("cam") if isinstance(e, RecordedFrame)] if recording.stations else []
    for frame in found:
        assert np.array_equal(frame.decode(), image_of(frame.number))
    return [frame.number for frame in found]
