"""The acknowledged channel with real sockets, a real gate and its journal: what one peer does costs the others nothing,
and what dies comes back without a gap."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zmq
from channel_helpers import MS, beat, verdict
from gate_helpers import HandGate, boot_again, cut_power, good, hand_gate, recipe

from edge.channel import InsecureError, Server
from edge.errors import LineBusyError, MasklineError
from edge.history import JournalPages, Page, Wanted
from edge.journal import open_for_reading
from edge.journal.schema import LOST_AT_MOST
from edge.keys import Keyring, Pair, make_pair
from edge.messages import Ack, Clock, Heartbeat, Hello, Message, Refusal, Trigger, Verdict, Welcome, decode, encode
from edge.paths import channel_endpoint, journal_path
from edge.processes import CHANNEL
from edge.settings import Recipe
from edge.subscribers import MAX_CREDIT
from edge.testing import PATIENCE_S
from edge.topics import HEALTH, topic
from edge.verdicts import AsyncChannel, Channel, Event, Gap, NewEpoch, Position, Refused, Silence, Subscriber
from edge.worker import Worker
from tests.support import RunningLine, calibrate_marker, journal_verdicts, marker_recipe, wait_until


class HandChannel:
    """A channel in the test's process, beside a gate in it; both turn when the test says so."""

    def __init__(self, line: HandGate) -> None:
        self.line = line
        process = next(p for p in line.plan.processes if p.name == CHANNEL)
        self.worker = Worker(process, line.plan, line.slab, line.worker.runtime_dir, line.state_dir)
        self.server = Server(self.worker)
        self.parts = 0

    @property
    def endpoint(self) -> str:
        return channel_endpoint(self.worker.runtime_dir)

    def turn(self) -> None:
        self.line.gate.turn()
        self.server.turn()

    def until(self, condition: Callable[[], object]) -> None:
        """Let gate and channel turn until `condition()` is true."""
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up, f"not true within {PATIENCE_S} s"
            self.turn()

    def publish(self, count: int) -> None:
        """So many parts get their verdicts."""
        for number in range(self.parts, self.parts + count):
            self.line.send(Trigger("s0", number, time.monotonic_ns()), good("s0", number))
        self.parts += count
        self.until(lambda: self.server.subscribers.newest == self.parts)

    def close(self) -> None:
        self.server.close()
        self.worker.zmq.destroy(linger=0)


@pytest.fixture
def channels(runtime_dir: Path, tmp_path: Path) -> Iterator[Callable[..., HandChannel]]:
    with contextlib.ExitStack() as opened:

        def make(what: Recipe | None = None) -> HandChannel:
            line = opened.enter_context(hand_gate(what or recipe(), runtime_dir, tmp_path / "state"))
            made = HandChannel(line)
            opened.callback(made.close)
            return made

        yield make


@pytest.fixture
def channel(channels: Callable[..., HandChannel]) -> HandChannel:
    return channels()


class Raw:
    """A client that says what it likes."""

    def __init__(self, endpoint: str, pair: Pair | None = None, line_key: bytes = b"", **options: int) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        for name, value in options.items():
            setattr(self.socket, name, value)
        if pair:
            self.socket.curve_publickey, self.socket.curve_secretkey = pair.public, pair.secret
            self.socket.curve_serverkey = line_key
        self.socket.connect(endpoint)
        self.frames: list[bytes] = []

    def say(self, *messages: Message | bytes) -> None:
        for message in messages:
            self.socket.send(message if isinstance(message, bytes) else encode(message))

    def hear(self) -> list[Message]:
        """All that came so far."""
        with contextlib.suppress(zmq.Again):
            while True:
                self.frames.append(self.socket.recv(zmq.NOBLOCK))
        return [decode(f, Verdict, Heartbeat, Welcome, Clock, Refusal) for f in self.frames]

    def heard(self, kind: type) -> list[Message]:
        return [m for m in self.hear() if isinstance(m, kind)]

    def close(self) -> None:
        self._context.destroy(linger=0)


@contextlib.contextmanager
def raw(endpoint: str, *args: object, **options: int) -> Iterator[Raw]:
    client = Raw(endpoint, *args, **options)  # type: ignore[arg-type]
    try:
        yield client
    finally:
        client.close()


def take(client: Channel, events: list[Event]) -> list[Verdict]:
    """Gather what a client has; the verdicts so far."""
    while (event := client.receive(0)) is not None:
        events.append(event)
    return [e for e in events if isinstance(e, Verdict)]


def seqs(events: Iterable[object]) -> list[int]:
    return [e.seq for e in events if isinstance(e, Verdict | Heartbeat)]


@pytest.mark.parametrize("handled", [5, 10])
def test_who_was_away_over_a_power_cut_misses_nothing_that_is_new(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handled: int
) -> None:
    """Verdicts 8 to 10 are lost with their numbers, and there are more new ones before the client is back."""
    with hand_gate(recipe(), runtime_dir, tmp_path / "state") as line, closing(HandChannel(line)) as channel:
        channel.publish(10)
        epoch, left = line.journal.epoch, cut_power(line, keep=7)
    boot_again(monkeypatch)
    new = range(8 + LOST_AT_MOST, 13 + LOST_AT_MOST)
    events: list[Event] = []
    with hand_gate(recipe(), runtime_dir, left) as line, closing(HandChannel(line)) as channel:
        for number in range(len(new)):
            line.send(Trigger("s0", number, time.monotonic_ns()), good("s0", number))
        channel.until(lambda: channel.server.subscribers.newest == new[-1])
        with Channel(channel.endpoint, Position(epoch, handled)) as client:
            channel.until(lambda: seqs(take(client, events))[-1:] == [new[-1]])
    heard = [e for e in events if isinstance(e, Verdict | Gap | NewEpoch)]
    assert seqs(heard) == [*range(handled + 1, 8), *new]
    assert [e for e in heard if not isinstance(e, Verdict)] == [Gap(None, max(7, handled) + 1, new[0] - 1)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_verdicts_come_as_they_are_in_the_journal_byte_for_byte(channel: HandChannel) -> None:
    channel.publish(5)
    with raw(channel.endpoint) as client:
        client.say(Hello(channel.line.journal.epoch, 0, 100, "raw"))
        channel.until(lambda: len(client.heard(Verdict)) == 5)
        channel.publish(5)
        channel.until(lambda: len(client.heard(Verdict)) == 10)
        sent = [f for f in client.frames if isinstance(decode_any(f), Verdict)]
        with closing(open_for_reading(journal_path(channel.line.state_dir))) as db:
            assert sent == [row[0] for row in db.execute("SELECT payload FROM verdicts ORDER BY seq")]
        (welcome,) = client.heard(Welcome)
        assert welcome == Welcome("test", channel.line.journal.epoch, 5, 1, 250, channel.line.gate.boot_id)


def decode_any(data: bytes) -> object:
    return decode(data, Verdict, Heartbeat, Welcome, Clock, Refusal)


def test_a_client_acknowledges_as_it_handles_and_knows_the_clock(channel: HandChannel) -> None:
    with Channel(channel.endpoint, line="test", name="client", credit=8) as client:
        events: list[Event] = []
        channel.until(lambda: take(client, events) or any(isinstance(e, Heartbeat) for e in events))
        channel.publish(30)
        channel.until(lambda: len(take(client, events)) == 30)
        assert seqs(take(client, events)) == list(range(1, 31))
        assert client.position == Position(channel.line.journal.epoch, 30)
        channel.until(lambda: take(client, events) and not channel.server.subscribers.owed)
        now_ns = time.monotonic_ns()
        low, high = client.clock.range(now_ns)
        assert low <= 0 <= high, "it is the same clock"
        assert channel.server.subscribers.names == ["client"]


def test_the_same_for_asyncio(channel: HandChannel) -> None:
    stop = threading.Event()
    channel.publish(20)

    async def listen() -> list[int]:
        heard: list[int] = []
        async with AsyncChannel(channel.endpoint, Position(channel.line.journal.epoch, 0), credit=4) as client:
            async for event in client:
                if isinstance(event, Verdict):
                    heard.append(event.seq)
                if len(heard) == 20:
                    break
            assert await client.receive(timeout_ms=0) is None
            assert client.position.seq == 20
        stop.set()
        return heard

    heard: list[int] = []
    thread = threading.Thread(target=lambda: heard.extend(asyncio.run(listen())))
    thread.start()
    channel.until(stop.is_set)
    thread.join()
    assert heard == list(range(1, 21))


def test_one_that_stops_reading_costs_the_others_nothing(channel: HandChannel) -> None:
    epoch = channel.line.journal.epoch
    with raw(channel.endpoint, rcvhwm=1) as stuck, Channel(channel.endpoint, Position(epoch, 0)) as quick:
        stuck.say(Hello(epoch, 0, MAX_CREDIT, "stuck"))
        events: list[Event] = []
        channel.until(lambda: take(quick, events) or len(channel.server.subscribers) == 2)
        for _ in range(10):
            channel.publish(300)
            channel.until(lambda: len(take(quick, events)) == channel.parts)
        assert seqs(take(quick, events)) == list(range(1, 3001))
        channel.until(lambda: take(quick, events) and len(channel.server.subscribers) == 1)
        stuck_has = [m.seq for m in stuck.heard(Verdict) if isinstance(m, Verdict)]
        assert stuck_has == list(range(1, len(stuck_has) + 1))
        assert len(stuck_has) <= MAX_CREDIT
        assert not any(isinstance(e, Gap | Refused | NewEpoch) for e in events)


def test_a_flood_of_garbage_is_refused_and_verdicts_go_on(channel: HandChannel) -> None:
    with raw(channel.endpoint, sndhwm=100_000) as flood, Channel(channel.endpoint, name="good") as client:
        events: list[Event] = []
        channel.until(lambda: take(client, events) or channel.server.subscribers.names == ["good"])
        channel.until(lambda: take(client, events) or any(isinstance(e, Heartbeat) for e in events))
        flood.say(*[os.urandom(60) for _ in range(5000)], b"", b"x" * 4096, encode(verdict(1)))
        flood.socket.send_multipart([b"two", b"frames"])
        channel.publish(50)
        channel.until(lambda: len(take(client, events)) == 50)
        channel.until(lambda: channel.server.subscribers.counters["refused"] >= 5003)
        assert seqs(take(client, events)) == list(range(1, 51))


def test_a_giant_is_cut_off_before_it_is_read(channel: HandChannel) -> None:
    with raw(channel.endpoint) as giant, Channel(channel.endpoint, name="good") as client:
        events: list[Event] = []
        giant.say(b"x" * (1 << 20))
        channel.until(lambda: take(client, events) or any(isinstance(e, Heartbeat) for e in events))
        channel.publish(5)
        channel.until(lambda: len(take(client, events)) == 5)
        assert channel.server.subscribers.counters["refused"] == 0


def test_while_the_journal_is_gone_only_those_who_need_it_wait(channel: HandChannel) -> None:
    """Nobody who has what is in memory notices; the rest gets all once it is back."""
    path = journal_path(channel.line.state_dir)
    epoch = channel.line.journal.epoch
    channel.publish(10)
    channel.server.subscribers._memory.clear()
    with Channel(channel.endpoint, Position(epoch, 10)) as live, Channel(channel.endpoint, Position(epoch, 0)) as old:
        events: list[Event] = []
        of_old: list[Event] = []
        channel.until(lambda: take(live, events) or any(isinstance(e, Heartbeat) for e in events))
        path.rename(path.with_suffix(".away"))
        channel.until(lambda: take(old, of_old) or channel.server._journal_trouble)
        channel.publish(10)
        channel.until(lambda: len(take(live, events)) == 10)
        assert take(old, of_old) == []
        assert "cannot be read" in channel.server._journal_trouble
        path.with_suffix(".away").rename(path)
        channel.until(lambda: len(take(old, of_old)) == 20)
        assert seqs(take(old, of_old)) == list(range(1, 21))
        assert not any(isinstance(e, Gap) for e in of_old)
        assert channel.server._journal_trouble == ""


def test_while_the_disk_does_not_answer_the_channel_does(
    channels: Callable[..., HandChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, read = threading.Event(), JournalPages._read
    disk.set()

    def slow(pages: JournalPages, wanted: Wanted) -> Page:
        disk.wait(PATIENCE_S)
        return read(pages, wanted)

    monkeypatch.setattr(JournalPages, "_read", slow)
    channel = channels()
    channel.publish(10)
    channel.server.subscribers._memory.clear()
    epoch = channel.line.journal.epoch
    with Channel(channel.endpoint, Position(epoch, 10)) as live, Channel(channel.endpoint, Position(epoch, 0)) as old:
        events: list[Event] = []
        of_old: list[Event] = []
        channel.until(lambda: take(live, events) or any(isinstance(e, Heartbeat) for e in events))
        disk.clear()
        channel.until(lambda: take(old, of_old) or channel.server._pages.busy)
        events.clear()
        channel.publish(10)
        channel.until(lambda: len(take(live, events)) == 10 and any(isinstance(e, Heartbeat) for e in events))
        assert not any(isinstance(e, Silence) for e in events)
        assert take(old, of_old) == []
        disk.set()
        channel.until(lambda: len(take(old, of_old)) == 20)


def test_pages_are_of_the_journal_that_is_asked_for(channel: HandChannel) -> None:
    channel.publish(3)
    pages = JournalPages(journal_path(channel.line.state_dir))
    try:
        wanted = Wanted(channel.line.journal.epoch, 0, 3)
        assert len(ask(pages, wanted).payloads) == 3  # type: ignore[union-attr]
        assert "gate writes other" in str(ask(pages, wanted._replace(epoch="other")))
        assert [s for s, _ in ask(pages, wanted._replace(after=2)).payloads] == [3]  # type: ignore[union-attr]
    finally:
        pages.close()


def ask(pages: JournalPages, wanted: Wanted) -> Page | str:
    pages.ask(wanted)
    found: list[Page | str] = []
    wait_until(lambda: found.append(f) or True if (f := pages.take()) is not None else False)  # type: ignore[func-returns-value]
    return found[0]


def test_verdicts_that_pub_lost_are_taken_from_the_journal(channel: HandChannel) -> None:
    """The gate's PUB drops what does not fit; here, what its publisher does not even get."""
    with Channel(channel.endpoint, Position(channel.line.journal.epoch, 0)) as client:
        events: list[Event] = []
        channel.until(lambda: take(client, events) or any(isinstance(e, Heartbeat) for e in events))
        publish = channel.line.gate.publisher.send_multipart
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                channel.line.gate.publisher,
                "send_multipart",
                lambda parts: None if parts[0].startswith(b"verdict.") else publish(parts),
            )
            channel.publish(7)
        channel.publish(3)
        channel.until(lambda: len(take(client, events)) == 10)
        assert seqs(take(client, events)) == list(range(1, 11))


def test_an_old_heartbeat_is_not_passed_on(channels: Callable[..., HandChannel]) -> None:
    pub = f"tcp://127.0.0.1:{free_port()}"
    channel = channels(recipe(outputs={"publish": [pub]}))
    epoch, shown = channel.line.journal.epoch, []

    def say(seq: int, age_ms: int) -> None:
        said = beat(seq, time.monotonic_ns() - age_ms * MS, epoch)
        channel.line.gate.publisher.send_multipart([topic(HEALTH, "test"), encode(said)])

    with raw(channel.endpoint) as client, Subscriber(pub, "test") as dashboard:
        client.say(Hello("", -1, 10, ""))
        channel.until(lambda: shown.extend(dashboard.poll(0)) or (shown and client.heard(Heartbeat)))

        def passed_on() -> bool:
            """Whether the fresh one came; the old one, said before it, would have come first."""
            say(98, age_ms=300)
            say(99, age_ms=0)
            channel.server.turn()
            shown.extend(dashboard.poll(0))
            return 99 in seqs(shown) and 99 in seqs(client.heard(Heartbeat))

        wait_until(passed_on)
        assert 98 not in seqs(shown)
        assert 98 not in seqs(client.heard(Heartbeat))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_both_kinds_of_tcp_on_loopback(channels: Callable[..., HandChannel], host: str) -> None:
    acked, pub = f"tcp://{host}:{free_port()}", f"tcp://{host}:{free_port()}"
    channel = channels(recipe(outputs={"publish": [pub], "channel": [acked]}))
    with Channel(acked) as client, Subscriber(pub, "test") as dashboard:
        events: list[Event] = []
        published: list[Event] = []
        channel.until(lambda: take(client, events) or any(isinstance(e, Heartbeat) for e in events))
        channel.until(lambda: published.extend(dashboard.poll(0)) or any(isinstance(e, Heartbeat) for e in published))
        channel.publish(3)
        channel.until(lambda: len(take(client, events)) == 3)
        channel.until(
            lambda: published.extend(dashboard.poll(0)) or len([e for e in published if isinstance(e, Verdict)]) == 3
        )
        assert [e for e in published if isinstance(e, Verdict)] == take(client, events)


@pytest.mark.parametrize("kind", ["publish", "channel"])
def test_a_port_in_use_is_said(channel: HandChannel, tmp_path: Path, kind: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(LineBusyError, match=r"cannot publish on tcp://.*Address already in use") as raised:
            serve(channel, tmp_path, {kind: [endpoint]})
        assert raised.value.exit_code == 75


def serve(channel: HandChannel, folder: Path, outputs: dict[str, object]) -> None:
    """Another channel, in a folder of its own; closed at once."""
    (folder / "r").mkdir(exist_ok=True)
    worker = Worker(channel.worker.process, channel.line.plan, channel.line.slab, folder / "r", channel.line.state_dir)
    worker.recipe = recipe(outputs=outputs)
    try:
        Server(worker).close()
    finally:
        worker.zmq.destroy(linger=0)


def test_what_others_can_reach_needs_keys_or_an_explicit_word(channel: HandChannel, tmp_path: Path) -> None:
    everywhere = {"channel": [f"tcp://*:{free_port()}"]}
    with pytest.raises(InsecureError, match=r"tcp://\*:\d+: others may reach this, and the line has no keys") as raised:
        serve(channel, tmp_path, everywhere)
    assert raised.value.exit_code == 78
    serve(channel, tmp_path, everywhere | {"insecure": True})
    Keyring(channel.line.state_dir).make("test")
    serve(channel, tmp_path, everywhere)


def test_with_keys_only_the_allowed_come_in_and_a_revoked_one_is_cut_off_at_once(
    channels: Callable[..., HandChannel], tmp_path: Path
) -> None:
    keyring = Keyring(tmp_path / "state")
    (tmp_path / "state").mkdir(mode=0o700)
    line_key = keyring.make("test").public
    pairs = {name: make_pair(tmp_path / "clients", name) for name in ("good", "bad", "stranger")}
    for name in ("good", "bad"):
        keyring.allow(name, pairs[name].public, "test")
    acked, pub = f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}"
    channel = channels(recipe(outputs={"publish": [pub], "channel": [acked]}))
    events: dict[str, list[Event]] = {"good": [], "bad": []}
    with contextlib.ExitStack() as opened:
        clients = {n: Channel(acked, name="claims", pair=pairs[n], line_key=line_key) for n in ("good", "bad")}
        opened.callback(lambda: [c.close() for c in clients.values()])
        dashboard = opened.enter_context(Subscriber(pub, "test", pair=pairs["bad"], line_key=line_key))
        strangers = [
            opened.enter_context(raw(acked)),
            opened.enter_context(raw(acked, pairs["stranger"], line_key)),
            opened.enter_context(raw(acked, pairs["good"], pairs["stranger"].public)),
        ]
        for stranger in strangers:
            stranger.say(Hello("", -1, 10, "good"), Ack("", -1, 10, 1))
        shown: list[Event] = []

        def gather() -> dict[str, list[Verdict]]:
            shown.extend(dashboard.poll(0))
            return {name: take(client, events[name]) for name, client in clients.items()}

        channel.until(lambda: gather() and all(any(isinstance(e, Heartbeat) for e in es) for es in events.values()))
        channel.until(lambda: gather() and any(isinstance(e, Heartbeat) for e in shown))
        channel.publish(5)
        channel.until(lambda: all(len(v) == 5 for v in gather().values()))
        assert sorted(channel.server.subscribers.names) == ["bad", "good"], "the key says who it is"
        keyring.revoke("bad", "test")
        channel.until(lambda: gather() and channel.server.subscribers.names == ["good"])
        shown.clear()
        channel.publish(5)
        channel.until(lambda: len(gather()["good"]) == 10)
        channel.until(lambda: gather() and any(isinstance(e, Silence) for e in events["bad"]))
        assert seqs(gather()["good"]) == list(range(1, 11)), "without a gap, over the new connection"
        assert len(gather()["bad"]) == 5
        assert not any(isinstance(e, Verdict) for e in shown)
        assert not any(isinstance(e, Gap | Refused) for e in events["good"])
        for stranger in strangers:
            assert stranger.hear() == []


@pytest.mark.line
def test_whatever_is_killed_no_verdict_is_lost_or_comes_twice(tmp_path: Path, runtime_dir: Path) -> None:
    """Channel, gate and client, with real processes; the client takes up where it has stored that it was."""
    storm = "supervision = { restarts = 1000, window_s = 60 }"
    path = marker_recipe(tmp_path, parts=None, rate_hz=100, extra=storm)
    calibrate_marker(path, tmp_path / "state")
    heard: list[int] = []
    others: list[Event] = []
    with RunningLine(path, tmp_path / "state", runtime_dir) as line:
        endpoint, journal = channel_endpoint(runtime_dir / line.name), journal_path(tmp_path / "state")
        wait_until(lambda: journal_epoch(journal) != "")
        position = Position(journal_epoch(journal), 0)

        def listen(client: Channel, count: int) -> None:
            """Hear so many more verdicts; a program would store each one's position with what it did."""
            nonlocal position
            upto = len(heard) + count
            give_up = time.monotonic() + PATIENCE_S
            while len(heard) < upto:
                assert time.monotonic() < give_up
                event = client.receive(100)
                if isinstance(event, Verdict):
                    heard.append(event.seq)
                    position = Position(event.epoch, event.seq)
                elif event is not None:
                    others.append(event)

        for victim in ("channel", "gate", "client", "channel", "stopped channel"):
            with Channel(endpoint, position, name=f"before {victim}", credit=16) as client:
                listen(client, 30)
                if victim != "client":
                    name = victim.rpartition(" ")[2]
                    pid = line.children()[name]
                    os.kill(pid, signal.SIGSTOP if "stopped" in victim else signal.SIGKILL)
                    wait_until(lambda n=name, p=pid: line.children().get(n, p) != p)
                    listen(client, 60)
                listen(client, 30)
        with Channel(endpoint, position) as client:
            stopper = threading.Thread(target=line.stop)
            stopper.start()
            while stopper.is_alive():
                if isinstance(event := client.receive(100), Verdict):
                    heard.append(event.seq)
            stopper.join()
            heard += seqs(take(client, []))
    journaled = [v.seq for v in journal_verdicts(tmp_path / "state")]
    assert heard == journaled, "all of them, the last ones of the stopped line included"
    assert not any(isinstance(e, Gap | NewEpoch) for e in others)


def journal_epoch(path: Path) -> str:
    if not path.exists():
        return ""
    with contextlib.suppress(MasklineError), closing(open_for_reading(path)) as db:
        return str(db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()[0])
    return ""


@pytest.mark.line
def test_the_bench_brings_all_of_its_verdicts_to_a_subscriber() -> None:
    from edge.bench import gate

    figures = gate.run(verdicts=300, rounds=1)
    assert set(gate.BUDGETS) < set(figures)
    assert all(value > 0 for value in figures.values())
