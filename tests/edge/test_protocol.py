"""A client in another language, written after docs/protocol.md alone, on a real line; and the document itself."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from channel_helpers import LEAD_NS, beat, verdict

from edge.keys import Keyring, make_pair
from edge.messages import (
    Ack,
    Clock,
    Heartbeat,
    Hello,
    Message,
    Refusal,
    Verdict,
    View,
    Welcome,
    decode,
    encode,
    field_names,
)
from edge.paths import channel_endpoint
from edge.verdict import Decision, GateState, Reason
from tests.support import RunningLine, calibrate_marker, journal_verdicts, marker_recipe, wait_until

DOCS = Path(__file__).parents[2] / "docs"
CLIENT = DOCS / "clients" / "verdicts.mjs"
PACKAGES = ("zeromq@6.5", "@msgpack/msgpack@3.1")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client as a reader of the docs would try it: copied somewhere, its packages installed beside it."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs Node.js and npm (Debian: apt-get install nodejs npm)")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {' '.join(PACKAGES)}: {done.stderr[-500:]}")
    return Path(shutil.copy(CLIENT, folder))


class Node:
    """The client in a process of its own, and what it prints."""

    def __init__(self, client: Path, *arguments: object, **environment: str) -> None:
        self.popen = subprocess.Popen(
            ["node", str(client), *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.events: list[dict[str, Any]] = []
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            if line.endswith("\n"):  # one that was killed may leave half a line
                self._said.put(line)

    def hear(self) -> list[dict[str, Any]]:
        """All events so far."""
        while not self._said.empty():
            self.events.append(json.loads(self._said.get()))
        return self.events

    @property
    def seqs(self) -> list[int]:
        return [e["seq"] for e in self.hear() if e["event"] == "verdict"]

    def heard(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.hear() if e["event"] == kind]

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self._reader.join()
        if self.popen.stdout:
            self.popen.stdout.close()


@pytest.fixture
def nodes(client: Path) -> Iterator[Any]:
    opened: list[Node] = []

    def start(*arguments: object, **environment: str) -> Node:
        opened.append(Node(client, *arguments, **environment))
        return opened[-1]

    yield start
    for node in opened:
        node.close()


@pytest.mark.line
def test_it_gets_each_verdict_once_whatever_is_killed(nodes: Any, tmp_path: Path, runtime_dir: Path) -> None:
    storm = "supervision = { restarts = 1000, window_s = 60 }"
    recipe = marker_recipe(tmp_path, parts=None, rate_hz=100, extra=storm)
    calibrate_marker(recipe, tmp_path / "state")
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line:
        endpoint = channel_endpoint(runtime_dir / line.name)
        node = nodes(endpoint)
        wait_until(lambda: len(node.seqs) > 30)
        first = node.heard("verdict")[0]
        assert first["seq"] == node.seqs[0]
        assert node.heard("heartbeat")
        for name in ("channel", "gate"):
            pid, before = line.children()[name], len(node.seqs)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda b=before: len(node.seqs) > b + 50)
        node.close()
        last = node.heard("verdict")[-1]
        again = nodes(endpoint, last["epoch"], last["seq"])
        wait_until(lambda: len(again.seqs) > 300)  # more than its credit
        whole = nodes(endpoint, last["epoch"], 0)
        wait_until(lambda: len(whole.seqs) > last["seq"])
        assert line.stop() == 0
        journaled = [v.seq for v in journal_verdicts(tmp_path / "state")]
        wait_until(lambda: again.seqs[-1:] == whole.seqs[-1:] == journaled[-1:])
        wait_until(lambda: again.heard("silence"))
    assert [*node.seqs, *again.seqs] == list(range(first["seq"], journaled[-1] + 1))
    assert whole.seqs == journaled
    assert not again.heard("gap")
    assert not again.heard("refused")
    by_seq = {e["seq"]: e for e in whole.heard("verdict")}
    for kept in journal_verdicts(tmp_path / "state")[:50]:
        assert by_seq[kept.seq]["decision"] == kept.decision.value
        assert int(by_seq[kept.seq]["decided_utc_ns"]) == kept.decided_utc_ns


@pytest.mark.line
def test_it_hears_over_curve_only_with_an_allowed_key(nodes: Any, tmp_path: Path, runtime_dir: Path) -> None:
    port = free_port()
    recipe = marker_recipe(tmp_path, parts=None, extra=f'outputs = {{ channel = ["tcp://127.0.0.1:{port}"] }}')
    calibrate_marker(recipe, tmp_path / "state")
    keyring, pair = Keyring(tmp_path / "state"), make_pair(tmp_path / "clients", "node")
    keys = {
        "MASKLINE_LINE_KEY": keyring.make("test").public.decode(),
        "MASKLINE_PUBLIC_KEY": pair.public.decode(),
        "MASKLINE_SECRET_KEY": pair.secret.decode(),
    }
    with RunningLine(recipe, tmp_path / "state", runtime_dir) as line:
        node = nodes(f"tcp://127.0.0.1:{port}", **keys)
        near = nodes(channel_endpoint(runtime_dir / line.name))
        wait_until(lambda: near.seqs)
        assert {e["event"] for e in node.hear()} <= {"silence"}
        keyring.allow("node", pair.public, "test")
        wait_until(lambda: len(node.seqs) > 3 and node.heard("heartbeat"))
        keyring.revoke("node", "test")
        wait_until(lambda: node.hear()[-1]["event"] == "silence")


class PlayedLine:
    """A line's channel as a test plays it: answers what comes, with a clock of its own, and says what it is told to."""

    def __init__(self, endpoint: str) -> None:
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.bind(endpoint)
        self.name, self.lead_ns, self.beat_lead_ns, self.beats = "test", LEAD_NS, LEAD_NS, True
        self.peers: set[bytes] = set()
        self.hellos = 0
        self._next_beat = 0.0

    def turn(self) -> bool:
        """Answer what has come; always False, so that a wait can go through it."""
        while self.router.poll(0):
            peer, data = self.router.recv_multipart()
            message = decode(data, Hello, Ack)
            self.peers.add(peer)
            if isinstance(message, Hello):
                self.hellos += 1
                self.say(Welcome(self.name, "e1", 0, 1, 250, "b"), to=peer)
            else:
                self.say(Clock(message.sent_ns, time.monotonic_ns() + self.lead_ns, "b"), to=peer)
        if self.beats and time.monotonic() > self._next_beat:
            self._next_beat = time.monotonic() + 0.1
            self.say(beat(0, time.monotonic_ns() + self.beat_lead_ns))
        return False

    def say(self, *messages: Message | bytes, to: bytes | None = None) -> None:
        for message in messages:
            for peer in self.peers if to is None else (to,):
                self.router.send_multipart([peer, message if isinstance(message, bytes) else encode(message)])

    def until(self, condition: Callable[[], object]) -> None:
        wait_until(lambda: self.turn() or condition())


@pytest.fixture
def played(runtime_dir: Path) -> Iterator[PlayedLine]:
    line = PlayedLine(f"ipc://{runtime_dir}/played")
    yield line
    line.context.destroy(linger=0)


GARBAGE = (
    *(b"", b"garbage", b"\xc1", b"\xc0", b"\x91\x01", b"\x91" * 3000),
    encode(verdict(1)).replace(b"\xa1v\x01", b"\xa1v\x02"),
    *map(msgpack.packb, ({"v": 1, "type": "welcome"}, {"v": 1, "type": "constructor"}, {"v": 1}, 7)),
    msgpack.packb({"v": 1, "type": "verdict", "epoch": "e1", "seq": 1.5}),
    msgpack.packb({"v": 1, "type": "heartbeat", "epoch": "e1", "at_ns": "now", "boot_id": "b"}),
)


def test_it_drops_what_is_no_message_of_its_version_and_takes_it_for_no_sign_of_life(
    nodes: Any, played: PlayedLine, runtime_dir: Path
) -> None:
    node = nodes(f"ipc://{runtime_dir}/played", "e1", 0)
    played.until(lambda: node.heard("heartbeat"))
    played.say(*GARBAGE, encode(verdict(1)))
    played.until(lambda: node.seqs == [1])
    played.beats, silences = False, len(node.heard("silence"))

    def silent_all_the_same() -> bool:
        played.say(*GARBAGE)
        return len(node.heard("silence")) > silences

    played.until(silent_all_the_same)
    assert node.popen.poll() is None
    assert played.hellos == 1


@pytest.mark.parametrize("who", ["its box was suspended", "the heartbeats are ahead"])
def test_a_clock_that_jumped_hides_no_silence(nodes: Any, played: PlayedLine, runtime_dir: Path, who: str) -> None:
    """A suspended box's monotonic clock stands still: the line's has gained ten minutes on it then."""
    node = nodes(f"ipc://{runtime_dir}/played", "e1", 0)
    played.until(lambda: node.heard("heartbeat"))
    played.beat_lead_ns += 600_000_000_000
    if who == "its box was suspended":
        played.lead_ns = played.beat_lead_ns
    before = len(node.heard("heartbeat"))
    played.until(lambda: len(node.heard("heartbeat")) > before + 10)
    played.beats, silences = False, len(node.heard("silence"))
    played.until(lambda: len(node.heard("silence")) > silences)


def test_it_listens_to_one_line_only(nodes: Any, played: PlayedLine, runtime_dir: Path) -> None:
    endpoint = f"ipc://{runtime_dir}/played"
    node, other = nodes(endpoint, "e1", 0), nodes(endpoint, "e1", 0, MASKLINE_LINE="press")
    played.until(lambda: node.heard("heartbeat") and other.heard("refused"))
    assert other.heard("refused")[0]["why"] == "this is the line test, not press"
    played.name = "press"
    played.say(Refusal("say hello first"))
    played.until(lambda: node.heard("refused") and other.heard("heartbeat"))
    played.say(verdict(1))
    played.until(lambda: other.seqs == [1])
    played.name, before = "test", len(node.heard("heartbeat"))
    played.until(lambda: len(node.heard("heartbeat")) > before)
    assert not node.seqs, "it was another line's"


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_client_is_short() -> None:
    assert len(CLIENT.read_text().splitlines()) < 100


def documented(heading: str) -> dict[str, str]:
    """Field -> type, from the table under a heading of the protocol."""
    text = (DOCS / "protocol.md").read_text()
    section = text.split(f"### `{heading}`", 1)[1].split("\n#", 1)[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    return {name.strip().strip("`"): kind.strip() for name, kind in rows}


def msgpack_type(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return f"{msgpack_type(arguments[0])} or nil"
    origin = typing.get_origin(hint)
    if origin is list:
        return f"array of {msgpack_type(arguments[0])}"
    if origin is dict:
        return f"map of {msgpack_type(arguments[1])}"
    names = {str: "str", int: "int", bool: "bool", float: "float", View: "view"}
    return names.get(hint, "str")


@pytest.mark.parametrize(
    ("heading", "cls"),
    [("verdict", Verdict), ("view", View), ("heartbeat", Heartbeat), ("hello", Hello), ("ack", Ack),
     ("welcome", Welcome), ("clock", Clock), ("refused", Refusal)],
)  # fmt: skip
def test_every_field_is_documented_with_its_type(heading: str, cls: type) -> None:
    hints = typing.get_type_hints(cls)
    assert documented(heading) == {name: msgpack_type(hints[name]) for name in field_names(cls)}


@pytest.mark.parametrize("words", [Decision, Reason, GateState])
def test_every_word_is_documented(words: type[Decision | Reason | GateState]) -> None:
    text = (DOCS / "protocol.md").read_text()
    for word in words:
        assert f"`{word.value}`" in text
