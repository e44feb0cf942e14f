"""A camera whose library blocks as long as it likes, as one that never does: a thread of its own opens and reads it.

The capture process waits for frames, never for the library: an address that does not answer, a name server that is
away, a stream that stands still end in SourceError in a known time. A thread that hangs beyond that is left behind; it
ends with its process, which ends because of the error. So these are cameras that run freely: one that waits for
triggers is silent and well, and would be taken for one that is away.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edge.errors import SourceError
from edge.sources.camera import Grabbed

__all__ = ["LIMITS", "BlockingCamera", "Device", "Limits"]

QUEUE = 8
"""Frames that wait for capture. Older ones make room, and count as missed: a late answer is worth nothing."""


@dataclass(frozen=True)
class Limits:
    """How long a camera may keep us waiting."""

    open_s: float = 6.0  # from the address to a stream
    silence_s: float = 5.0  # from frame to frame
    close_s: float = 1.0


LIMITS = Limits()


class Device(Protocol):
    """An open camera as its library has it. Every call may block. All are made by one thread."""

    def read(self) -> Grabbed | None:
        """The next frame, or None where there was none yet. Raises SourceError when there will be no more."""
        ...

    def close(self) -> None: ...


class BlockingCamera:
    """A `Camera` made of a `Device`; see `edge.sources.camera`."""

    def __init__(self, name: str, open_device: Callable[[], Device], limits: Limits = LIMITS) -> None:
        """`name`: of the camera, in messages. Raises SourceError if it is not open in time."""
        self._name, self._limits = name, limits
        self._frames: queue.Queue[Grabbed] = queue.Queue(QUEUE)
        self._opened, self._stopping = threading.Event(), threading.Event()
        self._error: SourceError | None = None
        self._is_open = False
        self._thread = threading.Thread(target=self._run, args=(open_device,), name=name, daemon=True)
        self._thread.start()
        self._opened.wait(limits.open_s)
        self._heard_s = time.monotonic()
        if not self._is_open:
            self._stopping.set()
            raise self._error or SourceError(f"{name}: no stream {limits.open_s:g} s after it was asked for")

    def grab(self, timeout_s: float) -> Grabbed | None:
        """The next frame, or None when none came in time. Raises SourceError when the camera is gone or silent."""
        try:
            found = self._frames.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            if self._error:
                raise self._error from None
            if (silent_s := time.monotonic() - self._heard_s) > self._limits.silence_s:
                raise SourceError(
                    f"{self._name}: no frame for {silent_s:.0f} s; is it there, and does it run freely?"
                ) from None
            return None
        self._heard_s = time.monotonic()
        return found

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(self._limits.close_s)

    def _run(self, open_device: Callable[[], Device]) -> None:
        """The thread. Whatever ends it must be said: nobody else would."""
        try:
            with contextlib.closing(open_device()) as device:
                self._is_open = True
                self._opened.set()
                while not self._stopping.is_set():
                    if grabbed := device.read():
                        self._offer(grabbed)
        except SourceError as error:
            self._error = error
        except Exception as error:
            self._error = SourceError(f"{self._name}: {error!r}")
        finally:
            self._opened.set()

    def _offer(self, grabbed: Grabbed) -> None:
        while True:
            try:
                self._frames.put_nowait(grabbed)
                return
            except queue.Full:
                try:
                    self._frames.get_nowait()
                except queue.Empty:
                    continue
