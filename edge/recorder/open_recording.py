"""One recording while it is written: on the clock of the box as it was when it began, and on the disk for good."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge.messages import Trigger, Verdict, ViewResult
from edge.recorder.settings import RecordingSettings
from edge.recording import RecordingWriter
from edge.sources import Image

__all__ = ["END", "Frame", "Item", "OpenRecording"]

END = "maskline.end"
"""The metadata record of what is known only when a recording is closed."""
FLUSH_S = 1.0
"""An open chunk waits no longer for more: on a slow line a crash costs a second, not an hour."""
SYNC_BYTES = 32 << 20
"""The disk is waited for this often, so that what the kernel has not written yet delays nobody else's fsync."""


@dataclass(frozen=True)
class Frame:
    """A frame to write down; `done` is called once the image is not needed any more."""

    station: str
    number: int
    at_ns: int  # monotonic clock
    image: Image = field(repr=False)
    done: Callable[[], None] = lambda: None


Item = Trigger | ViewResult | Verdict | Frame


class OpenRecording:
    """A recording that is being written, on the clock of this machine as it was when it began."""

    def __init__(self, path: Path, about: Mapping[str, str], calibration: bytes | None) -> None:
        self.path = path
        self._writer = RecordingWriter(path, about)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if calibration is not None:
            self._writer.calibration(calibration)
        self._utc_offset_ns = time.time_ns() - time.monotonic_ns()
        self._began = self._flushed = time.monotonic()
        self._last_ns: dict[tuple[type, str], int] = {}
        self.unsettled = 0, 0  # frames and messages in the open chunk
        self._settled_at = self._synced = 0

    @property
    def nbytes(self) -> int:
        return self._writer.nbytes

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._began

    def utc_ns(self, monotonic_ns: int) -> int:
        """A moment of the host's monotonic clock, in UTC."""
        return max(0, monotonic_ns + self._utc_offset_ns)

    def write(self, item: Item, settings: RecordingSettings) -> None:
        """Write one item. Raises ValueError, SourceError, OSError."""
        writer = self._writer
        if isinstance(item, Verdict):
            writer.verdict(item, self._rising(Verdict, item.lane, item.decided_ns))
        elif isinstance(item, ViewResult):
            writer.result(item, self._rising(ViewResult, item.station, item.stamps[-1] if item.stamps else item.at_ns))
        elif isinstance(item, Trigger):
            at_ns = self._rising(Trigger, item.station, item.at_ns)
            known = {"missed": item.missed, "count": item.count, "part_id": item.part_id}
            writer.trigger(item.station, item.number, at_ns, **known)  # type: ignore[arg-type]
        else:
            at_ns = self._rising(Frame, item.station, item.at_ns)
            writer.frame(item.station, item.number, at_ns, item.image, settings.encoding, settings.quality)
        frames, messages = self.unsettled
        self.unsettled = (frames + 1, messages) if isinstance(item, Frame) else (frames, messages + 1)

    def settled(self) -> tuple[int, int]:
        """Frames and messages that no death of this process can take any more, since the last call: their chunk is
        closed."""
        size = os.fstat(self._fd).st_size
        if size == self._settled_at:
            return 0, 0
        self._settled_at, settled, self.unsettled = size, self.unsettled, (0, 0)
        return settled

    def keep_up(self) -> None:
        """Close the chunk that waits for more, and wait for the disk, each when it is time. Raises OSError."""
        if time.monotonic() - self._flushed > FLUSH_S:
            self._writer.flush()
            self._flushed = time.monotonic()
        if self.nbytes - self._synced > SYNC_BYTES:
            self._sync()

    def close(self, at_end: Mapping[str, str]) -> None:
        """Write down what is known at the end, and the index. Raises OSError."""
        self._writer.add_metadata(END, at_end)
        self._writer.close()
        self._sync()

    def release(self) -> None:
        """Nothing more will be asked of it."""
        with contextlib.suppress(OSError):
            self._writer.abandon()
        os.close(self._fd)

    def _rising(self, kind: type, name: str, at_ns: int) -> int:
        """UTC; a time that falls, after a process was replaced, is the one before it."""
        last = self._last_ns.get((kind, name), 0)
        self._last_ns[kind, name] = max(last, self.utc_ns(at_ns))
        return self._last_ns[kind, name]

    def _sync(self) -> None:
        """Wait for the disk, and leave the memory to others: nobody reads this soon."""
        os.fdatasync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._synced = self.nbytes
