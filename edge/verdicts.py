"""The client of the verdict channel: what a dashboard, a test or a bridge uses to listen to a line.

    with Subscriber("ipc:///run/maskline/line1/verdicts", line="line1") as line:
        for event in line:
            ...

PUB may lose messages: a gap in `topic_seq` is reported as `Gap`. No heartbeat for three intervals is `Silence`: from
then on nothing may be passed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import zmq

from edge.messages import MAX_MESSAGE_BYTES, Heartbeat, ProtocolError, Verdict, decode
from edge.topics import HEALTH, HEARTBEAT_INTERVAL_MS, SILENCE_INTERVALS, VERDICT, topic

__all__ = ["Event", "Gap", "Refused", "Silence", "Subscriber"]


@dataclass(frozen=True)
class Silence:
    """No heartbeat for `for_ms`: the gate, its box or the way to it is dead."""

    for_ms: int


@dataclass(frozen=True)
class Gap:
    """Verdicts of a lane that were published and did not arrive."""

    lane: str
    first: int
    last: int


@dataclass(frozen=True)
class Refused:
    """A message that is not of this protocol."""

    why: str


Event = Verdict | Heartbeat | Silence | Gap | Refused


class Subscriber:
    """Listens to one line, or with `line=None` to all that publish on the endpoint."""

    def __init__(self, endpoint: str, line: str | None = None) -> None:
        """Raises ValueError for an endpoint that ZeroMQ does not understand. A line that is not there is `Silence`."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.maxmsgsize = MAX_MESSAGE_BYTES
        self._socket.ipv6 = True
        for kind in (VERDICT, HEALTH):
            self._socket.subscribe(topic(kind, line) if line else topic(kind))
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"{endpoint}: not an endpoint that can be connected to: {error.strerror}") from error
        self._heard = time.monotonic()
        self._interval_ms = HEARTBEAT_INTERVAL_MS
        self._silent = False
        self._newest: dict[str, tuple[str, int]] = {}  # topic -> epoch and topic_seq

    def poll(self, timeout_ms: int) -> list[Event]:
        """What happened within `timeout_ms`; returns as soon as anything has."""
        allowed_ms = self._interval_ms * SILENCE_INTERVALS
        left_ms = allowed_ms - (time.monotonic() - self._heard) * 1000
        wait_ms = timeout_ms if self._silent else max(0, min(timeout_ms, int(left_ms) + 1))
        if not self._socket.poll(wait_ms):
            silent_ms = (time.monotonic() - self._heard) * 1000
            if silent_ms < allowed_ms or self._silent:
                return []
            self._silent = True
            return [Silence(int(silent_ms))]
        try:
            _, payload = self._socket.recv_multipart()
            message = decode(payload, Verdict, Heartbeat)
        except (ProtocolError, ValueError) as error:
            return [Refused(str(error))]
        if isinstance(message, Heartbeat):
            self._heard, self._interval_ms, self._silent = time.monotonic(), message.interval_ms, False
            return [message]
        return [*self._gap(message), message]

    def _gap(self, verdict: Verdict) -> list[Event]:
        key = f"{verdict.line}.{verdict.lane}"
        epoch, last = self._newest.get(key, ("", verdict.topic_seq - 1))
        self._newest[key] = (verdict.epoch, verdict.topic_seq)
        if epoch and epoch != verdict.epoch:  # another journal, which counts from 1
            last = 0
        if verdict.topic_seq <= last + 1:
            return []
        return [Gap(verdict.lane, last + 1, verdict.topic_seq - 1)]

    def __iter__(self) -> Iterator[Event]:
        while True:
            yield from self.poll(1000)

    def close(self) -> None:
        """Stop listening."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
