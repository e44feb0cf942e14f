"""Frames of the simulated conveyor (edge/actuators/conveyor.py): independent triggers with the encoder's count.

The conveyor counts triggers whether or not anybody listens, and remembers for each start of the line which one was its
first. So a capture process that was started again knows how many it has missed.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import msgpack
import numpy as np
import zmq

from edge.errors import SourceError
from edge.settings import Station
from edge.sources import Event, Exposed, Triggered
from edge.verdict import Reason

__all__ = ["ConveyorSource"]

QUEUE_FRAMES = 8
MAX_FRAME_BYTES = 1 << 26


class ConveyorSource:
    """The camera of one station; see `edge.sources.Source`."""

    def __init__(self, station: Station, session: int, first_number: int) -> None:
        """`session`: the same for every capture process of one start of the line. Raises SourceError."""
        frame = station.frame
        self._shape, self._dtype = (frame.height_px, frame.width_px, frame.channels), np.dtype(frame.dtype)
        self._next = first_number
        self._events: deque[Event] = deque()
        self._owed: int | None = None  # the trigger that waits for its frame
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set_hwm(2 * QUEUE_FRAMES)
        self._socket.maxmsgsize = MAX_FRAME_BYTES
        self._socket.linger = 0
        try:
            self._socket.connect(station.source.endpoint or "")
        except zmq.ZMQError as error:
            self.close()
            raise SourceError(
                f"{station.name}: {station.source.endpoint}: not an endpoint that can be connected to: {error.strerror}"
            ) from error
        hello = {"type": "camera", "station": station.name, "session": session, "first": first_number}
        self._socket.send(msgpack.packb(hello))

    def poll(self, timeout_s: float) -> Event | None:
        """The next event, or None when nothing happened for `timeout_s`."""
        give_up = time.monotonic() + timeout_s
        while not self._events:
            left_ms = max(0, round((give_up - time.monotonic()) * 1000))
            if not self._socket.poll(left_ms):
                return None
            self._take(msgpack.unpackb(self._socket.recv()))
        return self._events.popleft()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _take(self, message: dict[str, Any]) -> None:
        number = message["number"]
        if message["type"] == "frame":
            if number == self._owed:
                self._owed = None
                self._events.append(self._exposed(number, message["image"]))
            return
        if number < self._next:
            return
        if self._owed is not None:
            self._events.append(Exposed(self._owed, None, Reason.MISSED_FRAME, "the next trigger came before a frame"))
        at_ns = message["at_ns"]
        self._events.extend(Triggered(n, at_ns, missed=True) for n in range(self._next, number))
        self._events.append(Triggered(number, at_ns, count=message["count"], part_id=message["part_id"]))
        self._next, self._owed = number + 1, number

    def _exposed(self, number: int, image: bytes) -> Exposed:
        if len(image) != np.prod(self._shape) * self._dtype.itemsize:
            detail = f"{len(image)} bytes, the recipe's frame is {self._shape} of {self._dtype}"
            return Exposed(number, None, Reason.WRONG_SIZE, detail)
        return Exposed(number, np.frombuffer(image, self._dtype).reshape(self._shape))
