"""CURVE with real sockets: strangers get nothing and disturb nobody; a revoked client is out, the others go on."""

from __future__ import annotations

import contextlib
import socket as sockets
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
import zmq.auth
from zmq.utils.monitor import recv_monitor_message

from edge import doorman as doorman_module
from edge.doorman import Doorman, bind_again, secure_client
from edge.errors import ResourceError
from edge.keys import Keyring, KeysError, Pair, make_pair
from edge.testing import PATIENCE_S, wait_until

Socket = zmq.Socket[bytes]
GREETING = b"\xff" + b"\0" * 8 + b"\x7f"
REFUSED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
)


class Line:
    """What the channel process does with a doorman: a ROUTER and a PUB on TCP, bound anew when a client is revoked."""

    def __init__(self, state_dir: Path) -> None:
        self.keyring = Keyring(state_dir)
        self.keyring.make("anna")
        self.context: zmq.Context[Socket] = zmq.Context()
        self.doorman = Doorman(self.context, self.keyring)
        self.endpoints = {zmq.ROUTER: "tcp://127.0.0.1:*", zmq.PUB: "tcp://127.0.0.1:*"}
        self.bind()
        self.number = 0

    def bind(self) -> None:
        self.router, self.pub = self._bind(zmq.ROUTER), self._bind(zmq.PUB)

    def _bind(self, kind: int) -> Socket:
        socket = self.context.socket(kind)
        socket.linger = 0
        self.doorman.secure_server(socket)
        bind_again(socket, self.endpoints[kind])
        self.endpoints[kind] = socket.last_endpoint.rstrip(b"\0").decode()
        return socket

    def bind_anew(self) -> None:
        self.router.close(linger=0)
        self.pub.close(linger=0)
        self.bind()

    def ports(self) -> list[int]:
        return [int(e.rpartition(":")[2]) for e in self.endpoints.values()]

    def received(self) -> list[tuple[str | None, bytes]]:
        """Whatever has come, and who says so."""
        found = []
        while self.router.poll(0):
            frames = self.router.recv_multipart(copy=False)
            found.append((self.doorman.sender(self.router, frames[-1]), frames[-1].bytes))
        return found

    def close(self) -> None:
        self.doorman.close()
        self.context.term()


class Client:
    """A DEALER and a SUB, of whoever it is."""

    def __init__(self, line: Line, pair: Pair | None, server_key: bytes | None = None) -> None:
        self.context: zmq.Context[Socket] = zmq.Context()
        self.dealer, self.sub = self.context.socket(zmq.DEALER), self.context.socket(zmq.SUB)
        self.sub.subscribe(b"")
        self.monitors = [s.get_monitor_socket() for s in (self.dealer, self.sub)]
        for socket, kind in ((self.dealer, zmq.ROUTER), (self.sub, zmq.PUB)):
            socket.linger, socket.reconnect_ivl = 0, 20
            if pair:
                secure_client(socket, pair, server_key or line.keyring.pair().public)
            socket.connect(line.endpoints[kind])

    def wait_until_refused(self) -> None:
        """Until both connections were refused; AssertionError if one of them was let in."""
        for monitor in self.monitors:
            seen = 0
            while not seen & REFUSED:
                assert monitor.poll(100_000), "neither let in nor refused"
                seen |= int(recv_monitor_message(monitor)["event"])
                assert not seen & zmq.EVENT_HANDSHAKE_SUCCEEDED, "let in"

    def exchange(self, line: Line, name: str, count: int = 50) -> None:
        """`count` messages each way and `count` publications: each arrives, once, in order, from the right sender."""
        self._join(line)
        sent = []
        for _ in range(count):
            line.number += 1
            sent.append(b"%d" % line.number)
            self.dealer.send(sent[-1])
            assert line.router.poll(100_000)
            routing_id, frame = line.router.recv_multipart(copy=False)
            assert (line.doorman.sender(line.router, frame), frame.bytes) == (name, sent[-1])
            line.router.send_multipart([routing_id, frame])
            line.pub.send(sent[-1])
        assert [self._next(self.dealer) for _ in sent] == sent
        assert [self._next(self.sub) for _ in sent] == sent

    def _join(self, line: Line) -> None:
        """A subscription is on its way for a while."""
        give_up = time.monotonic() + PATIENCE_S
        while not self.sub.poll(10):
            assert time.monotonic() < give_up, "never got in"
            line.pub.send(b"hello")
        while self.sub.poll(50):
            self.sub.recv()

    @staticmethod
    def _next(socket: Socket) -> bytes:
        assert socket.poll(100_000)
        return socket.recv()

    def got(self) -> bool:
        return bool(self.dealer.poll(0) or self.sub.poll(0))

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.setattr(doorman_module, "HANDSHAKE_MS", 300)  # a refused client tries again after this
    made = Line(tmp_path / "state")
    yield made
    made.close()


@pytest.fixture
def join(line: Line, tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Makes clients: `join("gate-3")` is allowed first, `join("x", allow=False)` is not."""
    with contextlib.ExitStack() as opened:

        def join(name: str, allow: bool = True, plain: bool = False, server_key: bytes | None = None) -> Client:
            pair = make_pair(tmp_path / name, "client")
            if allow:
                line.keyring.allow(name, pair.public, "anna")
                notice(line)
            client = Client(line, None if plain else pair, server_key)
            opened.callback(client.close)
            return client

        yield join


def notice(line: Line) -> set[str]:
    """Let the doorman look at the list, as the channel's loop does all the time; the names that left."""
    line.doorman._next_look = 0.0
    return line.doorman.changed()


def ready(line: Line, name: str) -> Callable[[], bool]:
    return lambda: not line.doorman.changed() and name in line.doorman._names.values()


def test_allowed_clients_get_every_message_and_are_known_by_their_keys(line: Line, join: Callable[..., Client]) -> None:
    first, second = join("gate-3"), join("gate-4")
    first.exchange(line, "gate-3")
    second.exchange(line, "gate-4")


@pytest.mark.parametrize(
    "stranger",
    [
        {"allow": False},
        {"server_key": zmq.curve_keypair()[0]},
        {"plain": True},
        {"allow": False, "server_key": zmq.curve_keypair()[0]},
    ],
    ids=["key-not-allowed", "wrong-server-key", "plain", "both-wrong"],
)
def test_a_stranger_gets_nothing_and_disturbs_nobody(
    line: Line, join: Callable[..., Client], stranger: dict[str, object]
) -> None:
    gate = join("gate-3")
    gate.exchange(line, "gate-3")
    other = join("other", **stranger)
    other.dealer.send(b"let me in")
    other.wait_until_refused()
    gate.exchange(line, "gate-3", 200)
    assert line.received() == []
    assert not other.got()


def greeting(mechanism: bytes, as_server: int = 0, minor: int = 0) -> bytes:
    return GREETING + bytes([3, minor]) + mechanism.ljust(20, b"\0") + bytes([as_server]) + b"\0" * 31


def command(name: bytes, body: bytes = b"") -> bytes:
    text = bytes([len(name)]) + name + body
    return b"\x06" + struct.pack(">Q", len(text)) + text


def metadata(**properties: bytes) -> bytes:
    named = [(name.replace("_", "-").encode(), value) for name, value in properties.items()]
    return b"".join(bytes([len(n)]) + n + struct.pack(">I", len(v)) + v for n, v in named)


GARBAGE = {
    "noise": bytes(range(1, 256)) * 64,
    "zeros": b"\0" * 4096,
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "zmtp-1": b"\x01\x00" + b"\x06\x00hello" * 100,
    "zmtp-2": GREETING + b"\x01\x05\x00\x00" + b"\x00\x05hello" * 100,
    "null": greeting(b"NULL") + command(b"READY", metadata(Socket_Type=b"DEALER")) + b"\x00\x05hello" * 100,
    "plain": greeting(b"PLAIN") + command(b"HELLO", b"\x05admin\x05admin"),
    "as-server": greeting(b"CURVE", as_server=1) + command(b"WELCOME", b"\0" * 160),
    "empty-hello": greeting(b"CURVE") + command(b"HELLO"),
    "false-hello": greeting(b"CURVE") + command(b"HELLO", b"\x01\x00" + b"\x07" * 192),
    "initiate-first": greeting(b"CURVE") + command(b"INITIATE", b"\x07" * 300),
    "message-first": greeting(b"CURVE") + b"\x00\x05hello" * 100,
    "huge-command": greeting(b"CURVE") + b"\x06" + struct.pack(">Q", 1 << 30),
    "endless-command": greeting(b"CURVE") + b"\x06" + b"\xff" * 8,
}


def flood(port: int, opening: bytes, limit: int) -> int:
    """Send an opening and then noise until the other end has closed, at most `limit` bytes; how many were sent."""
    with sockets.create_connection(("127.0.0.1", port), timeout=100) as raw:
        sent = 0
        try:
            while sent < limit:
                sent += raw.send(opening if not sent else b"\x07" * 65_536)
            raw.shutdown(sockets.SHUT_WR)
            while raw.recv(4096):
                pass
        except TimeoutError:
            raise
        except OSError:
            pass  # closed, in one of the ways in which the kernel says so
        return sent


@pytest.mark.parametrize("opening", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_cut_off_and_disturbs_nobody(line: Line, join: Callable[..., Client], opening: bytes) -> None:
    gate = join("gate-3")
    gate.exchange(line, "gate-3", 5)
    limit = 16 << 20
    for port in line.ports():
        for _ in range(3):
            assert flood(port, opening, limit) < limit, "who cannot greet is not listened to for long"
    gate.exchange(line, "gate-3", 100)
    assert line.received() == []


def test_a_flood_meanwhile_costs_nobody_a_message(line: Line, join: Callable[..., Client]) -> None:
    gate = join("gate-3")

    def rage() -> None:
        for opening in [*GARBAGE.values()] * 10:
            for port in line.ports():
                flood(port, opening, 1 << 20)

    strangers = threading.Thread(target=rage)
    strangers.start()
    gate.exchange(line, "gate-3", 500)
    strangers.join()
    gate.exchange(line, "gate-3", 5)
    assert line.received() == []


def test_who_says_nothing_is_not_kept(line: Line, join: Callable[..., Client]) -> None:
    gate = join("gate-3")
    with contextlib.ExitStack() as opened:
        for port in line.ports() * 20:
            raw = opened.enter_context(sockets.create_connection(("127.0.0.1", port), timeout=100))
            raw.send(GREETING)
        gate.exchange(line, "gate-3")
        while raw.recv(4096):
            pass


def test_who_was_refused_comes_in_by_itself_once_it_is_allowed(
    line: Line, join: Callable[..., Client], tmp_path: Path
) -> None:
    early = join("gate-3", allow=False)
    early.wait_until_refused()
    key = zmq.auth.load_certificate(tmp_path / "gate-3" / "client.key")[0]
    line.keyring.allow("gate-3", key, "anna")
    wait_until(ready(line, "gate-3"))
    early.exchange(line, "gate-3")


def test_a_revoked_client_is_cut_off_while_it_is_connected_and_the_others_go_on(
    line: Line, join: Callable[..., Client], tmp_path: Path
) -> None:
    revoked, other = join("gate-3"), join("gate-4")
    for client, name in ((revoked, "gate-3"), (other, "gate-4")):
        client.exchange(line, name)
        for monitor in client.monitors:
            while monitor.poll(0):
                recv_monitor_message(monitor)
    line.keyring.revoke("gate-3", "anna")
    left: set[str] = set()
    wait_until(lambda: bool(left.update(line.doorman.changed()) or left))
    assert left == {"gate-3"}
    assert line.doorman.changed() == set(), "said once"
    revoked.dealer.send(b"still here")
    assert line.router.poll(100_000), "it is still connected"
    assert line.received() == [(None, b"still here")], "but nobody any more"
    line.bind_anew()
    revoked.wait_until_refused()
    while revoked.sub.poll(0):
        revoked.sub.recv()  # what was sent before it was revoked
    revoked.dealer.send(b"let me in")
    other.exchange(line, "gate-4", 200)
    assert line.received() == []
    assert not revoked.got()
    line.keyring.allow("gate-3", zmq.auth.load_certificate(tmp_path / "gate-3" / "client.key")[0], "anna")
    wait_until(ready(line, "gate-3"))
    assert line.router.poll(100_000), "it tries again by itself"
    assert line.received() == [("gate-3", b"let me in")]


def test_a_name_that_was_given_another_key_has_left(line: Line, join: Callable[..., Client]) -> None:
    join("gate-3")
    line.keyring.revoke("gate-3", "anna")
    line.keyring.allow("gate-3", zmq.curve_keypair()[0], "anna")
    assert notice(line) == {"gate-3"}
    line.keyring.allow("gate-4", zmq.curve_keypair()[0], "anna")
    assert notice(line) == set(), "who joins cuts nobody off"


def test_a_list_that_cannot_be_read_cuts_nobody_off_and_one_that_is_gone_cuts_all_off(
    line: Line, join: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = join("gate-3")

    def unreadable(_: object) -> dict[str, bytes]:
        raise ResourceError("too many open files")

    with monkeypatch.context() as flooded:
        flooded.setattr(Keyring, "allowed", unreadable)
        assert notice(line) == set()
        gate.exchange(line, "gate-3", 5)
    folder = line.keyring.folder / "allowed"
    folder.rename(folder.with_name("elsewhere"))
    assert notice(line) == {"gate-3"}


def test_a_plain_socket_of_the_same_context_needs_no_key_and_nobody_is_known_there(
    line: Line, join: Callable[..., Client], runtime_dir: Path
) -> None:
    gate = join("gate-3")
    key = line.keyring.allowed()["gate-3"]
    with line.context.socket(zmq.ROUTER) as plain, zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        plain.linger = dealer.linger = 0
        plain.bind(f"ipc://{runtime_dir}/channel")
        port = plain.bind_to_random_port("tcp://127.0.0.1")
        dealer.connect(f"ipc://{runtime_dir}/channel")
        dealer.send(b"hello")
        assert plain.poll(100_000)
        frames = plain.recv_multipart(copy=False)
        assert (frames[-1].bytes, line.doorman.sender(plain, frames[-1])) == (b"hello", None)
        # On a plain socket anyone may say that he is anyone.
        with sockets.create_connection(("127.0.0.1", port), timeout=100) as raw:
            said = metadata(Socket_Type=b"DEALER", Identity=b"", User_Id=key)
            raw.sendall(greeting(b"NULL") + command(b"READY", said))
            answer = b""
            while b"READY" not in answer:
                answer += raw.recv(4096)
            raw.sendall(b"\x00\x04mine")
            assert plain.poll(100_000)
            frames = plain.recv_multipart(copy=False)
            assert (frames[-1].bytes, frames[-1].get("User-Id")) == (b"mine", key.decode())
            assert line.doorman.sender(plain, frames[-1]) is None
    gate.exchange(line, "gate-3", 5)


def test_without_a_doorman_nobody_comes_in(line: Line, join: Callable[..., Client]) -> None:
    with line.context.socket(zmq.REQ) as last:
        last.connect("inproc://zeromq.zap.01")
        last.send(b"")
        line.doorman._thread.join()
    gate = join("gate-3")
    gate.dealer.send(b"let me in")
    gate.wait_until_refused()
    assert line.received() == []


def test_a_doorman_that_leaves_closes_the_doors(tmp_path: Path) -> None:
    line = Line(tmp_path / "state")
    line.close()
    assert line.router.closed
    assert line.pub.closed
    with zmq.Context() as context, pytest.raises(KeysError, match="no keys yet"):
        Doorman(context, Keyring(tmp_path / "other"))


def test_strangers_do_not_fill_the_log(
    line: Line, join: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, object]] = []

    class Log:
        def warning(self, event: str, **fields: object) -> None:
            said.append({"event": event} | fields)

    monkeypatch.setattr(line.doorman, "_log", Log())
    stranger = join("other", allow=False)
    stranger.wait_until_refused()
    wait_until(lambda: line.doorman._refused > 3)
    assert said
    assert len(said) < line.doorman._refused
    assert said[0]["event"] == "client_refused"
    assert said[0]["address"] == "127.0.0.1"


def test_a_port_that_is_taken_is_not_waited_for_for_ever(line: Line) -> None:
    with line.context.socket(zmq.PUB) as other, pytest.raises(zmq.ZMQError, match="in use"):
        bind_again(other, line.endpoints[zmq.PUB], patience_s=0.05)
