"""The client of the verdict channel: what it hears, and what it notices that it does not hear."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from edge.messages import Heartbeat, Message, Trigger, Verdict, encode
from edge.testing import PATIENCE_S, wait_until
from edge.topics import HEALTH, VERDICT, topic
from edge.verdict import Decision, GateState
from edge.verdicts import Event, Gap, Refused, Silence, Subscriber


def verdict(topic_seq: int, lane: str = "a", epoch: str = "e1", line: str = "test") -> Verdict:
    return Verdict(
        line, lane, topic_seq, None, None, Decision.PASS, None, False, epoch, topic_seq, topic_seq, 1, 0.1, 0.2,
        [], True, "r", "b", 1, 2, 3, 4, 5,
    )  # fmt: skip


def beat(state: GateState = GateState.READY, interval_ms: int = 100) -> Heartbeat:
    return Heartbeat("test", "e1", state, [], 0, "", 0, interval_ms, "reject_all", True, 1, 2, "b", {})


class Publisher:
    """A gate's PUB socket."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"ipc://{folder}/verdicts"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.bind(self.endpoint)

    def wait_for_subscriber(self) -> None:
        for _ in range(2):  # verdicts and health
            assert self._socket.poll(100_000)
            self._socket.recv()

    def say(self, *messages: Message) -> None:
        for message in messages:
            if isinstance(message, Verdict):
                self.say_bytes(topic(VERDICT, message.line, message.lane), encode(message))
            else:
                self.say_bytes(topic(HEALTH, "test"), encode(message))

    def say_bytes(self, *parts: bytes) -> None:
        self._socket.send_multipart(parts)

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def publisher(runtime_dir: Path) -> Iterator[Publisher]:
    publisher = Publisher(runtime_dir)
    yield publisher
    publisher.close()


@pytest.fixture
def client(publisher: Publisher) -> Iterator[Subscriber]:
    with Subscriber(publisher.endpoint, "test") as client:
        publisher.wait_for_subscriber()
        yield client


def hear(client: Subscriber, count: int) -> list[Event]:
    """The first `count` events that are no silence, which a machine that stands still hears at any time."""
    events: list[Event] = []
    give_up = time.monotonic() + PATIENCE_S
    while len(events) < count and time.monotonic() < give_up:
        events += [e for e in client.poll(100) if not isinstance(e, Silence)]
    assert len(events) == count
    return events


def hear_silence(client: Subscriber, after: Heartbeat) -> Silence:
    """The silence that follows a heartbeat at once."""
    events: list[Event] = []
    wait_until(lambda: events.extend(client.poll(100)) or (after in events and events[-1] != after))
    silence = events[events.index(after) + 1]
    assert isinstance(silence, Silence)
    assert events[-1] is silence, "once is enough"
    return silence


def test_what_is_said_is_heard_in_order(publisher: Publisher, client: Subscriber) -> None:
    said = [beat(), verdict(1), verdict(2), beat(GateState.NOT_READY)]
    publisher.say(*said)
    assert hear(client, 4) == said


def test_another_line_and_a_longer_name_are_not_heard(publisher: Publisher, client: Subscriber) -> None:
    publisher.say(verdict(1, line="test2"), verdict(1, line="other"), verdict(1))
    assert hear(client, 1) == [verdict(1)]


def test_without_a_line_all_are_heard(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint) as client:
        publisher.wait_for_subscriber()
        publisher.say(verdict(1, line="test2"), verdict(1))
        assert hear(client, 2) == [verdict(1, line="test2"), verdict(1)]


def test_lost_verdicts_are_a_gap_on_their_lane(publisher: Publisher, client: Subscriber) -> None:
    publisher.say(verdict(5), verdict(1, lane="b"), verdict(9), verdict(2, lane="b"), verdict(10))
    assert hear(client, 6) == [
        verdict(5),
        verdict(1, lane="b"),
        Gap("a", 6, 8),
        verdict(9),
        verdict(2, lane="b"),
        verdict(10),
    ]


def test_another_journal_counts_from_one(publisher: Publisher, client: Subscriber) -> None:
    publisher.say(verdict(7), verdict(1, epoch="e2"), verdict(2, epoch="e2"), verdict(9, epoch="e3"))
    assert [e for e in hear(client, 5) if isinstance(e, Gap)] == [Gap("a", 1, 8)]


def test_a_verdict_that_is_said_again_is_no_gap(publisher: Publisher, client: Subscriber) -> None:
    publisher.say(verdict(1), verdict(2), verdict(2), verdict(3))
    assert hear(client, 4) == [verdict(1), verdict(2), verdict(2), verdict(3)]


def test_silence_is_said_once_and_ends_with_a_heartbeat(publisher: Publisher, client: Subscriber) -> None:
    publisher.say(beat(interval_ms=50))
    assert hear_silence(client, beat(interval_ms=50)).for_ms >= 150
    assert client.poll(200) == [], "once is enough"
    publisher.say(beat(interval_ms=50))
    hear_silence(client, beat(interval_ms=50))  # and again after the next


def test_nobody_there_is_silence(runtime_dir: Path) -> None:
    with Subscriber(f"ipc://{runtime_dir}/nobody", "test") as client:
        wait_until(lambda: any(isinstance(e, Silence) for e in client.poll(100)))


def test_a_heartbeat_that_waits_to_be_read_is_no_silence(publisher: Publisher, client: Subscriber) -> None:
    publisher.say(beat(interval_ms=50))
    hear(client, 1)
    publisher.say(beat(interval_ms=50))
    assert client._socket.poll(100_000)
    time.sleep(0.4)
    assert client.poll(100) == [beat(interval_ms=50)]


@pytest.mark.parametrize(
    "parts",
    [
        (b"verdict.test.a.",),
        (b"verdict.test.a.", b"", b""),
        (b"verdict.test.a.", b"garbage"),
        (b"verdict.test.a.", b"\x91" * 5000),
        (b"verdict.test.a.", encode(Trigger("a", 1, 2))),
        (b"verdict.test.a.", encode(verdict(1)).replace(b"\xa1v\x01", b"\xa1v\x63")),
    ],
)
def test_what_is_not_understood_is_refused_and_the_rest_is_heard(
    publisher: Publisher, client: Subscriber, parts: tuple[bytes, ...]
) -> None:
    publisher.say_bytes(*parts)
    publisher.say(verdict(1))
    refused, understood = hear(client, 2)
    assert isinstance(refused, Refused)
    assert refused.why
    assert understood == verdict(1)


def test_a_restarted_gate_is_heard_again(publisher: Publisher, client: Subscriber, runtime_dir: Path) -> None:
    publisher.say(verdict(1))
    assert hear(client, 1) == [verdict(1)]
    publisher.close()
    again = Publisher(runtime_dir)
    try:
        events: list[Event] = []
        give_up = time.monotonic() + PATIENCE_S
        while len(events) < 2 and time.monotonic() < give_up:  # unpolled, it never subscribes again
            again.say(verdict(4))
            events += [e for e in client.poll(50) if not isinstance(e, Silence)]
        assert events[:2] == [Gap("a", 2, 3), verdict(4)]
    finally:
        again.close()


def test_iterating_gives_events_as_they_come(publisher: Publisher, client: Subscriber) -> None:
    publisher.say(verdict(1), verdict(2))
    events = iter(client)
    assert [next(events), next(events)] == [verdict(1), verdict(2)]


@pytest.mark.parametrize("endpoint", ["", "nonsense", "tcp://127.0.0.1", "ipc://" + "x" * 300])
def test_what_is_no_endpoint_is_said(endpoint: str) -> None:
    with pytest.raises(ValueError, match="not an endpoint that can be connected to"):
        Subscriber(endpoint)
