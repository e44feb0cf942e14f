"""Who listens while a line is broken: recorders of everything that was said, and clients that behave badly."""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter

import zmq

from edge.actuators.belt import Part
from edge.actuators.conveyor import Conveyor
from edge.messages import Heartbeat, Hello, ProtocolError, Verdict, decode, encode, place
from edge.subscribers import MAX_CREDIT
from edge.topics import VERDICT, topic
from edge.verdicts import Channel, Gap, NewEpoch, Position, Silence

__all__ = ["Bystander", "Deaf", "Mischief", "PubRecorder", "Recorder", "Thread"]

FROM_THE_FIRST_ON = Position("none", 0)
"""Of no journal: so everything of the line's is sent."""
LOOK_MS = 20


class Thread(ABC):
    """A thread with an end; what it dies of is raised when the block ends."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name=type(self).__name__, daemon=True)

    @abstractmethod
    def _run(self) -> None: ...

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:  # shown by whoever owns the thread
            self._failure = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: object, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failure and kind is None:
            raise self._failure


class Recorder(Thread):
    """A subscriber of the acknowledged channel, which can be told to stop reading for a while."""

    def __init__(self, endpoint: str, line: str, name: str) -> None:
        super().__init__()
        self.name = name
        self._endpoint, self._line = endpoint, line
        self._reads = threading.Event()
        self._reads.set()
        self.verdicts: list[Verdict] = []
        """In the order in which they came."""
        self.holes: list[str] = []
        """What the client library said is missing."""
        self.silences = 0
        self.alive = False
        """Whether a heartbeat has come since the last silence."""

    @property
    def last_seq(self) -> int:
        return self.verdicts[-1].seq if self.verdicts else 0

    def stop_reading(self) -> None:
        self._reads.clear()

    def read_again(self) -> None:
        self._reads.set()

    def _run(self) -> None:
        epochs = 0
        with Channel(self._endpoint, FROM_THE_FIRST_ON, line=self._line, name=self.name) as channel:
            while not self._over.is_set():
                if not self._reads.wait(LOOK_MS / 1000):
                    continue
                event = channel.receive(LOOK_MS)
                if isinstance(event, Verdict):
                    self.verdicts.append(event)
                elif isinstance(event, Silence):
                    self.silences, self.alive = self.silences + 1, False
                elif isinstance(event, Heartbeat):
                    self.alive = True
                elif isinstance(event, NewEpoch):
                    epochs += 1
                    if epochs > 1:  # the first one is ours
                        self.holes.append(str(event))
                elif isinstance(event, Gap):
                    self.holes.append(str(event))


class PubRecorder(Thread):
    """Every verdict that the gate published, as bytes, and its newest heartbeat."""

    def __init__(self, endpoint: str) -> None:
        super().__init__()
        self._endpoint = endpoint
        self.payloads: list[tuple[int, bytes]] = []
        self.beat: Heartbeat | None = None
        self.longest_lag_ms = 0.0
        """Age of the oldest commit that a power cut would have lost, at its highest."""

    def _run(self) -> None:
        context = zmq.Context()
        try:
            socket = context.socket(zmq.SUB)
            socket.set_hwm(0)
            socket.linger = 0
            socket.reconnect_ivl, socket.reconnect_ivl_max = 10, 100
            socket.subscribe(b"")
            socket.connect(self._endpoint)
            while not self._over.is_set():
                if not socket.poll(LOOK_MS):
                    continue
                subject, payload = socket.recv_multipart()
                if subject.startswith(topic(VERDICT)):
                    self.payloads.append((place(payload)[1], payload))
                else:
                    self.beat = decode(payload, Heartbeat)
                    self.longest_lag_ms = max(self.longest_lag_ms, self.beat.counters["journal_lag_max_ms"])
        finally:
            context.destroy(linger=0)


class Bystander(Thread):
    """Looks at the conveyor's bins: by when a part lay there, on the monotonic clock."""

    def __init__(self, conveyor: Conveyor) -> None:
        super().__init__()
        self._conveyor = conveyor
        self.noticed_ns: dict[int, int] = {}
        """Serial number -> no earlier than its end, and a look later at most."""

    def look(self) -> list[Part]:
        """Every part that has ended."""
        ended = self._conveyor.truth()
        now_ns = time.monotonic_ns()
        for part in ended[len(self.noticed_ns) :]:
            self.noticed_ns[part.serial] = now_ns
        return ended

    def _run(self) -> None:
        while not self._over.wait(LOOK_MS / 1000):
            self.look()
        self.look()


class Deaf:
    """Says hello with all the credit that there is, and never reads."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.rcvhwm = 1
        self._socket.linger = 0
        self._socket.connect(endpoint)
        self._socket.send(encode(Hello("none", 0, MAX_CREDIT, "deaf")))

    def close(self) -> None:
        self._context.destroy(linger=0)


class Mischief(Thread):
    """A proxy of the acknowledged channel that, when told so, sends messages twice, cuts them, and flips their bits.

    ZeroMQ's own framing stays whole: what arrives is a message, and a wrong one. Both ways. One thing is spared: a
    verdict of a run of the line that will never be. An actuator takes it for the newest one, and rejects all parts
    until it is started again. Nothing but CURVE tells such a message from a true one.
    """

    SHARE = 0.3
    QUIET_NS = 10_000_000_000

    def __init__(self, front: str, back: str, seed: int) -> None:
        super().__init__()
        self._front, self._back, self._random = front, back, random.Random(seed)
        self.ways: frozenset[str] = frozenset()
        """Of `duplicate`, `cut` and `flip`, those that are done now."""
        self.done: Counter[str] = Counter()

    def _run(self) -> None:
        context = zmq.Context()
        try:
            front = context.socket(zmq.ROUTER)
            front.linger = 0
            front.bind(self._front)
            poller = zmq.Poller()
            poller.register(front, zmq.POLLIN)
            backs: dict[bytes, zmq.Socket[bytes]] = {}
            heard_ns: dict[bytes, int] = {}
            while not self._over.is_set():
                ready = dict(poller.poll(LOOK_MS))
                now_ns = time.monotonic_ns()
                if front in ready:
                    who, message = front.recv_multipart()
                    if who not in backs:
                        backs[who] = self._connect(context)
                        poller.register(backs[who], zmq.POLLIN)
                    heard_ns[who] = now_ns
                    for said in self._distort(message):
                        backs[who].send(said)
                for who, back in list(backs.items()):
                    if back in ready:
                        for said in self._distort(back.recv()):
                            front.send_multipart([who, said])
                    if now_ns - heard_ns[who] > self.QUIET_NS:
                        poller.unregister(back)
                        backs.pop(who).close()
        finally:
            context.destroy(linger=0)

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        back = context.socket(zmq.DEALER)
        back.linger = 0
        back.reconnect_ivl, back.reconnect_ivl_max = 10, 100
        back.connect(self._back)
        return back

    def _distort(self, message: bytes) -> list[bytes]:
        ways = sorted(self.ways)
        if not ways or self._random.random() > self.SHARE:
            return [message]
        way = self._random.choice(ways)
        self.done[way] += 1
        if way == "duplicate":
            return [message] * self._random.randint(2, 4)
        at = self._random.randrange(len(message))
        if way == "cut":
            return [message[:at]]
        flipped = bytearray(message)
        flipped[at] ^= 1 << self._random.randrange(8)
        return [] if _is_of_a_later_run(bytes(flipped), message) else [bytes(flipped)]


def _is_of_a_later_run(flipped: bytes, message: bytes) -> bool:
    try:
        return bool(decode(flipped, Verdict).run > decode(message, Verdict).run)
    except ProtocolError:
        return False
