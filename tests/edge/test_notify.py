"""What systemd hears, on a socket like its own: from the notifier alone, and from `maskline run`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge import notify
from edge.errors import EXIT_CONFIG
from edge.notify import Notifier
from edge.paths import calibration_path
from edge.processes import process_table
from edge.recipes import load_recipe
from tests.support import RunningLine, calibrate_marker, marker_recipe, wait_until


class Systemd:
    """Listens as systemd does. `path` is its NOTIFY_SOCKET; `messages` what came, in order."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.messages: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self._socket.settimeout(0.05)
        self._stop_asked = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop_asked:
            try:
                text = self._socket.recv(4096).decode()
            except TimeoutError:
                continue
            self.messages.append(dict(line.split("=", 1) for line in text.split("\n")))

    def count(self, key: str) -> int:
        return sum(key in message for message in self.messages)

    def last(self, key: str) -> str:
        return next((m[key] for m in reversed(self.messages) if key in m), "")

    def close(self) -> None:
        self._stop_asked = True
        self._thread.join()
        self._socket.close()


@pytest.fixture
def systemd(runtime_dir: Path) -> Iterator[Systemd]:
    listener = Systemd(str(runtime_dir / "notify"))
    yield listener
    listener.close()


@pytest.fixture
def notifier(systemd: Systemd) -> Iterator[Notifier]:
    made = Notifier(systemd.path, watchdog_usec=400_000)
    yield made
    made.close()


def test_words(systemd: Systemd, notifier: Notifier) -> None:
    notifier.ready()
    notifier.watchdog()
    notifier.stopping()
    wait_until(lambda: len(systemd.messages) == 5)
    assert [next(iter(m.items())) for m in systemd.messages] == [
        ("READY", "1"),
        ("STATUS", "every process is up"),
        ("WATCHDOG", "1"),
        ("STOPPING", "1"),
        ("STATUS", "draining: parts in flight get their answer"),
    ]


def test_status_says_whether_the_line_inspects_or_only_answers(systemd: Systemd, notifier: Notifier) -> None:
    notifier.ready()
    notifier.engine(served=False)
    notifier.engine(served=True)
    wait_until(lambda: len(systemd.messages) == 4)
    assert [m["STATUS"] for m in systemd.messages[2:]] == [
        "the engine is being built: parts are UNINSPECTED(not_ready)",
        "the engine was built: every process is up",
    ]


class Clock:
    """A clock that the test moves, and what a notifier says by it (a real socket would be full after ten messages)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.said: list[str] = []
        monkeypatch.setattr(notify, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(Notifier, "_send", lambda _, message: self.said.append(message) or True)


def test_watchdog_is_fed_four_times_per_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, notifier = Clock(monkeypatch), Notifier("", watchdog_usec=400_000)
    for _ in range(200):
        notifier.watchdog()
        clock.now += 0.01  # 2 s in all, 0.1 s between two
    assert 19 <= clock.said.count("WATCHDOG=1") <= 21


def test_watchdog_is_not_fed_while_a_process_hangs(systemd: Systemd, notifier: Notifier) -> None:
    for _ in range(5):
        notifier.watchdog(["detect", "judge"])
    notifier.ready()
    wait_until(lambda: systemd.count("READY") == 1)
    assert systemd.count("WATCHDOG") == 0
    assert systemd.messages[0] == {"STATUS": "hung: detect, judge"}
    notifier.watchdog()
    wait_until(lambda: systemd.count("WATCHDOG") == 1)


def test_status_after_a_hang_says_that_it_is_over(systemd: Systemd, notifier: Notifier) -> None:
    notifier.watchdog(["detect"])
    notifier.watchdog(["detect"])
    notifier.watchdog()
    wait_until(lambda: systemd.count("WATCHDOG") == 1)
    assert [m["STATUS"] for m in systemd.messages if "STATUS" in m] == [
        "hung: detect",
        "every hung process was replaced",
    ]


def test_a_slow_start_is_extended(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, notifier = Clock(monkeypatch), Notifier("")
    for _ in range(100):
        notifier.starting(["detect"])
        clock.now += 0.05  # 5 s in all
    assert 5 <= len(clock.said) <= 6
    assert set(clock.said) == {"STATUS=starting: detect\nEXTEND_TIMEOUT_USEC=30000000"}


def test_without_a_socket_nobody_is_told() -> None:
    notifier = Notifier.from_environment()
    notifier.starting(["gate"])
    notifier.ready()
    notifier.watchdog()
    notifier.stopping()
    notifier.close()


def test_abstract_socket() -> None:
    systemd = Systemd(f"@maskline-test-{os.getpid()}")
    notifier = Notifier(systemd.path)
    notifier.ready()
    wait_until(lambda: systemd.count("READY") == 1)
    notifier.close()
    systemd.close()


@pytest.mark.parametrize(
    ("variables", "fed"),
    [
        ({"WATCHDOG_USEC": "1000000"}, 1),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}, 1),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({}, 0),
    ],
)
def test_the_watchdog_of_another_process_is_not_ours(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], fed: int
) -> None:
    for name, value in {"NOTIFY_SOCKET": systemd.path, **variables}.items():
        monkeypatch.setenv(name, value)
    notifier = Notifier.from_environment()
    notifier.watchdog()
    notifier.ready()
    notifier.close()
    wait_until(lambda: systemd.count("READY") == 1)
    assert systemd.count("WATCHDOG") == fed


@pytest.mark.parametrize("address", ["/nowhere/notify", "vsock:2:1234", "/" + "x" * 200])
def test_a_socket_that_is_not_there_harms_nobody(address: str) -> None:
    notifier = Notifier(address, watchdog_usec=1000)
    notifier.ready()
    notifier.watchdog()
    notifier.stopping()
    notifier.close()


def test_what_systemd_must_hear_is_tried_again(runtime_dir: Path) -> None:
    path = str(runtime_dir / "notify")
    notifier = Notifier(path, watchdog_usec=400_000)
    notifier.ready()
    systemd = Systemd(path)
    notifier.watchdog()
    wait_until(lambda: systemd.count("WATCHDOG") == 1)
    assert systemd.messages[0] == {"READY": "1"}
    notifier.close()
    systemd.close()


def test_a_full_socket_does_not_block(runtime_dir: Path) -> None:
    path = str(runtime_dir / "notify")
    deaf = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    deaf.bind(path)
    notifier = Notifier(path)
    while notifier._send("STATUS=" + "x" * 1000):
        pass
    notifier.ready()
    deaf.setblocking(False)
    heard = received(deaf)
    assert b"READY=1" not in heard
    notifier.watchdog()
    assert received(deaf) == [b"READY=1"]
    notifier.close()
    deaf.close()


def received(listener: socket.socket) -> list[bytes]:
    messages: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(listener.recv(4096))
    return messages


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """As long as this file is there, no engine is ready."""
    (tmp_path / "held").touch()
    return tmp_path / "held"


@pytest.fixture
def line(tmp_path: Path, runtime_dir: Path, systemd: Systemd) -> Iterator[RunningLine]:
    """A line that runs until it is stopped, started as systemd does."""
    recipe = marker_recipe(tmp_path, parts=None, rate_hz=10)
    calibrate_marker(recipe, tmp_path / "state")
    unkillable = tmp_path / "unkillable"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, subprocess, sys, time\n"
        f"while sys.orig_argv[-1] == 'detect' and os.path.exists({str(tmp_path / 'held')!r}):\n"
        "    time.sleep(0.02)\n"
        "kill = subprocess.Popen.kill\n"
        f"subprocess.Popen.kill = lambda self: os.path.exists({str(unkillable)!r}) or kill(self)\n"
    )
    with RunningLine(
        recipe,
        tmp_path / "state",
        runtime_dir,
        NOTIFY_SOCKET=systemd.path,
        WATCHDOG_USEC="400000",
        PYTHONPATH=str(tmp_path / "site"),
    ) as running:
        yield running


@pytest.mark.line
def test_ready_when_every_process_is_up(held: Path, line: RunningLine, systemd: Systemd, tmp_path: Path) -> None:
    table = {p.name for p in process_table(load_recipe(tmp_path / "recipe.toml")) if not p.tries}
    wait_until(lambda: set(line.children()) == table)
    time.sleep(2.0)
    assert systemd.count("READY") == 0
    held.unlink()
    wait_until(lambda: systemd.count("READY") == 1)
    assert set(line.children()) == table
    wait_until(lambda: systemd.count("WATCHDOG") > 3)
    assert systemd.count("STOPPING") == 0
    assert line.stop() == 0
    wait_until(lambda: systemd.count("STOPPING") == 1)
    assert systemd.count("READY") == 1


@pytest.mark.line
def test_a_start_tells_for_whom_it_waits(line: RunningLine, systemd: Systemd) -> None:
    wait_until(lambda: systemd.count("READY") == 1)
    first = next(m for m in systemd.messages if "EXTEND_TIMEOUT_USEC" in m)
    assert "detect" in first["STATUS"]
    assert line.stop() == 0


@pytest.mark.line
def test_a_hung_process_is_replaced_and_the_watchdog_goes_on(line: RunningLine, systemd: Systemd) -> None:
    wait_until(lambda: systemd.count("READY") == 1)
    victim = line.children()["prepare"]
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: line.children().get("prepare", victim) != victim)
    fed = systemd.count("WATCHDOG")
    wait_until(lambda: systemd.count("WATCHDOG") > fed + 3)
    assert line.stop() == 0


@pytest.mark.line
def test_the_watchdog_starves_while_a_hung_process_cannot_be_replaced(
    line: RunningLine, systemd: Systemd, tmp_path: Path
) -> None:
    """As when a driver holds a process in the kernel: SIGKILL does nothing, and only systemd can help."""
    wait_until(lambda: systemd.count("READY") == 1)
    wait_until(lambda: systemd.count("WATCHDOG") > 3)
    victim = line.children()["prepare"]
    (tmp_path / "unkillable").touch()
    os.kill(victim, signal.SIGSTOP)
    wait_until(lambda: "process_hung" in line.log.read_text())
    time.sleep(0.2)  # what was sent before that is counted now
    fed = systemd.count("WATCHDOG")
    time.sleep(1.5)
    assert line.children()["prepare"] == victim
    assert systemd.count("WATCHDOG") == fed
    (tmp_path / "unkillable").unlink()
    wait_until(lambda: systemd.count("WATCHDOG") > fed + 3)
    assert line.children().get("prepare") != victim
    assert line.stop() == 0


def run_once(recipe: Path, state_dir: Path, runtime_dir: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "maskline", "run", str(recipe), "--state-dir", str(state_dir)],
        env=os.environ | {"MASKLINE_RUNTIME_DIR": str(runtime_dir)} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_wrong_recipe_ends_with_78(tmp_path: Path, runtime_dir: Path, systemd: Systemd) -> None:
    recipe = marker_recipe(tmp_path, extra="no_such_field = 1")
    done = run_once(recipe, tmp_path / "state", runtime_dir, NOTIFY_SOCKET=systemd.path)
    assert done.returncode == EXIT_CONFIG, done.stderr
    assert "no_such_field" in done.stderr
    assert systemd.count("READY") == 0


def test_a_broken_calibration_ends_with_78(tmp_path: Path, runtime_dir: Path, systemd: Systemd) -> None:
    recipe = marker_recipe(tmp_path)
    calibration_path(tmp_path).write_text("no calibration")
    done = run_once(recipe, tmp_path, runtime_dir, NOTIFY_SOCKET=systemd.path)
    assert done.returncode == EXIT_CONFIG, done.stderr
    assert "calibration.json" in done.stderr
    assert systemd.count("READY") == 0


def test_the_line_runs_when_systemds_socket_is_gone(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = marker_recipe(tmp_path, parts=3, mode="lossless", deadline_ms=10_000)
    calibrate_marker(recipe, tmp_path / "state")
    done = run_once(
        recipe, tmp_path / "state", runtime_dir, NOTIFY_SOCKET=str(runtime_dir / "gone"), WATCHDOG_USEC="400000"
    )
    assert done.returncode == 0, done.stderr
    assert "systemd_does_not_hear" in done.stderr
