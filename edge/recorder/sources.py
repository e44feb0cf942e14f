"""Records the sources of a recipe and judges nothing: for cameras that have no calibration yet.

One thread per source polls it and copies its frames into buffers of its own; the recorder's thread empties them. A live
source drops a frame without a free buffer, and counts it; a lossless one waits.
"""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path

import numpy as np
import structlog

from edge.backoff import Backoff
from edge.errors import ResourceError, SourceError
from edge.messages import Trigger, ViewResult
from edge.recorder.open_recording import Frame
from edge.recorder.process import about_recipe
from edge.recorder.retention import OneFile, Place, RollFolder
from edge.recorder.rolls import Bounds
from edge.recorder.settings import RecordingSettings
from edge.recorder.slots import RecordTrouble
from edge.recorder.writing import Counts, Recorder
from edge.settings import Mode, Recipe, Station
from edge.sources import Ended, Exposed, Image, Triggered, open_source
from edge.verdict import Decision, Reason

__all__ = ["record_sources"]

POLL_S = 0.1
FINISH_S = 600.0
_KEEP_FREE_BYTES = 64 << 20


def record_sources(recipe: Recipe, out: Path, stop: threading.Event) -> str:
    """Record until every source has ended or `stop` is set; what came of it, in words.

    Raises SourceError for a source that cannot be read, RecipeError for a camera that refuses what the recipe asks of
    it, ResourceError when the recording had to stop.
    """
    settings = recipe.recording or RecordingSettings()
    recorder = Recorder(
        _place(out, recipe, settings),
        settings,
        lambda: about_recipe(recipe),
        judged=False,
        at_end=lambda counts: _counted(taps, counts),
    )
    start_ns = time.monotonic_ns()
    alone = {s.name: len(recipe.lane_views(s.lane)) == 1 for s in recipe.stations}
    taps = [_Tap(s, recorder, settings.slots, start_ns, stop, alone[s.name]) for s in recipe.stations]
    recorder.start()
    for tap in taps:
        tap.start()
    while any(t.is_alive() for t in taps) and not any(t.error for t in taps) and recorder.trouble is RecordTrouble.NO:
        time.sleep(POLL_S)
    stop.set()
    for tap in taps:
        tap.join()
    if not recorder.finish(FINISH_S):
        raise ResourceError(f"{out}: the disk has not taken the recording within {FINISH_S:.0f} s")
    if failed := next((tap.error for tap in taps if tap.error), None):
        raise failed
    return _report(out, taps, recorder)


def _place(out: Path, recipe: Recipe, settings: RecordingSettings) -> Place:
    if out.suffix == ".mcap":
        if not out.parent.is_dir():
            raise ResourceError(f"{out.parent}: no such folder; make it, or name another one with --out")
        if out.exists():
            raise ResourceError(f"{out}: is there already; name another file with --out, or remove it")
        return OneFile(out, _KEEP_FREE_BYTES)
    bounds = Bounds(settings.roll_mib << 20, settings.max_mib << 20, settings.marked_mib << 20)
    return RollFolder(out, recipe.line, bounds, _KEEP_FREE_BYTES)


class _Tap(threading.Thread):
    """Reads one source to its end."""

    def __init__(
        self,
        station: Station,
        recorder: Recorder,
        slots: int,
        start_ns: int,
        stop: threading.Event,
        alone: bool,
    ) -> None:
        """`alone`: no other station sees the parts of its lane."""
        super().__init__(name=f"tap.{station.name}", daemon=True)
        self.station, self.dropped, self.next_number = station, 0, 0
        self.error: Exception | None = None
        self._alone = alone
        self._recorder, self._start_ns, self._stop_asked = recorder, start_ns, stop
        self._at_ns = 0
        self._buffers: queue.SimpleQueue[Image] = queue.SimpleQueue()
        frame = station.frame
        for _ in range(slots):
            self._buffers.put(np.zeros((frame.height_px, frame.width_px, frame.channels), frame.dtype))

    def run(self) -> None:
        """Read it; a camera that is gone is looked for until it is back, anything else that fails ends this."""
        away = Backoff()
        while not self._stop_asked.is_set():
            before = self.next_number
            try:
                self._read()
                return
            except Exception as error:  # whatever it is: a thread that dies without a word would look like the end
                if not (isinstance(error, SourceError) and self.station.source.is_camera):
                    self.error = error
                    return
                structlog.get_logger().warning("source_gone", station=self.station.name, error=str(error))
            if self.next_number > before:
                away = Backoff()
            self._stop_asked.wait(away.failed(time.monotonic(), 0.0))

    def _read(self) -> None:
        astray = not self._alone and self.next_number > 0
        source = open_source(self.station, self._start_ns, self.next_number, self._alone, astray)
        try:
            while not self._stop_asked.is_set():
                event = source.poll(POLL_S)
                if isinstance(event, Triggered):
                    self._trigger(event)
                elif isinstance(event, Exposed):
                    self._expose(event)
                elif isinstance(event, Ended):
                    return
        finally:
            source.close()

    def _trigger(self, event: Triggered) -> None:
        self._at_ns, self.next_number = event.at_ns, event.number + 1
        self._recorder.put(
            Trigger(self.station.name, event.number, event.at_ns, event.missed, event.count, event.part_id)
        )

    def _expose(self, event: Exposed) -> None:
        if event.image is None:
            refused = Decision.UNINSPECTED, event.reason or Reason.BAD_IMAGE
            self._recorder.put(ViewResult(self.station.name, event.number, self._at_ns, *refused))
            return
        buffer = self._buffer()
        if buffer is None:
            self.dropped += 1
            return
        fits = buffer.shape == event.image.shape and buffer.dtype == event.image.dtype
        image = buffer if fits else np.empty_like(event.image)
        np.copyto(image, event.image)
        now_ns = time.monotonic_ns()
        self._recorder.put(Frame(self.station.name, event.number, now_ns, image, lambda: self._buffers.put(buffer)))

    def _buffer(self) -> Image | None:
        """A free buffer; a lossless source waits for one."""
        while True:
            try:
                return self._buffers.get(timeout=POLL_S if self.station.source.mode is Mode.LOSSLESS else 0.001)
            except queue.Empty:
                if self.station.source.mode is Mode.LIVE or self._stop_asked.is_set():
                    return None


def _counted(taps: list[_Tap], counts: Counts) -> dict[str, str]:
    dropped = sum(tap.dropped for tap in taps) + counts.frames_lost
    lost = {"frames_unrecorded": str(dropped), "messages_unrecorded": str(counts.messages_lost)}
    return {"frames": str(counts.frames), **lost}


def _report(out: Path, taps: list[_Tap], recorder: Recorder) -> str:
    """What came of it. Raises ResourceError when the recording had to stop before its sources."""
    counted = _counted(taps, recorder.counts)
    stations = ", ".join(tap.station.name for tap in taps)
    said = f"{out}: {counted['frames']} frames of {stations}, {counted['frames_unrecorded']} not recorded"
    if recorder.counts.messages_lost:
        said += f", and {counted['messages_unrecorded']} triggers or refusals not either"
    if recorder.trouble is not RecordTrouble.NO:
        raise ResourceError(f"{said}; the recording stopped: its disk is full or cannot be written")
    return said
