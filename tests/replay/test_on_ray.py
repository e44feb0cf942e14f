"""The same job on a Ray cluster of this box alone: two replays at once, one of whose processes is killed on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from edge import __version__
from edge.replay.fleet import CORES
from edge.replay.isolated import Isolated
from edge.replay.on_ray import ClusterError, OnRay
from edge.testing import wait_until
from tests.replay.fleet_recordings import Fleet, descendants, record_fleet, replay_work
from tests.replay.fleet_work import refusals, replay_on_ray

pytestmark = pytest.mark.line

AT_ONCE = 2
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5eed" * 16}


class Cluster:
    """A cluster of one node on loopback."""

    def __init__(self, address: str, process: subprocess.Popen[bytes]) -> None:
        self.address, self.process = address, process

    def replaying(self) -> list[int]:
        """The processes of the cluster in which a replay's line is up."""
        busy = []
        for pid, command in descendants(self.process.pid).items():
            if command.startswith("ray::") and any(" edge judge" in c for c in descendants(pid).values()):
                busy.append(pid)
        return busy


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _ENVIRONMENT.items():
            patch.setenv(name, value)
        pytest.importorskip("ray", reason="needs Ray: pip install 'maskline[ray]'")  # it looks at them when imported
        yield


@pytest.fixture(scope="module")
def cluster(_environment: None) -> Iterator[Cluster]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        command = f"start --head --block --port={port} --node-ip-address=127.0.0.1 --num-cpus={AT_ONCE * CORES}"
        limits = f"--include-dashboard=false --object-store-memory={80 << 20} --temp-dir={folder}"
        log = Path(folder) / "log"
        with log.open("wb") as out:
            ray = [sys.executable, "-m", "ray.scripts.scripts"]
            process = subprocess.Popen([*ray, *command.split(), *limits.split()], stdout=out, stderr=out)
        try:
            wait_until(lambda: process.poll() is not None or b"Ray runtime started" in log.read_bytes())
            assert process.poll() is None, log.read_text()
            yield Cluster(f"127.0.0.1:{port}", process)
        finally:
            below = descendants(process.pid)
            process.terminate()
            process.wait(100)
            for pid in below:
                _kill(pid)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return record_fleet(tmp_path_factory.mktemp("fleet"))


def test_a_cluster_says_what_this_box_says_though_a_worker_is_killed(cluster: Cluster, fleet: Fleet) -> None:
    driver = Isolated(partial(replay_on_ray, fleet.recordings, replay_work(), cluster.address))  # Ray leaves sockets
    killed: list[int] = []
    killer = threading.Thread(target=_kill_one, args=(cluster, killed))
    killer.start()
    try:
        rows = driver.answer()
    finally:
        killer.join()
    assert killed
    assert rows == fleet.serial
    assert sorted(r.tries for r in rows) == [1] * (len(rows) - 1) + [2]
    wait_until(lambda: not cluster.replaying())


def test_a_cluster_that_would_answer_otherwise_is_refused(cluster: Cluster) -> None:
    another_maskline, another_ray, too_small = Isolated(partial(refusals, cluster.address)).answer()
    assert f"it has maskline {__version__}, and this is 99.0" in another_maskline
    assert "Version mismatch" in another_ray
    assert "with the same Ray and Python (here: Ray 1.0" in another_ray
    assert "needs 1000 cores" in too_small


def test_an_address_where_nothing_listens_is_said_at_once() -> None:
    with pytest.raises(ClusterError, match="nothing answers there"):
        OnRay(replay_work(), "127.0.0.1:1")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"pip install 'maskline\[ray\]'"):
        OnRay(replay_work(), "auto")


def _kill_one(cluster: Cluster, killed: list[int]) -> None:
    wait_until(lambda: bool(cluster.replaying()))
    killed.append(cluster.replaying()[0])
    os.kill(killed[0], signal.SIGKILL)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
