"""The channel's side: bounded in everything, and each subscriber for itself."""

from __future__ import annotations

from collections import defaultdict

import pytest
from channel_helpers import MS, beat, verdict

from edge.history import Memory, Page
from edge.messages import (
    Ack,
    Clock,
    Heartbeat,
    Hello,
    Message,
    ProtocolError,
    Refusal,
    Trigger,
    Verdict,
    Welcome,
    decode,
    encode,
)  # fmt: skip
from edge.subscribers import (
    FORGET_NS,
    MAX_CREDIT,
    MAX_SUBSCRIBERS,
    MAX_UNACKNOWLEDGED_BYTES,
    PER_TURN,
    Peer,
    PeerGoneError,
    Subscribers,
)  # fmt: skip

A, B, C = (0, b"a"), (0, b"b"), (1, b"a")


class Channel:
    """A channel with a journal, and what it sends to whom."""

    def __init__(self, published: int = 0, memory: Memory | None = None) -> None:
        self.sent: dict[Peer, list[Message]] = defaultdict(list)
        self.gone: set[Peer] = set()
        self.full: set[Peer] = set()
        self.server = Subscribers("test", "b", 250, self._send, memory)
        self.journal: dict[int, bytes] = {}
        self.server.heartbeat("e1", 0, None)
        self.publish(published)
        self.read()

    def _send(self, peer: Peer, data: bytes) -> bool:
        if peer in self.gone:
            raise PeerGoneError
        if peer not in self.full:
            self.sent[peer].append(decode(data, Verdict, Heartbeat, Welcome, Clock, Refusal))
        return peer not in self.full

    def publish(self, count: int, size: int = 0) -> None:
        for _ in range(count):
            seq = (self.server.newest or 0) + 1
            self.journal[seq] = encode(verdict(seq, lane="a" * (size + 1)))
            self.server.published("e1", seq, self.journal[seq])

    def say(self, peer: Peer, message: Message, now_ns: int = 0, name: str | None = None) -> None:
        self.server.receive(peer, name, encode(message), now_ns)

    def hello(self, peer: Peer, seq: int = 0, credit: int = 10, name: str = "", now_ns: int = 0) -> None:
        self.say(peer, Hello("e1", seq, credit, name), now_ns)

    def read(self) -> None:
        if wanted := self.server.wanted():
            rows = [(s, p) for s, p in self.journal.items() if wanted.after < s <= wanted.upto]
            self.server.take(Page(wanted, min(self.journal, default=None), rows))

    def run(self, turns: int = 10) -> None:
        for _ in range(turns):
            self.read()
            self.server.pump()

    def verdicts(self, peer: Peer) -> list[int]:
        return [m.seq for m in self.sent[peer] if isinstance(m, Verdict)]

    def of_type(self, peer: Peer, kind: type) -> list[Message]:
        return [m for m in self.sent[peer] if isinstance(m, kind)]


@pytest.mark.parametrize("memory", [0, 5, 1000])
def test_credit_is_never_exceeded_and_an_ack_gives_more(memory: int) -> None:
    channel = Channel(100, Memory(max_verdicts=memory))
    channel.hello(A, seq=20, credit=7)
    channel.run()
    assert channel.verdicts(A) == list(range(21, 28))
    channel.say(A, Ack("e1", 23, 7, 1))
    channel.run()
    assert channel.verdicts(A) == list(range(21, 31))
    channel.say(A, Ack("e1", 30, 0, 1))
    channel.run()
    assert channel.verdicts(A) == list(range(21, 31)), "no credit is a pause"
    channel.say(A, Ack("e1", 30, 10**9, 1))
    channel.run(50)
    assert channel.verdicts(A) == list(range(21, 101))


def test_credit_has_a_limit() -> None:
    channel = Channel(MAX_CREDIT + 100, Memory(max_verdicts=10**6))
    channel.hello(A, credit=10**9)
    channel.run(100)
    assert len(channel.verdicts(A)) == MAX_CREDIT


def test_large_verdicts_that_are_not_acknowledged_are_bounded_in_bytes() -> None:
    size = MAX_UNACKNOWLEDGED_BYTES // 4
    channel = Channel()
    channel.publish(30, size)
    channel.hello(A, credit=100)
    channel.run()
    assert len(channel.verdicts(A)) == 4
    channel.say(A, Ack("e1", 2, 100, 1))
    channel.run()
    assert len(channel.verdicts(A)) == 6


def test_one_subscriber_has_a_turn_after_the_other() -> None:
    channel = Channel(500)
    channel.hello(A, credit=500)
    channel.hello(B, credit=500)
    channel.read()
    assert channel.server.pump(), "there is more"
    assert len(channel.verdicts(A)) == len(channel.verdicts(B)) == PER_TURN
    channel.run()
    assert not channel.server.pump()


def test_a_full_queue_costs_nothing_but_time() -> None:
    channel = Channel(10)
    channel.hello(A)
    channel.hello(B)
    channel.read()
    channel.full.add(A)
    channel.run()
    assert channel.sent[A] == []
    assert channel.verdicts(B) == list(range(1, 11))
    channel.full.clear()
    channel.run()
    assert channel.verdicts(A) == list(range(1, 11))


def test_pages_of_the_journal_go_to_those_who_wait_for_them() -> None:
    channel = Channel(300, Memory(max_verdicts=0))
    for peer, seq in ((A, 0), (B, 100), (C, 290)):
        channel.hello(peer, seq=seq, credit=50)
    channel.run(30)
    assert channel.verdicts(A) == list(range(1, 51))
    assert channel.verdicts(B) == list(range(101, 151))
    assert channel.verdicts(C) == list(range(291, 301))


def test_a_hole_in_the_journal_is_told_where_it_begins() -> None:
    channel = Channel(20, Memory(max_verdicts=0))
    for seq in range(5, 9):
        del channel.journal[seq]
    channel.hello(A, credit=100)
    channel.run()
    told = [m.first if isinstance(m, Welcome) else m.seq for m in channel.sent[A] if isinstance(m, Welcome | Verdict)]
    assert told == [1, 1, 2, 3, 4, 9, *range(9, 21)]


def test_what_is_published_while_an_empty_journal_is_read_is_not_gone() -> None:
    channel = Channel()
    channel.server.first = None
    wanted = channel.server.wanted()
    assert wanted is not None
    channel.publish(5)
    channel.hello(A)
    channel.server.take(Page(wanted, None, []))
    channel.run()
    assert channel.verdicts(A) == [1, 2, 3, 4, 5]


def test_nobody_is_welcomed_before_the_gate_was_heard_and_the_journal_read() -> None:
    channel = Channel()
    channel.server = Subscribers("test", "b", 250, channel._send)
    channel.hello(A)
    channel.run()
    assert channel.sent[A] == []
    channel.server.heartbeat("e1", 0, None)
    channel.server.pump()
    assert channel.sent[A] == []
    channel.run()
    assert channel.sent[A] == [Welcome("test", "e1", 0, 1, 250, "b")]


def test_what_the_journal_has_beyond_what_was_published_is_not_sent() -> None:
    """The gate takes back a PASS whose deadline passed while it was written."""
    channel = Channel(3, Memory(max_verdicts=0))
    channel.journal[4] = encode(verdict(4))
    channel.hello(A)
    channel.run()
    assert channel.verdicts(A) == [1, 2, 3]


def test_heartbeats_go_to_all_who_were_welcomed_byte_for_byte() -> None:
    channel = Channel(1)
    channel.hello(A, seq=1)
    channel.run()
    channel.hello(B, seq=1)
    channel.server.heartbeat("e1", 1, encode(beat(1)))
    channel.server.heartbeat("e1", 1, None)
    assert channel.of_type(A, Heartbeat) == [beat(1)]
    assert channel.of_type(B, Heartbeat) == []


def test_who_is_silent_is_forgotten_and_has_to_say_hello() -> None:
    channel = Channel(1)
    channel.hello(A, seq=1, name="slow")
    channel.hello(B, seq=1, name="quick")
    channel.run()
    channel.say(B, Ack("e1", 1, 10, 5), FORGET_NS - 1)
    assert channel.of_type(B, Clock) == [Clock(5, FORGET_NS - 1, "b")]
    assert channel.server.forget_silent(FORGET_NS + 1) == ["slow"]
    assert channel.server.names == ["quick"]
    channel.say(A, Ack("e1", 1, 10, 5), FORGET_NS + 2)
    assert "say hello first" in str(channel.sent[A][-1])


def test_subscribers_are_bounded_and_one_that_left_makes_room() -> None:
    channel = Channel(1)
    for i in range(MAX_SUBSCRIBERS + 1):
        channel.hello((0, b"%d" % i))
    last = (0, b"%d" % MAX_SUBSCRIBERS)
    assert channel.sent[last] == [Refusal("the line has 64 subscribers already; disconnect one of them")]
    channel.hello((0, b"3"))
    assert len(channel.server) == MAX_SUBSCRIBERS, "whoever is in may say hello again"
    channel.gone.add((0, b"7"))
    channel.run()
    channel.hello(last)
    channel.run()
    assert channel.verdicts(last) == [1]


def test_the_key_says_who_it_is_and_the_same_routing_id_elsewhere_is_another() -> None:
    channel = Channel(2)
    channel.say(A, Hello("e1", 0, 1, "claimed"), name="key")
    channel.hello(C, seq=1, name="claimed")
    channel.run()
    assert channel.server.names == ["key", "claimed"]
    assert (channel.verdicts(A), channel.verdicts(C)) == ([1], [2])
    channel.server.forget(1)
    assert channel.server.names == ["key"]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"garbage", b"\x91" * 4000, encode(Trigger("a", 1, 2)), encode(verdict(1)),
        encode(Hello("e1", -2, 5, "")), encode(Hello("e1", 0, 0, "")), encode(Hello("e" * 65, 0, 5, "")),
        encode(Hello("e1", 0, 5, "n" * 65)), encode(Ack("e1", 0, 5, 0)),
        encode(Hello("e1", 0, 5, "")).replace(b"\xa1v\x01", b"\xa1v\x02"),
    ],
)  # fmt: skip
def test_garbage_is_counted_and_refused_with_a_reason(data: bytes) -> None:
    channel = Channel(1)
    channel.server.receive(A, None, data, 0)
    (refusal,) = channel.sent[A]
    assert isinstance(refusal, Refusal)
    assert refusal.why
    assert channel.server.counters["refused"] == 1
    assert len(channel.server) == 0


def test_an_ack_of_what_was_never_sent_ends_the_subscription() -> None:
    channel = Channel(5)
    channel.hello(A, credit=2)
    channel.run()
    channel.say(A, Ack("e1", 5, 2, 0))
    assert "ack of seq 5" in str(channel.sent[A][-1])
    assert len(channel.server) == 0


def test_an_ack_of_another_journal_changes_nothing() -> None:
    channel = Channel(5)
    channel.hello(A, credit=2)
    channel.run()
    channel.say(A, Ack("old", 1000, 1000, 0))
    channel.run()
    assert channel.verdicts(A) == [1, 2]
    assert isinstance(channel.sent[A][-1], Clock), "but its clock is answered"


def test_what_is_owed_is_known_at_the_end() -> None:
    channel = Channel(5)
    channel.hello(A)
    assert not channel.server.owed
    channel.run()
    assert channel.server.owed
    channel.say(A, Ack("e1", 5, 10, 0))
    assert not channel.server.owed


def test_memory_is_bounded_in_number_and_bytes() -> None:
    memory = Memory(max_verdicts=3, max_bytes=10)
    for seq in range(1, 6):
        memory.add(seq, b"12")
    assert [memory.get(seq) for seq in range(1, 7)] == [None, None, b"12", b"12", b"12", None]
    memory.add(9, b"12345678")
    assert [seq for seq in range(1, 10) if memory.get(seq)] == [5, 9]
    memory.add(10, b"x" * 11)
    assert not any(memory.get(seq) for seq in range(1, 11))


def test_decode_names_what_it_expects() -> None:
    with pytest.raises(ProtocolError, match="expected one of"):
        decode(encode(beat(1, at_ns=MS)), Hello, Ack)
