"""The driver `mqtt` against a real mosquitto on loopback and a subscriber of another library's making."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edge.actuators.driver import DriverError, Fault, Status
from edge.actuators.driver_settings import MqttDriver
from edge.actuators.mqtt import Mqtt
from edge.testing import wait_until
from edge.verdict import Decision, GateState
from tests.edge.actuators.broker import Broker, Subscriber
from tests.edge.actuators.driver_helpers import free_port, outcome, verdict

TOPIC = "site/line1/ejector1"


def settings(port: int, **fields: Any) -> MqttDriver:
    quick = {"reconnect_ms": 20, "reconnect_max_ms": 100, "timeout_ms": 2_000}
    return MqttDriver.model_validate(
        {"kind": "mqtt", "host": "127.0.0.1", "port": port, "topic": TOPIC} | quick | fields
    )


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running
    assert not [t for t in threading.enumerate() if t.name == "mqtt"]


def test_each_part_is_a_numbered_message_with_its_verdict(broker: Broker) -> None:
    with Subscriber(broker.port, TOPIC) as line:
        driver = Mqtt(settings(broker.port))
        said = verdict(score=float("nan"), threshold=0.5, seq=9)
        driver.tell(said, outcome(70_000, decision=Decision.REJECT, ejected=True))
        for number in range(1, 40):
            driver.tell(None, outcome(number))
        wait_until(lambda: len(line.of("parts")) >= 40)
        driver.close()
    parts = line.of("parts")
    assert [p["seq"] for p in parts] == list(range(1, 41))
    assert {p["session"] for p in parts} == {line.of("state")[0]["session"]}
    first = parts[0]
    assert (first["lane"], first["part"], first["part_id"], first["id16"]) == ("a", 70_000, None, 4465)
    assert (first["decision"], first["why"], first["ejected"], first["v"]) == ("REJECT", "deadline"[:0], True, 1)
    told = first["verdict"]
    assert (told["line"], told["epoch"], told["seq"], told["decision"]) == ("line1", "e1", 9, "REJECT")
    assert (told["score"], told["threshold"], told["late"], told["simulated"]) == (None, 0.5, False, True)
    assert told["decided_utc_ms"] - told["trigger_utc_ms"] == 20
    assert [p["part"] for p in parts[1:]] == list(range(1, 40))
    assert parts[1]["verdict"] is None
    assert {qos for _, qos, _, _ in line.messages} == {1}


def test_the_birth_is_retained_and_the_state_follows_what_the_actuator_does(broker: Broker) -> None:
    driver = Mqtt(settings(broker.port))
    with Subscriber(broker.port, TOPIC) as line:
        wait_until(lambda: bool(line.of("state")))
        driver.report(Status(GateState.DEGRADED, fault=Fault.AIR, commissioning=True, recipe=3))
        wait_until(lambda: line.of("state")[-1]["gate"] == "DEGRADED")
        state = line.of("state")[-1]
        assert (state["fault"], state["fault_code"], state["commissioning"], state["recipe"]) == ("air", 6, True, 3)
        driver.close()
        wait_until(lambda: not line.of("state")[-1]["online"])
        assert line.of("state")[-1]["why"] == "stopped"
    with Subscriber(broker.port, TOPIC) as late:
        wait_until(lambda: bool(late.messages))
        assert [(topic, retained, p["why"]) for topic, _, retained, p in late.messages] == [("state", True, "stopped")]


def test_the_last_will_says_that_it_died(broker: Broker) -> None:
    program = (
        "import sys; from edge.actuators.driver_settings import MqttDriver; from edge.actuators.mqtt import Mqtt\n"
        f"Mqtt(MqttDriver(kind='mqtt', host='127.0.0.1', port={broker.port}, topic='{TOPIC}')); sys.stdin.read()"
    )
    with Subscriber(broker.port, TOPIC) as line:
        dies = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert dies.stdin
        try:
            wait_until(lambda: bool(line.of("state")))
            birth = line.of("state")[0]
            assert (birth["online"], birth["birth"]) == (True, 1)
            os.kill(dies.pid, signal.SIGKILL)
            wait_until(lambda: len(line.of("state")) == 2)
        finally:
            dies.kill()
            dies.wait(100)
            dies.stdin.close()
    assert line.of("state")[1] == {
        "v": 1,
        "session": birth["session"],
        "birth": 1,
        "online": False,
        "why": "lost",
    }
    assert {qos for _, qos, _, _ in line.messages} == {1}
    with Subscriber(broker.port, TOPIC) as late:
        wait_until(lambda: bool(late.messages))
        assert [(retained, p["why"]) for _, _, retained, p in late.messages] == [(True, "lost")]


def test_a_broker_that_dies_and_comes_back_gets_every_part_in_order(broker: Broker) -> None:
    with Subscriber(broker.port, TOPIC) as line:
        driver = Mqtt(settings(broker.port))
        for last in (30, 60, 90):
            for number in range(last - 29, last + 1):
                driver.tell(None, outcome(number))
                if number == last - 15:
                    wait_until(partial(line.has_part, number))
                    broker.kill()
            broker.start()
            wait_until(partial(line.has_part, last))
        driver.close()
    numbers = [p["part"] for p in line.of("parts")]
    assert list(dict.fromkeys(numbers)) == list(range(1, 91))
    assert numbers == [p["seq"] for p in line.of("parts")]  # again is with the same number
    births = [s["birth"] for s in line.of("state")]
    assert births == sorted(births)
    assert len(set(births)) >= 4


def test_a_broker_that_dies_while_nothing_is_told_gets_a_birth_when_it_is_back(broker: Broker) -> None:
    with Subscriber(broker.port, TOPIC) as line:
        driver = Mqtt(settings(broker.port))
        wait_until(lambda: [s["birth"] for s in line.of("state")] == [1])
        broker.kill()
        broker.start()
        wait_until(lambda: line.of("state")[-1]["birth"] > 1)
        driver.close()


def test_a_connection_that_is_cut_again_and_again_loses_nothing(broker: Broker) -> None:
    with Subscriber(broker.port, TOPIC) as line, _Proxy(broker.port) as proxy:
        driver = Mqtt(settings(proxy.port))
        for number in range(1, 201):
            driver.tell(None, outcome(number))
            if number % 20 == 0:
                proxy.cut()
                wait_until(partial(line.has_part, number - 10))
        wait_until(partial(line.has_part, 200))
        driver.close()
    assert list(dict.fromkeys(p["seq"] for p in line.of("parts"))) == list(range(1, 201))


def test_what_waits_for_a_broker_is_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker:
        broker.kill()
        driver = Mqtt(settings(broker.port, queued_messages=16, reconnect_ms=1_000, reconnect_max_ms=1_000))
        for number in range(1, 51):
            driver.tell(None, outcome(number))
        broker.start()
        with Subscriber(broker.port, TOPIC) as line:
            wait_until(lambda: bool(line.of("parts")) and line.of("parts")[-1]["seq"] == 50)
            driver.close()
            wait_until(lambda: line.of("state")[-1]["why"] == "stopped")
        assert [p["seq"] for p in line.of("parts")] == list(range(35, 51))
        birth, last = line.of("state")[0], line.of("state")[-1]
        assert (birth["dropped"], birth["queued"], birth["parts_seq"]) == (34, 16, 50)
        assert (last["dropped"], last["queued"]) == (34, 0)


def test_a_message_that_was_not_acknowledged_is_sent_again_with_its_number(broker: Broker) -> None:
    """Through a proxy that swallows what the broker says: the broker has the message, and we cannot know."""
    with Subscriber(broker.port, TOPIC) as line, _Proxy(broker.port) as proxy:
        driver = Mqtt(settings(proxy.port))
        wait_until(lambda: bool(line.of("state")))
        proxy.deaf = True
        driver.tell(None, outcome(1))
        wait_until(lambda: len(line.of("parts")) == 1)
        proxy.deaf = False
        wait_until(lambda: len(line.of("parts")) >= 2)
        driver.close()
    first, *again = line.of("parts")
    assert again == [first] * len(again)


def test_state_comes_only_while_the_loop_polls(broker: Broker) -> None:
    with Subscriber(broker.port, TOPIC) as line:
        driver = Mqtt(settings(broker.port, interval_ms=100))
        wait_until(lambda: bool(line.of("state")))
        wait_until(lambda: driver.poll(1) == [] and len(line.of("state")) >= 4)
        assert [s["seq"] for s in line.of("state")] == list(range(1, len(line.of("state")) + 1))
        driver.tell(None, outcome(1))
        wait_until(lambda: len(line.of("parts")) == 1)
        before, hung_until = len(line.of("state")), time.monotonic() + 0.5
        while time.monotonic() < hung_until:  # the connection lives: parts still come
            driver.tell(None, outcome(1))
            wait_until(lambda: len(line.of("parts")) == driver._seq)
        assert len(line.of("state")) <= before + 1
        driver.close()


def test_it_neither_ejects_nor_counts(broker: Broker) -> None:
    driver = Mqtt(settings(broker.port))
    assert not settings(broker.port).ejects
    assert driver.count() is None
    driver.line_ok(True)
    with pytest.raises(DriverError, match="has no ejector"):
        driver.eject(True)
    driver.close()


def test_no_broker_stops_nothing_and_it_ends_at_once() -> None:
    driver = Mqtt(settings(free_port()))
    for number in range(2_000):
        driver.tell(None, outcome(number))
    driver.report(Status(GateState.READY))
    assert driver.poll(0) == []
    driver.close()


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # of the last tries, when the driver ends
def test_a_broker_that_accepts_and_never_answers_costs_no_sockets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        driver = Mqtt(settings(listener.getsockname()[1], timeout_ms=100, keepalive_s=1))
        taken = []
        try:
            while len(taken) < 12:
                taken.append(listener.accept()[0])
            gone = []
            for held in taken[:4]:
                held.settimeout(100)
                while held.recv(4096):
                    pass
                gone.append(held)
            assert len(gone) == 4
        finally:
            driver.close()
            for held in taken:
                held.close()


@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")  # paho, when the handshake fails
def test_tls_and_password(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    key, cert, users = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "users"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(cert)]
    made += ["-days", "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(made, check=True, capture_output=True)
    subprocess.run(["mosquitto_passwd", "-c", "-b", str(users), "line1", "secret"], check=True)
    password = tmp_path / "password"
    password.write_text("secret\n")
    lines = (f"certfile {cert}", f"keyfile {key}", f"password_file {users}", "allow_anonymous false")
    with Broker(tmp_path, *lines) as broker:
        known = {"tls": {"ca_file": cert}, "username": "line1", "password_file": password}
        log = tmp_path / "mosquitto.log"
        for wrong in (known | {"tls": {}}, known | {"tls": None}, known | {"username": "line2"}):
            driver = Mqtt(settings(broker.port, timeout_ms=300, **wrong))
            wait_until(lambda driver=driver: driver._births > 1)  # type: ignore[misc]
            driver.close()
        assert b"as maskline-" not in log.read_bytes()
        driver = Mqtt(settings(broker.port, **known))
        wait_until(lambda: b"as maskline-" in log.read_bytes())
        driver.close()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"password_file": "/nowhere/password"}, "no password in /nowhere/password"),
        ({"tls": {"ca_file": "/nowhere/ca.pem"}}, "tls: .*No such file"),
    ],
)
def test_files_that_cannot_be_read_are_said(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(DriverError, match=said):
        Mqtt(settings(1883, **fields))


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiomqtt", None)
    with pytest.raises(DriverError, match=r"pip install 'maskline\[plc\]'"):
        Mqtt(settings(1883))


@pytest.mark.parametrize("topic", ["", "/line", "line/", "line/+/x", "line/#", "$SYS/x", "a" * 201])
def test_topics_that_cannot_be_published_on_are_refused(topic: str) -> None:
    with pytest.raises(ValueError, match="topic"):
        settings(1883, topic=topic)


class _Proxy:
    """Between a client and the broker, on a port of its own; while `deaf`, nothing of the broker's gets through."""

    def __init__(self, port: int) -> None:
        self._broker = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.deaf = False
        self._open: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def cut(self) -> None:
        """Every connection breaks; new ones are welcome."""
        for held in self._open[1:]:
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            broker = socket.create_connection(("127.0.0.1", self._broker))
            self._open += [client, broker]
            for pair in ((client, broker, False), (broker, client, True)):
                self._threads.append(threading.Thread(target=self._pass, args=pair, daemon=True))
                self._threads[-1].start()

    def _pass(self, source: socket.socket, sink: socket.socket, from_broker: bool) -> None:
        try:
            while data := source.recv(4096):
                if not (from_broker and self.deaf):
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def __enter__(self) -> _Proxy:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(100)
        for held in self._open:
            held.close()
