"""The driver of the simulated conveyor (edge/actuators/conveyor.py), over its ipc endpoint."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import zmq

from edge.actuators.driver import DriverError, Edge, Input, PartOutcome, Status
from edge.actuators.settings import SimulatedDriver
from edge.messages import MAX_MESSAGE_BYTES, Verdict

__all__ = ["Simulated"]

SILENCE_NS = 1_000_000_000
"""The conveyor says its count every 50 ms."""
QUEUE_MESSAGES = 1000


class Simulated:
    """Inputs and outputs of the conveyor; see `edge.actuators.driver.Driver`."""

    def __init__(self, settings: SimulatedDriver, *, eject: bool) -> None:
        """`eject`: the level at which the ejector starts."""
        self._endpoint = settings.endpoint
        self._context = zmq.Context()
        self._heard_ns = time.monotonic_ns()
        self._again_ns = 0
        self._count: int | None = None
        self._connect()
        self.eject(eject)

    def poll(self, timeout_ms: int) -> list[Edge]:
        """See the Protocol. Raises DriverError when the conveyor says nothing any more."""
        give_up_ns = time.monotonic_ns() + timeout_ms * 1_000_000
        edges: list[Edge] = []
        while not edges:
            left_ns = give_up_ns - time.monotonic_ns()
            if not self._socket.poll(max(0, -(-left_ns // 1_000_000))):
                break
            while (message := self._receive()) is not None:
                if edge := self._take(message):
                    edges.append(edge)
            if time.monotonic_ns() >= give_up_ns:
                break
        now_ns = time.monotonic_ns()
        silent_ns = now_ns - self._heard_ns
        if not edges and silent_ns > SILENCE_NS:
            self._count = None
            if now_ns > self._again_ns:  # what was queued meanwhile is stale
                self._again_ns = now_ns + SILENCE_NS
                self._socket.close()
                self._connect()
            raise DriverError(f"{self._endpoint}: the simulated conveyor has said nothing for {silent_ns / 1e9:.1f} s")
        return edges

    def count(self) -> int | None:
        return self._count

    def eject(self, on: bool) -> None:
        self._send({"type": "eject", "on": on})

    def line_ok(self, level: bool) -> None:
        self._send({"type": "line_ok", "level": level})

    def tell(self, verdict: Verdict | None, part: PartOutcome) -> None: ...

    def report(self, status: Status) -> None: ...

    def close(self) -> None:
        """Outputs keep their level until the interlock takes their power."""
        self._context.destroy(linger=0)

    def _connect(self) -> None:
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set_hwm(QUEUE_MESSAGES)
        self._socket.maxmsgsize = MAX_MESSAGE_BYTES
        self._socket.linger = 0
        self._socket.connect(self._endpoint)
        self._send({"type": "io"})

    def _receive(self) -> dict[str, Any] | None:
        try:
            found = msgpack.unpackb(self._socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return None
        return found if isinstance(found, dict) else {}

    def _take(self, message: dict[str, Any]) -> Edge | None:
        self._heard_ns = time.monotonic_ns()
        if message.get("type") == "count":
            self._count = message["count"]
            return None
        return Edge(
            Input(message["input"]),
            message["level"],
            message["at_ns"],
            count=message["count"],
            part_id=message.get("part_id"),
        )

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._socket.send(msgpack.packb(message), zmq.NOBLOCK)
        except zmq.Again as error:
            raise DriverError(f"{self._endpoint}: the simulated conveyor takes no commands") from error
