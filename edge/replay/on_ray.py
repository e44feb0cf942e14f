"""Replays on a Ray cluster: a pool as `edge.replay.fleet.ThisBox` is one, and nothing more.

Every node must see the recordings, and whatever their recipes name, under the same paths: shared storage, for a file of
gigabytes that is read once has no place in Ray's memory. What travels are the options and one row per recording. Within
a task a replay runs as it does on one box, in a process of its own, so the answers are the same.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from edge import __version__
from edge.errors import MasklineError
from edge.replay.fleet import CORES, Lost, Row, Work
from edge.replay.isolated import Isolated, LostError

__all__ = ["ClusterError", "OnRay"]

_CONNECT_S = 5.0
_PROBE_S = 60.0


class ClusterError(MasklineError):
    """A Ray cluster that cannot be reached, or cannot do this."""


class OnRay:
    """A pool of the processes of a Ray cluster."""

    def __init__(self, work: Work, address: str, at_once: int | None = None) -> None:
        """Connects. `address`: HOST:PORT of its head, or `auto` for the cluster that this box belongs to. `at_once`:
        how many; absent: as many as the cluster has cores for. Raises ClusterError."""
        self._ray = _connect(address)
        try:
            self._check()
        except BaseException:
            self.close()
            raise
        self.at_once = at_once or sys.maxsize
        self._work = work
        # Who is tried again, and how often, is decided in one place for every pool: not by Ray.
        self._replay = self._ray.remote(num_cpus=CORES, max_retries=0)(_replay)
        self._running: dict[Any, Path] = {}

    def start(self, recording: Path) -> None:
        self._running[self._replay.remote(self._work, recording)] = recording

    def wait(self) -> tuple[Path, Row | Lost]:
        (ended, *_), _ = self._ray.wait(list(self._running), num_returns=1)
        recording = self._running.pop(ended)
        try:
            answer: Row | Lost = self._ray.get(ended)
        except self._ray.exceptions.RayError as error:
            return recording, Lost(_in_words(error))
        return recording, answer

    def close(self) -> None:
        self._ray.shutdown()  # the cluster ends the tasks of a driver that leaves, and the replays die with them

    def _check(self) -> None:
        """Raise ClusterError where no node has the cores, or one has another maskline."""
        nodes = [n for n in self._ray.nodes() if n["Alive"]]
        cores = max((n["Resources"].get("CPU", 0) for n in nodes), default=0)
        if cores < CORES:
            raise ClusterError(
                f"a replay needs {CORES} cores, and the largest node of this cluster offers {cores:g}; start one with "
                f"`ray start --num-cpus={CORES}` or more"
            )
        for node, version in zip(nodes, self._versions(nodes), strict=True):
            if version != __version__:
                raise ClusterError(
                    f"node {node['NodeManagerHostname']}: it has {f'maskline {version}' if version else 'no maskline'},"
                    f" and this is {__version__}: the answers would not be the same; install maskline=={__version__} "
                    "in the environment of every node"
                )

    def _versions(self, nodes: list[Any]) -> list[str]:
        """Of maskline, on each node; empty where there is none."""

        def version() -> str:  # within a function, so that it travels whole: a node may have nothing of ours
            try:
                import edge
            except ImportError:
                return ""
            return str(getattr(edge, "__version__", ""))

        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = [
            self._ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False))(
                version
            ).remote()
            for n in nodes
        ]
        try:
            found: list[str] = self._ray.get(asked, timeout=_PROBE_S)
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"the cluster does not answer: {_in_words(error)}") from error
        return found


def _connect(address: str) -> ModuleType:
    try:
        ray: ModuleType = import_module("ray")
    except ImportError as error:
        raise ClusterError("--ray needs Ray: pip install 'maskline[ray]'") from error
    _knock(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:
        here = f"Ray {ray.__version__}, Python {sys.version.split()[0]}"
        raise ClusterError(
            f"--ray {address}: cannot join this cluster: {' '.join(str(error).split())}. This box must be a node of "
            f"it, with the same Ray and Python (here: {here}); where it wants a token, set RAY_AUTH_MODE=token, and "
            "put the token into RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from error
    return ray


def _knock(address: str) -> None:
    """Raise ClusterError where nothing listens: Ray itself would try for minutes, and then end the process."""
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"--ray {address}: nothing answers there ({error}); `ray status` on a node says where the head is"
        ) from error


def _replay(work: Work, recording: Path) -> Row | Lost:
    """The task, in a process of the cluster."""
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it, and a replay on one box would not see it
    try:
        answer: Row | Lost = Isolated(partial(work, recording)).answer()
    except LostError as error:
        return Lost(str(error))
    return answer


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000]
