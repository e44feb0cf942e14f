"""How a program listens to a line.

Whoever must not miss a verdict, an actuator or a bridge, takes the acknowledged channel, and stores with what it did
where to go on:

    with Channel("ipc:///run/maskline/line1/channel", position) as line:
        for event in line:
            ...  # each Verdict once, in order; it counts as handled when the next event is asked for

`AsyncChannel` is the same for asyncio. Dashboards, which can live with a gap, take PUB:

    with Subscriber("ipc:///run/maskline/line1/verdicts", line="line1") as line:
        for event in line:
            ...

On both, no heartbeat for three intervals is `Silence`: from then on nothing may be passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import zmq

from edge.clock import ClockOffset
from edge.doorman import secure_client
from edge.keys import Pair
from edge.messages import MAX_MESSAGE_BYTES, Heartbeat, ProtocolError, Verdict, decode
from edge.session import CREDIT, Event, Gap, NewEpoch, Position, Refused, Session, Silence
from edge.topics import HEALTH, HEARTBEAT_INTERVAL_MS, SILENCE_INTERVALS, VERDICT, topic

__all__ = [
    "AsyncChannel",
    "Channel",
    "Event",
    "Gap",
    "NewEpoch",
    "Position",
    "Refused",
    "Silence",
    "Subscriber",
]

RECEIVE_AT_ONCE = 1_000


class _Connection:
    """What both channels share: a DEALER socket, and a session behind it."""

    def __init__(
        self,
        endpoint: str,
        position: Position | None = None,
        *,
        line: str | None = None,
        name: str = "",
        credit: int = CREDIT,
        pair: Pair | None = None,
        line_key: bytes | None = None,
    ) -> None:
        """`position`: the last verdict that was handled, ever (a verdict's own is its epoch and seq); None: from now
        on. `line`: no other line will do. `name`: for the line's log. `credit`: verdicts that may wait here unhandled.
        `pair`, `line_key`: our keys and the line's public one, where the endpoint speaks CURVE.

        Raises ValueError for an endpoint that ZeroMQ does not understand. A line that is not there is `Silence`.
        """
        self._session = Session(position, time.monotonic_ns(), line=line, name=name, credit=credit)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.immediate = True  # what cannot be sent now is made anew when its time comes
        _connect(self._context, self._socket, endpoint, pair, line_key)

    @property
    def position(self) -> Position:
        """The last verdict that was handled."""
        return self._session.position

    @property
    def clock(self) -> ClockOffset:
        """The line's monotonic clock against ours."""
        return self._session.clock

    def close(self) -> None:
        """Stop listening. What was given last does not count as handled."""
        self._context.destroy(linger=0)

    def _step(self) -> Event | None:
        """Take what has come, say what happened, send what must go."""
        for _ in range(RECEIVE_AT_ONCE):
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._session.receive(data, time.monotonic_ns())
        now_ns = time.monotonic_ns()
        event = self._session.next_event(now_ns)
        for frame in self._session.frames(now_ns):
            with contextlib.suppress(zmq.Again):  # not connected
                self._socket.send(frame, zmq.NOBLOCK)
        return event

    def _wait_ms(self, give_up: float | None) -> int:
        wait_ms = self._session.wait_ms(time.monotonic_ns())
        return wait_ms if give_up is None else min(wait_ms, max(0, int((give_up - time.monotonic()) * 1000) + 1))


class Channel(_Connection):
    """The acknowledged channel of one line, as an endless iterator over its events.

    It reconnects by itself, for as long as it is asked. It must be asked for the next event at least once a second: one
    that is not asked acknowledges nothing, and after three seconds the line forgets it, and then welcomes it anew.
    """

    def receive(self, timeout_ms: int | None = None) -> Event | None:
        """The next event; None when there is none within `timeout_ms`. The one before it counts as handled."""
        give_up = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        while (event := self._step()) is None:
            if give_up is not None and time.monotonic() >= give_up:
                return None
            self._socket.poll(self._wait_ms(give_up))
        return event

    def __iter__(self) -> Iterator[Event]:
        while True:
            if (event := self.receive()) is not None:
                yield event

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncChannel(_Connection):
    """`Channel` for asyncio: `async with`, `async for`, `await receive()`."""

    async def receive(self, timeout_ms: int | None = None) -> Event | None:
        """The next event; None when there is none within `timeout_ms`. The one before it counts as handled."""
        give_up = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        while (event := self._step()) is None:
            if give_up is not None and time.monotonic() >= give_up:
                return None
            await self._readable(self._wait_ms(give_up))
        return event

    async def _readable(self, timeout_ms: int) -> None:
        """Wait until the socket has something to read. Its descriptor tells of changes only, so it is asked first."""
        loop = asyncio.get_running_loop()
        changed: asyncio.Future[None] = loop.create_future()
        descriptor = int(self._socket.getsockopt(zmq.FD))
        loop.add_reader(descriptor, lambda: None if changed.done() else changed.set_result(None))
        try:
            if not self._socket.poll(0):
                await asyncio.wait([changed], timeout=timeout_ms / 1000)
        finally:
            loop.remove_reader(descriptor)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            if (event := await self.receive()) is not None:
                yield event

    async def __aenter__(self) -> AsyncChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def _connect(
    context: zmq.Context[zmq.Socket[bytes]],
    socket: zmq.Socket[bytes],
    endpoint: str,
    pair: Pair | None,
    line_key: bytes | None,
) -> None:
    """Connect a socket of ours, with keys if there are any. Raises ValueError for what is no endpoint."""
    socket.linger = 0
    socket.maxmsgsize = MAX_MESSAGE_BYTES
    socket.ipv6 = True
    socket.handshake_ivl = 2000
    socket.heartbeat_ivl, socket.heartbeat_timeout = 1000, 3000
    socket.reconnect_ivl, socket.reconnect_ivl_max = 50, 1000
    if (pair is None) != (line_key is None):
        context.destroy(linger=0)
        raise ValueError(f"{endpoint}: our keys and the line's go together: with one of them nothing is encrypted")
    try:
        if pair is not None and line_key is not None:
            secure_client(socket, pair, line_key)
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        context.destroy(linger=0)
        raise ValueError(f"{endpoint}: not an endpoint that can be connected to: {error.strerror}") from error


class Subscriber:
    """Listens on PUB to one line, or with `line=None` to all that publish on the endpoint.

    PUB may lose messages: a gap in `topic_seq` is reported as `Gap`.
    """

    def __init__(
        self, endpoint: str, line: str | None = None, *, pair: Pair | None = None, line_key: bytes | None = None
    ) -> None:
        """`pair`, `line_key`: our keys and the line's public one, where the endpoint speaks CURVE.

        Raises ValueError for an endpoint that ZeroMQ does not understand. A line that is not there is `Silence`.
        """
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        for kind in (VERDICT, HEALTH):
            self._socket.subscribe(topic(kind, line) if line else topic(kind))
        _connect(self._context, self._socket, endpoint, pair, line_key)
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
