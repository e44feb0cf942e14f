"""The recorder: a thread that writes down what it is given, in files that follow each other.

Whoever gives it something never waits: what finds no place in its queue, or no disk, is counted as not recorded. The
thread may hang in the kernel for as long as the disk does. A roll is closed between two parts where there is a moment
without an open one; a part that was open has its verdict in the next.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from edge.errors import SourceError
from edge.messages import Trigger, Verdict
from edge.recorder.open_recording import Frame, Item, OpenRecording
from edge.recorder.retention import Place
from edge.recorder.settings import RecordingSettings
from edge.recorder.slots import RecordTrouble
from edge.recording.format import FIRST_NUMBERS
from edge.verdict import Decision

__all__ = ["Counts", "Recorder"]

QUEUE_ITEMS = 10_000
"""Messages that wait for the disk; frames are bounded by their slots."""
RETRY_S = 5.0
_ROLL_EARLY = 0.05
"""Short of its size by this share, or by two parts, a roll is closed at the next moment without an open part."""
_IDLE_S = 0.05
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Counts:
    """What became of what was given to the recorder."""

    frames: int = 0  # written, in a chunk that is closed: they outlive this process
    messages: int = 0
    frames_lost: int = 0
    messages_lost: int = 0


class Recorder:
    """Writes items into recordings at a place, in a thread of its own."""

    def __init__(
        self,
        place: Place,
        settings: RecordingSettings,
        about: Callable[[], Mapping[str, str]],
        *,
        calibration: bytes | None = None,
        first_numbers: Mapping[str, int] | None = None,
        judged: bool = True,
        at_end: Callable[[Counts], Mapping[str, str]] = lambda _: {},
    ) -> None:
        """`about`: what a recording says of itself when it begins; `at_end`: when it is closed, from what was counted.
        `first_numbers`: by station, the next trigger's. `judged`: parts are closed by verdicts, otherwise by frames."""
        self._place, self._settings, self._about, self._at_end = place, settings, about, at_end
        self._calibration, self._next = calibration, dict(first_numbers or {})
        self._judged = judged
        self._roll_bytes = settings.roll_mib << 20
        self._log = structlog.get_logger()
        self.counts, self.trouble = Counts(), RecordTrouble.NO
        self._queue: queue.Queue[Item] = queue.Queue(QUEUE_ITEMS)
        self._lock = threading.Lock()  # of the counts
        self._file: OpenRecording | None = None
        self._retry_at = 0.0
        self._open_parts: set[tuple[str, int]] = set()
        self._largest_frame = 0
        self._ending = threading.Event()
        context = contextvars.copy_context()  # whose log it is
        self._thread = threading.Thread(target=lambda: context.run(self._run), name="recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def put(self, item: Item) -> None:
        """Have it written down; never waits."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._count(lost=_one(item))
            if isinstance(item, Frame):
                item.done()

    def finish(self, timeout_s: float) -> bool:
        """Write what waits, close the recording; False when the disk was too slow for that."""
        self._ending.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=_IDLE_S)
            except queue.Empty:
                if self._ending.is_set():
                    break
                self._work_ahead()
                continue
            self._write(item)
            if self._queue.empty():
                self._step()
        self._close()

    def _write(self, item: Item) -> None:
        written = False
        try:
            if (file := self._file_for(item)) is not None:
                file.write(item, self._settings)
                written = True
                self._take_note(item, file)
                file.keep_up()
                self._count(written=file.settled())
        except ValueError as error:  # a number that was there already, or is out of range
            self._log.warning("not_recorded", error=str(error))
        except (OSError, SourceError) as error:
            self._stop(error)
        finally:
            if not written:
                self._count(lost=_one(item))
            if isinstance(item, Frame):
                item.done()

    def _file_for(self, item: Item) -> OpenRecording | None:
        """The recording into which an item belongs, after those that are full were closed; None while there is none."""
        nbytes = item.image.nbytes if isinstance(item, Frame) else 0
        self._largest_frame = max(self._largest_frame, nbytes)
        if self._file is not None and self._place.rolls and self._is_full(self._file, item, nbytes):
            self._close()
        if self._file is None:
            if time.monotonic() < self._retry_at:
                return None
            self._open(item, nbytes)
        elif nbytes and not self._place.has_room(nbytes):
            self._stop(None)
        return self._file

    def _is_full(self, file: OpenRecording, item: Item, nbytes: int) -> bool:
        if file.nbytes + nbytes > self._roll_bytes:
            return True
        margin = max(_ROLL_EARLY * self._roll_bytes, 2 * len(self._next) * self._largest_frame)
        due = file.nbytes + min(margin, self._roll_bytes / 2) > self._roll_bytes or file.age_s > self._settings.roll_s
        between_parts = isinstance(item, Trigger) and not self._open_parts
        return due and (between_parts or file.age_s > 1.05 * self._settings.roll_s + 1)

    def _open(self, item: Item, nbytes: int) -> None:
        start_ns = time.time_ns()
        path = self._place.next_path(start_ns)
        if not self._place.has_room(nbytes):
            self._stop(None)
            return
        if isinstance(item, Trigger):
            self._next[item.station] = item.number
        about = {**self._about(), FIRST_NUMBERS: json.dumps(self._next, sort_keys=True)}
        self._file = OpenRecording(path, about, self._calibration)
        self._open_parts.clear()
        if self.trouble is not RecordTrouble.NO:
            self._log.info("recording_again", path=str(path))
        self.trouble = RecordTrouble.NO

    def _take_note(self, item: Item, file: OpenRecording) -> None:
        """Which parts are open, and which stretches are protected."""
        if isinstance(item, Trigger):
            self._next[item.station] = item.number + 1
            if not item.missed or self._judged:
                self._open_parts.add((item.station, item.number))
        elif isinstance(item, Verdict):
            self._open_parts -= {(view.station, item.part) for view in item.views}
            around_ns = round(self._settings.mark_s * 1e9)
            if item.decision is Decision.REJECT and around_ns:
                first, last = file.utc_ns(item.trigger_ns), file.utc_ns(item.decided_ns)
                self._place.mark((first - around_ns, last + around_ns))
        elif not self._judged:
            self._open_parts.discard((item.station, item.number))

    def _work_ahead(self) -> None:
        """What an idle moment is good for."""
        try:
            if self._file is not None:
                self._file.keep_up()
                self._count(written=self._file.settled())
        except OSError as error:
            self._stop(error)
        while self._queue.empty() and not self._ending.is_set() and self._step():
            pass

    def _step(self) -> bool:
        try:
            return self._place.step()
        except OSError as error:
            self._log.warning("marked_stretch_not_kept", error=str(error))
            return False

    def _stop(self, error: Exception | None) -> None:
        """The disk takes no more: say so, close the file as well as it goes, and try again later."""
        cause = error.__cause__ if isinstance(error, SourceError) else error
        full = error is None or (isinstance(cause, OSError) and cause.errno in _NO_SPACE)
        trouble = RecordTrouble.FULL if full else RecordTrouble.REFUSED
        if trouble is not self.trouble:
            why = str(error) if error else "what is left of it belongs to the journal"
            self._log.error("recording_stopped", trouble=trouble.name.lower(), why=why)
        self.trouble, self._retry_at = trouble, time.monotonic() + RETRY_S
        self._close(broken=error is not None)

    def _close(self, broken: bool = False) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        in_open_chunk = file.unsettled
        self._count(written=in_open_chunk)
        whole = False
        with contextlib.suppress(OSError):
            if not broken:
                file.close(self._at_end(self.counts))
                whole = True
        file.release()
        if not whole:
            self._count(written=(-in_open_chunk[0], -in_open_chunk[1]), lost=in_open_chunk)
        say = self._log.info if whole else self._log.warning
        say("recorded" if whole else "recording_cut", path=str(file.path), mib=file.nbytes >> 20)

    def _count(self, written: tuple[int, int] = (0, 0), lost: tuple[int, int] = (0, 0)) -> None:
        """Count frames and messages; both threads lose some."""
        with self._lock:
            was = self.counts
            self.counts = Counts(
                was.frames + written[0],
                was.messages + written[1],
                was.frames_lost + lost[0],
                was.messages_lost + lost[1],
            )


def _one(item: Item) -> tuple[int, int]:
    """An item as frames and messages."""
    return (1, 0) if isinstance(item, Frame) else (0, 1)
