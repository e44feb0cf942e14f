"""The simulated conveyor: its physics in real time, in a thread, for the processes of a line.

    with Conveyor("ipc:///run/x/conveyor", BeltSettings(parts=100), Frame(width_px=224, height_px=224)) as conveyor:
        ...
        conveyor.truth()    # which part ended where

One ROUTER socket serves the capture processes (source kind `conveyor`: triggers and frames with the part's number and
truth in the pixels) and the actuators (driver kind `simulated`). Either may die and come back: a trigger that nobody
took keeps its number, and an output keeps its level until the interlock takes its power.

Messages are msgpack maps with a `type`. From a camera: `camera` {station, session, first}. To it: `trigger` {number,
at_ns, count, part_id}, then `frame` {number, image}. From an actuator: `io`, `eject` {on}, `line_ok` {level}. To it:
`edge` {input, level, at_ns, count, part_id}, and `count` {count} whenever the encoder moved, or SAY_MS have passed.

A thread that gets no processor lets the world stand still meanwhile: at most MAX_STEP_MS pass in one turn.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgpack
import zmq

from edge.actuators.belt import Belt, BeltSettings, Crossing, Part, Place
from edge.actuators.driver import Input
from edge.marker import draw
from edge.settings import Frame
from edge.sources.marker import background

__all__ = ["SAY_MS", "Conveyor"]

SAY_MS = 50
TURN_MS = 1
MAX_STEP_MS = 5.0
QUEUE_MESSAGES = 200
MAX_COMMAND_BYTES = 4096
SESSIONS = 16
"""Starts of the line whose trigger numbers are remembered, for a capture process that comes back."""


@dataclass
class _Camera:
    """One capture process, and how it numbers triggers."""

    identity: bytes
    base: int  # its number of a trigger is ours less this


@dataclass
class _Clients:
    """Who is there. An actuator that comes back takes the place of the one before it."""

    cameras: dict[str, _Camera] = field(default_factory=dict)
    bases: dict[tuple[str, int], int] = field(default_factory=dict)  # station and session -> base
    actuators: list[bytes] = field(default_factory=list)


class Conveyor:
    """Use it as a context: the belt runs, once LINE-OK toggles, until the block ends."""

    def __init__(self, endpoint: str, settings: BeltSettings, frame: Frame) -> None:
        """Raises zmq.ZMQError when the endpoint cannot be bound."""
        self.settings, self.counters = settings, Counter[str]()
        self._belt = Belt(settings)
        self._lock = threading.Lock()
        self._image = background(frame)
        self._triggers = 0
        self._clients = _Clients()
        self._levels: dict[Input, bool] = {}
        self._said_count: int | None = None
        self._said_ns = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.router_mandatory = 1
        self._socket.set_hwm(QUEUE_MESSAGES)
        self._socket.maxmsgsize = MAX_COMMAND_BYTES
        self._socket.linger = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conveyor", daemon=True)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise

    def truth(self) -> list[Part]:
        """Every part that has left the belt, in that order, and where it ended."""
        with self._lock:
            return list(self._belt.ended)

    @property
    def running(self) -> bool:
        """Whether the interlock lets the machine run."""
        return not self._belt.tripped

    @property
    def empty(self) -> bool:
        """Whether every part has ended."""
        with self._lock:
            return self._belt.empty

    def slip(self, counts: float) -> None:
        """The encoder counts so many more than the belt moves; negative: fewer."""
        with self._lock:
            self._belt.slipped += counts

    def reverse(self, ms: float) -> None:
        """The belt runs backwards for so long."""
        with self._lock:
            self._belt.backwards_ms = ms

    def miss(self, parts: int) -> None:
        """The camera does not see the next parts."""
        with self._lock:
            self._belt.misses = parts

    def take(self, where_mm: float | None = None) -> Part | None:
        """Somebody takes the first part upstream of a place (default: the sensor) off the belt."""
        with self._lock:
            return self._belt.take(self.settings.sensor_mm if where_mm is None else where_mm)

    def air(self, there: bool) -> None:
        """The compressor fails, or comes back."""
        with self._lock:
            self._belt.air = there

    def empty_bin(self) -> None:
        """Somebody empties the reject bin."""
        with self._lock:
            self._belt.in_reject_bin = 0

    def __enter__(self) -> Conveyor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        before_ns = time.monotonic_ns()
        while not self._over.is_set():
            waiting = self._socket.poll(TURN_MS)
            now_ns = time.monotonic_ns()
            with self._lock:
                if waiting:
                    self._receive()
                crossings = self._belt.step(min(MAX_STEP_MS, (now_ns - before_ns) / 1e6))
                for crossing in crossings:
                    self._notice(crossing, now_ns)
                self._say_levels(now_ns)
                self._say_count(now_ns)
            before_ns = now_ns

    def _receive(self) -> None:
        for _ in range(QUEUE_MESSAGES):
            try:
                identity, *parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = msgpack.unpackb(parts[0])
                self._take(identity, message)
            except (ValueError, KeyError, TypeError, IndexError, msgpack.UnpackException):
                self.counters["refused"] += 1

    def _take(self, identity: bytes, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "eject":
            self._belt.ejects = bool(message["on"])
        elif kind == "line_ok":
            self._belt.set_line_ok(bool(message["level"]))
        elif kind == "io":
            self._clients.actuators = [identity]
            self._levels, self._said_count = {}, None
        elif kind == "camera":
            station, key = str(message["station"]), (str(message["station"]), int(message["session"]))
            bases = self._clients.bases
            bases.setdefault(key, self._triggers - int(message["first"]))
            while len(bases) > SESSIONS:
                del bases[next(iter(bases))]
            self._clients.cameras[station] = _Camera(identity, bases[key])
        else:
            self.counters["refused"] += 1

    def _notice(self, crossing: Crossing, now_ns: int) -> None:
        part = crossing.part
        if crossing.place is Place.CAMERA:
            self._expose(crossing, now_ns)
            return
        which = Input.SENSOR if crossing.place is Place.SENSOR else Input.CONFIRM
        for level in (True, False):
            part_id = part.part_id(self.settings.part_ids)
            self._tell(
                {"type": "edge", "input": which.value, "level": level, "at_ns": now_ns}
                | {"count": crossing.count, "part_id": part_id}
            )

    def _expose(self, crossing: Crossing, now_ns: int) -> None:
        trigger, part = self._triggers, crossing.part
        self._triggers += 1
        draw(self._image, part.serial, part.bad)
        for station, camera in list(self._clients.cameras.items()):
            number = trigger - camera.base
            told = {"type": "trigger", "number": number, "at_ns": now_ns, "count": crossing.count}
            told["part_id"] = part.part_id(self.settings.part_ids)
            if not self._send(camera.identity, told):
                del self._clients.cameras[station]
                continue
            self._send(camera.identity, {"type": "frame", "number": number, "image": self._image.tobytes()})

    def _say_levels(self, now_ns: int) -> None:
        for which, level in ((Input.BIN_FULL, self._belt.bin_full), (Input.AIR_OK, self._belt.air)):
            if self._clients.actuators and self._levels.get(which) is not level:
                self._levels[which] = level
                self._tell({"type": "edge", "input": which.value, "level": level, "at_ns": now_ns, "count": None})

    def _say_count(self, now_ns: int) -> None:
        count = self._belt.count
        if count != self._said_count or now_ns - self._said_ns > SAY_MS * 1_000_000:
            self._said_count, self._said_ns = count, now_ns
            self._tell({"type": "count", "count": count})

    def _tell(self, message: dict[str, Any]) -> None:
        for identity in list(self._clients.actuators):
            if not self._send(identity, message):
                self._clients.actuators.remove(identity)

    def _send(self, identity: bytes, message: dict[str, Any]) -> bool:
        """Send without waiting; False when nobody is there any more. What a full queue loses is counted."""
        try:
            self._socket.send_multipart([identity, msgpack.packb(message)], zmq.NOBLOCK)
        except zmq.Again:
            self.counters["lost"] += 1
        except zmq.ZMQError:
            return False
        return True
