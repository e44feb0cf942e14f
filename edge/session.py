"""One subscriber's side of the acknowledged channel, without sockets and clocks: frames and times in, events and frames
out. `docs/protocol.md` has the rules; `edge.verdicts` has the sockets.

Each verdict comes once, in the order of `seq`. One counts as handled when the next event is asked for; what is handled
is acknowledged, and is where a later session goes on.

A heartbeat proves that the gate was alive when it was made, however long it was on its way. That moment is brought to
this box's clock with the offset that the answers to our acks bound, at its earliest. Three intervals after the last
such moment there is silence.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from edge.clock import ClockOffset
from edge.messages import Ack, Clock, Heartbeat, Hello, ProtocolError, Refusal, Verdict, Welcome, decode, encode
from edge.topics import HEARTBEAT_INTERVAL_MS, SILENCE_INTERVALS

__all__ = ["CREDIT", "Event", "Gap", "NewEpoch", "Position", "Refused", "Session", "Silence"]

CREDIT = 256
"""Verdicts that may be on their way or wait here; also how much memory a slow reader needs."""
LONGEST_INTERVAL_MS = 1_000
"""Whatever a message says: who acknowledges more seldom is forgotten by the line."""
_MS = 1_000_000


class Position(NamedTuple):
    """A verdict of a journal. What a subscriber stores to go on after it; a verdict's own is (epoch, seq)."""

    epoch: str
    seq: int


FROM_NOW_ON = Position("", -1)


@dataclass(frozen=True)
class Silence:
    """No fresh heartbeat for `for_ms`: the gate, its box or the way to it is dead. Nothing may be passed."""

    for_ms: int


@dataclass(frozen=True)
class Gap:
    """Verdicts that were published and will not come.

    On PUB they were lost on the way, and counted by the `topic_seq` of a lane. On the acknowledged channel they are
    gone from the journal, or their numbers were skipped behind a power cut: `lane` is None, and they are counted by
    `seq`.
    """

    lane: str | None
    first: int
    last: int


@dataclass(frozen=True)
class NewEpoch:
    """The line writes another journal than the one that our position is in, or an older copy of that one.

    Its verdicts follow, from its first one on; those of an older copy from where it is now.
    """

    epoch: str
    before: Position


@dataclass(frozen=True)
class Refused:
    """A message that is not of this protocol, or the other side's word that ours was not."""

    why: str


Event = Verdict | Heartbeat | Silence | Gap | NewEpoch | Refused


class Session:
    """The subscriber of one channel, over all its connections."""

    def __init__(
        self,
        position: Position | None,
        now_ns: int,
        *,
        line: str | None = None,
        name: str = "",
        credit: int = CREDIT,
    ) -> None:
        """`position`: the last verdict that was handled, ever; None: from now on. `line`: no other one will do."""
        self.position = position or FROM_NOW_ON
        """The last verdict that was handled."""
        self.clock = ClockOffset()
        """The line's monotonic clock against ours."""
        self._line, self._name, self._credit = line, name, credit
        self._received = self.position  # the last one that came, in order
        self._queue: deque[tuple[Event, Position]] = deque()  # with the position once the event is handled
        self._given: Position | None = None
        self._welcomed = False
        self._interval_ns = HEARTBEAT_INTERVAL_MS * _MS
        self._next_hello_ns = self._next_ack_ns = now_ns
        self._acked = self.position
        self._beat: Heartbeat | None = None  # the newest, until it was given
        self._alive_ns = now_ns  # when the gate was alive for sure, on our clock
        self._silent = False
        self._refused = ""

    @property
    def _allowed_ns(self) -> int:
        return SILENCE_INTERVALS * self._interval_ns

    def receive(self, data: bytes, now_ns: int) -> None:
        """Take a frame from the channel."""
        try:
            message = decode(data, Verdict, Heartbeat, Welcome, Clock, Refusal)
            self._take(message, now_ns)
        except ProtocolError as error:
            self._queue_refused(str(error))

    def frames(self, now_ns: int) -> list[bytes]:
        """What must be sent now; to be asked after every `next_event`."""
        at = self.position
        if not self._welcomed:
            if now_ns < self._next_hello_ns:
                return []
            self._next_hello_ns = now_ns + self._interval_ns
            return [encode(Hello(at.epoch, at.seq, self._credit, self._name))]
        hungry = at.epoch == self._acked.epoch and at.seq - self._acked.seq >= max(1, self._credit // 2)
        if now_ns < self._next_ack_ns and not hungry:
            return []
        self._acked, self._next_ack_ns = at, now_ns + self._interval_ns
        return [encode(Ack(at.epoch, at.seq, self._credit, now_ns))]

    def next_event(self, now_ns: int) -> Event | None:
        """What happened next, or None; the event before it counts as handled. To be asked when all frames were taken.

        What is urgent comes first: that the gate lives, or that nothing proves it any more.
        """
        if self._given is not None:
            self.position, self._given = self._given, None
        if (beat := self._fresh_beat(now_ns)) is not None:
            return beat
        if not self._silent and now_ns - self._alive_ns >= self._allowed_ns:
            self._silent = True
            return Silence((now_ns - self._alive_ns) // _MS)
        if not self._queue:
            return None
        event, self._given = self._queue.popleft()
        return event

    def wait_ms(self, now_ns: int) -> int:
        """How long nothing needs to be sent or said, unless a frame comes."""
        due = [self._next_ack_ns if self._welcomed else self._next_hello_ns]
        if not self._silent:
            due.append(self._alive_ns + self._allowed_ns)
        return max(0, -((now_ns - min(due)) // _MS))

    def _take(self, message: Verdict | Heartbeat | Welcome | Clock | Refusal, now_ns: int) -> None:
        if isinstance(message, Refusal):
            self._take_refusal(message, now_ns)
            return
        if isinstance(message, Welcome):
            self._take_welcome(message, now_ns)
        if not self._welcomed:
            return  # of an earlier connection, or of another line
        if isinstance(message, Verdict | Heartbeat) and message.epoch != self._received.epoch:
            self._say_hello_again(now_ns)  # this, or what we were welcomed to, was garbled on its way
            return
        if isinstance(message, Verdict):
            self._take_verdict(message, now_ns)
        elif isinstance(message, Heartbeat):
            self._beat = message
            self._interval_ns = _interval_ns(message)
        elif isinstance(message, Clock):
            if message.sent_ns > now_ns:
                raise ProtocolError(f"the answer to an ack of {message.sent_ns}, which was not sent yet")
            self.clock.add(message.sent_ns, message.received_ns, now_ns, message.boot_id)

    def _take_refusal(self, refusal: Refusal, now_ns: int) -> None:
        if self._welcomed:  # it has forgotten us, or was restarted
            self._say_hello_again(now_ns)
        else:
            self._queue_refused(refusal.why)

    def _take_welcome(self, welcome: Welcome, now_ns: int) -> None:
        if self._line is not None and welcome.line != self._line:
            raise ProtocolError(f"this is the line {welcome.line}; expected {self._line}")
        self._welcomed, self._refused = True, ""
        self._next_ack_ns = now_ns
        self._interval_ns = _interval_ns(welcome)
        at = self._received
        if at.seq < 0:
            self._received = self.position = Position(welcome.epoch, welcome.seq)
            return
        if welcome.epoch != at.epoch or welcome.seq < at.seq:
            lost_end = welcome.epoch == at.epoch
            self._received = Position(welcome.epoch, welcome.seq if lost_end else 0)
            self._queue.append((NewEpoch(welcome.epoch, at), self._received))
        if welcome.first > self._received.seq + 1:
            gap = Gap(None, self._received.seq + 1, welcome.first - 1)
            self._received = Position(welcome.epoch, gap.last)
            self._queue.append((gap, self._received))

    def _take_verdict(self, verdict: Verdict, now_ns: int) -> None:
        if verdict.seq <= self._received.seq:
            return  # sent again
        if verdict.seq > self._received.seq + 1 or len(self._queue) > 2 * self._credit:
            self._say_hello_again(now_ns)  # some were lost on the way, or it knows no credit
            return
        self._received = Position(verdict.epoch, verdict.seq)
        self._queue.append((verdict, self._received))

    def _say_hello_again(self, now_ns: int) -> None:
        self._welcomed = False
        self._next_hello_ns = max(now_ns, self._next_hello_ns)

    def _queue_refused(self, why: str) -> None:
        if why != self._refused:  # it will be the same every time
            self._refused = why
            self._queue.append((Refused(why), self._received))

    def _fresh_beat(self, now_ns: int) -> Heartbeat | None:
        """The newest heartbeat, if it proves that the gate was alive less than three intervals ago."""
        beat = self._beat
        if beat is None or not self.clock.known:
            return None
        self._beat = None
        if beat.boot_id != self.clock.boot_id:
            return None
        _, most_ns = self.clock.range(now_ns)
        self._alive_ns = max(self._alive_ns, min(now_ns, beat.at_ns - most_ns))
        if now_ns - self._alive_ns >= self._allowed_ns:
            return None
        self._silent = False
        return beat


def _interval_ns(message: Heartbeat | Welcome) -> int:
    return min(max(1, message.interval_ms), LONGEST_INTERVAL_MS) * _MS
