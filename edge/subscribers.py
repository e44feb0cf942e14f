"""What the acknowledged channel owes each of its subscribers. No sockets, no clock, no disk.

A subscriber says after which verdict it goes on; verdicts go to it in the order of `seq`, never more than its credit
beyond what it has acknowledged. The newest ones are in memory, older ones are asked of the journal, a page at a time.
All of it is bounded: subscribers, what one of them has not acknowledged, memory, pages. A subscriber that does not read
has its own credit used up, and costs the others nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from edge.history import Memory, Page, Wanted
from edge.messages import Ack, Clock, Hello, Message, ProtocolError, Refusal, Welcome, decode, encode

__all__ = ["Peer", "PeerGoneError", "Send", "Subscriber", "Subscribers"]

MAX_SUBSCRIBERS = 64
MAX_CREDIT = 1024
MAX_UNACKNOWLEDGED_BYTES = 1 << 20
"""Beyond one verdict, whatever its size: what waits for a subscriber that does not read."""
FORGET_NS = 3_000_000_000
"""A subscriber that has not been heard for so long is forgotten; it may say hello again."""
PER_TURN = 128
"""Verdicts that go to one subscriber before the next one has its turn."""
MAX_TEXT = 64

Peer = tuple[int, bytes]
"""Which of the channel's sockets, and the routing id there: where answers go. Nobody is trusted for it."""

Send = Callable[[Peer, bytes], bool]
"""Sends a frame to a peer, or returns False when its queue is full. Raises PeerGoneError."""


class PeerGoneError(Exception):
    """The peer has disconnected."""


@dataclass
class Subscriber:
    """One subscriber, since its last hello."""

    name: str
    epoch: str  # what its numbers belong to; empty: from now on
    acked: int
    credit: int
    heard_ns: int
    sent: int = 0
    welcomed: bool = False
    page: dict[int, bytes] = field(default_factory=dict)  # out of the journal, to be sent
    unacknowledged: deque[tuple[int, int]] = field(default_factory=deque)  # seq and bytes of what was sent
    unacknowledged_bytes: int = 0

    def start_after(self, seq: int) -> None:
        """Take all up to `seq` for handled, and go on there."""
        self.acked = self.sent = seq
        self.page.clear()
        self.unacknowledged.clear()
        self.unacknowledged_bytes = 0

    def acknowledge(self, seq: int) -> None:
        self.acked = max(self.acked, seq)
        while self.unacknowledged and self.unacknowledged[0][0] <= seq:
            self.unacknowledged_bytes -= self.unacknowledged.popleft()[1]

    def note_sent(self, seq: int, size: int) -> None:
        self.sent = seq
        self.unacknowledged.append((seq, size))
        self.unacknowledged_bytes += size

    @property
    def may_have_more(self) -> bool:
        return self.sent < self.acked + self.credit and self.unacknowledged_bytes < MAX_UNACKNOWLEDGED_BYTES


class Subscribers:
    """All of them, and what can be sent to them."""

    def __init__(self, line: str, boot_id: str, interval_ms: int, send: Send, memory: Memory | None = None) -> None:
        self._line, self._boot_id, self._interval_ms, self._send = line, boot_id, interval_ms, send
        self._memory = memory or Memory()
        self._all: dict[Peer, Subscriber] = {}
        self._turn = 0
        self.epoch = ""
        self.newest: int | None = None
        """Newest verdict that was published; the journal may hold one more that never will be. None: not known yet."""
        self.first: int | None = None
        """Oldest verdict that is still there; None: not known yet."""
        self.counters: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def names(self) -> list[str]:
        return [s.name for s in self._all.values()]

    @property
    def owed(self) -> bool:
        """Whether a subscriber that was welcomed has not acknowledged the newest verdict."""
        return any(s.welcomed and s.acked < (self.newest or 0) for s in self._all.values())

    def published(self, epoch: str, seq: int, payload: bytes) -> None:
        """The gate published a verdict."""
        self._follow(epoch)
        if self.newest is None or seq > self.newest:
            self.newest = seq
            self._memory.add(seq, payload)

    def heartbeat(self, epoch: str, seq: int, payload: bytes | None) -> None:
        """The gate has published all up to `seq`, whether it came here or not. Passes a fresh heartbeat on."""
        self._follow(epoch)
        self.newest = max(self.newest or 0, seq)
        if payload is None:
            return
        for peer, subscriber in list(self._all.items()):
            if subscriber.welcomed:
                self._try(peer, payload)

    def _follow(self, epoch: str) -> None:
        """Go over to another journal: everybody is welcomed anew."""
        if epoch == self.epoch:
            return
        self.epoch, self.newest, self.first = epoch, None, None
        self._memory.clear()
        for subscriber in self._all.values():
            subscriber.welcomed = False

    def receive(self, peer: Peer, name: str | None, data: bytes, now_ns: int) -> None:
        """Take what a peer has sent. `name`: whom its key says it is; None without a key."""
        try:
            message = decode(data, Hello, Ack)
            if isinstance(message, Hello):
                self._hello(peer, name, message, now_ns)
            else:
                self._ack(peer, message, now_ns)
        except ProtocolError as error:
            self.counters["refused"] += 1
            self._say(peer, Refusal(str(error)))

    def _hello(self, peer: Peer, name: str | None, hello: Hello, now_ns: int) -> None:
        if hello.seq < -1 or hello.credit < 1 or max(len(hello.epoch), len(hello.name)) > MAX_TEXT:
            raise ProtocolError(
                f"hello with seq {hello.seq} and credit {hello.credit}; expected a seq of at least -1, a credit of at "
                f"least 1, and an epoch and a name of at most {MAX_TEXT} characters"
            )
        if peer not in self._all and len(self._all) >= MAX_SUBSCRIBERS:
            raise ProtocolError(f"the line has {MAX_SUBSCRIBERS} subscribers already; disconnect one of them")
        epoch = hello.epoch if hello.seq >= 0 else ""
        credit = min(hello.credit, MAX_CREDIT)
        self._all[peer] = Subscriber(name or hello.name, epoch, hello.seq, credit, now_ns, sent=hello.seq)
        self.counters["hellos"] += 1

    def _ack(self, peer: Peer, ack: Ack, now_ns: int) -> None:
        subscriber = self._all.get(peer)
        if subscriber is None:
            raise ProtocolError("an ack from nobody that the channel knows; say hello first")
        subscriber.heard_ns = now_ns
        if subscriber.welcomed and ack.epoch == self.epoch:
            if ack.seq > subscriber.sent or ack.credit < 0:
                del self._all[peer]
                raise ProtocolError(
                    f"ack of seq {ack.seq} with credit {ack.credit}; sent was all up to {subscriber.sent}"
                )
            subscriber.acknowledge(ack.seq)
            subscriber.credit = min(ack.credit, MAX_CREDIT)
        self._say(peer, Clock(ack.sent_ns, now_ns, self._boot_id))

    def forget_silent(self, now_ns: int) -> list[str]:
        """Forget whom nothing has been heard of for long; their names."""
        silent = [peer for peer, s in self._all.items() if now_ns - s.heard_ns > FORGET_NS]
        return [self._all.pop(peer).name for peer in silent]

    def forget(self, socket: int) -> None:
        """Forget everybody on a socket that was closed."""
        for peer in [p for p in self._all if p[0] == socket]:
            del self._all[peer]

    def pump(self) -> bool:
        """Welcome who waits, and send to everybody what its credit allows and is at hand; whether there is more."""
        if self.newest is None or self.first is None:
            return False
        more = False
        for peer, subscriber in list(self._all.items()):
            if not subscriber.welcomed:
                self._welcome(peer, subscriber)
            if subscriber.welcomed:
                more |= self._send_on(peer, subscriber, self.newest)
        return more

    def _send_on(self, peer: Peer, subscriber: Subscriber, newest: int) -> bool:
        for _ in range(PER_TURN):
            if subscriber.sent >= newest or not subscriber.may_have_more:
                return False
            payload = self._at_hand(subscriber, subscriber.sent + 1)
            if payload is None or not self._try(peer, payload):
                return False
            subscriber.note_sent(subscriber.sent + 1, len(payload))
        return True

    def _at_hand(self, subscriber: Subscriber, seq: int) -> bytes | None:
        payload = self._memory.get(seq)
        return subscriber.page.pop(seq, None) if payload is None else payload

    def _welcome(self, peer: Peer, subscriber: Subscriber) -> None:
        assert self.newest is not None
        assert self.first is not None
        if not subscriber.epoch:
            after = self.newest
        elif subscriber.epoch == self.epoch:  # beyond the newest: it is an older copy of the journal
            after = min(max(subscriber.acked, self.first - 1), self.newest)
        else:
            after = self.first - 1
        if self._say(peer, self._welcome_from(self.first)):
            subscriber.epoch, subscriber.welcomed = self.epoch, True
            subscriber.start_after(after)

    def _welcome_from(self, first: int) -> Welcome:
        return Welcome(self._line, self.epoch, self.newest or 0, first, self._interval_ms, self._boot_id)

    def wanted(self) -> Wanted | None:
        """What the journal must be asked for next; subscribers take turns. None: nothing."""
        if self.newest is None:
            return None
        if self.first is None:
            return Wanted(self.epoch, self.newest, self.newest)
        lacking = [
            s
            for s in self._all.values()
            if s.welcomed and s.sent < self.newest and s.may_have_more and not self._is_at_hand(s)
        ]
        if not lacking:
            return None
        self._turn += 1
        after = lacking[self._turn % len(lacking)].sent
        return Wanted(self.epoch, after, self.newest)

    def _is_at_hand(self, subscriber: Subscriber) -> bool:
        return self._memory.get(subscriber.sent + 1) is not None or subscriber.sent + 1 in subscriber.page

    def take(self, page: Page) -> None:
        """Take what the journal had. Whoever waits for what it has no more is told what is the first one, and goes on
        there."""
        if page.wanted.epoch != self.epoch or self.newest is None:
            return
        self.first = page.first if page.first is not None else page.wanted.upto + 1  # what came since is not gone
        whole = dict(_in_a_row(page.payloads))
        next_seq = page.payloads[0][0] if page.payloads else self._next_in_memory(page.wanted)
        for peer, subscriber in list(self._all.items()):
            if not subscriber.welcomed or subscriber.sent != page.wanted.after or self._is_at_hand(subscriber):
                continue
            if next_seq > subscriber.sent + 1:
                if not self._say(peer, self._welcome_from(next_seq)):
                    continue
                subscriber.start_after(next_seq - 1)
            subscriber.page = dict(whole)

    def _next_in_memory(self, wanted: Wanted) -> int:
        found = self._memory.after(wanted.after)
        return wanted.upto + 1 if found is None else min(found, wanted.upto + 1)

    def _say(self, peer: Peer, message: Message) -> bool:
        return self._try(peer, encode(message))

    def _try(self, peer: Peer, data: bytes) -> bool:
        """Whether it was sent; a peer that has gone is forgotten."""
        try:
            return self._send(peer, data)
        except PeerGoneError:
            self._all.pop(peer, None)
            return False


def _in_a_row(payloads: list[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The payloads up to the first hole in their numbers."""
    for index, (seq, payload) in enumerate(payloads):
        if seq != payloads[0][0] + index:
            return
        yield seq, payload
