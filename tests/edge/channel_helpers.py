"""Verdicts and heartbeats to play with, and both sides of the acknowledged channel without sockets."""

from __future__ import annotations

from collections import deque

from edge.history import Memory, Page, Wanted
from edge.messages import Heartbeat, Verdict, encode
from edge.session import Event, Position, Session
from edge.subscribers import Peer, PeerGoneError, Subscribers
from edge.verdict import Decision, GateState

__all__ = ["MS", "World", "beat", "verdict"]

MS = 1_000_000
LEAD_NS = 7_000_000_000_000
"""The box of the line was booted two hours earlier."""
INTERVAL_MS = 250


def verdict(seq: int, epoch: str = "e1", lane: str = "a", line: str = "test", part_id: int | None = None) -> Verdict:
    return Verdict(
        line=line, lane=lane, part=seq, part_id=part_id, count=None, decision=Decision.PASS, reason=None, late=False,
        epoch=epoch, seq=seq, topic_seq=seq, run=1, score=0.1, threshold=0.2, views=[], simulated=True, recipe="r",
        boot_id="b", trigger_ns=1, deadline_ns=2, decided_ns=3, trigger_utc_ns=4, decided_utc_ns=5,
    )  # fmt: skip


def beat(
    seq: int = 0, at_ns: int = 1, epoch: str = "e1", state: GateState = GateState.READY, interval_ms: int = INTERVAL_MS
) -> Heartbeat:
    return Heartbeat(
        line="test", epoch=epoch, state=state, trouble=[], seq=seq, chain="", open=0, interval_ms=interval_ms,
        safe_state="reject_all", simulated=True, at_ns=at_ns, utc_ns=2, boot_id="b", counters={},
    )  # fmt: skip


class World:
    """A journal, a channel, one client, the way between them, and their clocks; everything can be lost but the
    journal."""

    def __init__(self, position: Position | None = None, credit: int = 4, memory: int = 3) -> None:
        self.now_ns = 1_000_000_000_000
        self.journal: dict[int, bytes] = {}
        self.epoch, self.published = "e1", 0
        self.memory, self.credit = memory, credit
        self.journal_works, self.connected, self.full = True, True, False
        self.connection = 0
        self.to_client: deque[bytes] = deque()
        self.to_server: deque[tuple[Peer, bytes]] = deque()
        self.sent: list[bytes] = []
        self.server = self.new_server()
        self.client = Session(position, self.now_ns, credit=credit)
        self.events: list[Event] = []

    def new_server(self) -> Subscribers:
        return Subscribers("test", "b", INTERVAL_MS, self._send, Memory(max_verdicts=self.memory))

    @property
    def peer(self) -> Peer:
        return (0, b"%d" % self.connection)

    @property
    def server_now_ns(self) -> int:
        return self.now_ns + LEAD_NS

    def _send(self, peer: Peer, data: bytes) -> bool:
        if not self.connected or peer != self.peer:
            raise PeerGoneError
        if not self.full:
            self.to_client.append(data)
            self.sent.append(data)
        return not self.full

    def publish(self, count: int = 1, heard: bool = True) -> None:
        """The gate writes and publishes; PUB may lose it on its way to the channel."""
        for _ in range(count):
            self.published += 1
            payload = encode(verdict(self.published, self.epoch))
            self.journal[self.published] = payload
            if heard:
                self.server.published(self.epoch, self.published, payload)

    def heartbeat(self) -> None:
        payload = encode(beat(self.published, self.server_now_ns, self.epoch))
        self.server.heartbeat(self.epoch, self.published, payload)

    def read_journal(self) -> None:
        """Answer what the channel wants of the journal."""
        wanted = self.server.wanted()
        if wanted is not None and self.journal_works:
            self.server.take(self.page(wanted))

    def page(self, wanted: Wanted, at_most: int = 3) -> Page:
        rows = [(s, p) for s, p in sorted(self.journal.items()) if wanted.after < s <= wanted.upto]
        return Page(wanted, min(self.journal, default=None), rows[:at_most])

    def cut(self, reconnect: bool = True) -> None:
        """The connection breaks, with all that was on its way."""
        self.to_client.clear()
        self.to_server.clear()
        self.connection += 1
        self.connected = reconnect

    def restart_server(self) -> None:
        self.cut()
        self.server = self.new_server()

    def restart_client(self) -> None:
        """It knows what it has stored, and nothing else: a verdict that it had and did not handle comes again."""
        self.cut()
        handled = self.client.position
        self.events = [
            e for e in self.events if not (isinstance(e, Verdict) and e.epoch == handled.epoch and e.seq > handled.seq)
        ]
        self.client = Session(self.client.position, self.now_ns, credit=self.credit)

    def step(self, ms: int = 10, events: int = 1_000_000) -> None:
        """Time passes; what is on its way arrives; both sides have a turn."""
        self.now_ns += ms * MS
        while self.to_server:
            peer, data = self.to_server.popleft()
            self.server.receive(peer, None, data, self.server_now_ns)
        self.read_journal()
        self.server.pump()
        if events:
            self.client_turn(events)

    def client_turn(self, at_most: int = 1_000_000) -> None:
        while self.to_client:
            self.client.receive(self.to_client.popleft(), self.now_ns)
        for _ in range(at_most):
            event = self.client.next_event(self.now_ns)
            for frame in self.client.frames(self.now_ns):
                if self.connected:
                    self.to_server.append((self.peer, frame))
            if event is None:
                return
            self.events.append(event)

    def settle(self, heartbeats: int = 40) -> None:
        """Everything works again, for as long as it takes."""
        self.connected, self.journal_works, self.full = True, True, False
        for _ in range(heartbeats):
            self.heartbeat()
            for _ in range(5):
                self.step(50)

    @property
    def verdicts(self) -> list[int]:
        return [e.seq for e in self.events if isinstance(e, Verdict)]

    def of_type(self, kind: type) -> list[Event]:
        return [e for e in self.events if isinstance(e, kind)]
