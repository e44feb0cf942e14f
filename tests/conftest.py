"""Hygiene for every test: folders of its own, and nothing that outlives it.

A process or a socket that a test leaves behind fails that test. Warnings are errors (pyproject.toml), so what Python
itself notices, an unclosed file or a child never waited for, fails too.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

_PR_SET_CHILD_SUBREAPER = 36
_GRACE_S = 3.0
_NEED_TRAIN = ("engines", "parity")
"""The folders whose tests may need the extra `train`; elsewhere a missing package of it is an error."""
_KEPT_FOR_THE_SESSION = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


def pytest_configure() -> None:
    """Orphans of a killed supervisor become our children instead of init's: so they can be seen. And no test sends
    OpenVINO's usage statistics: without this module its import does not try. No test is timed. A shell has what it
    starts in the background ignore Ctrl-C, which tests send to lines."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    hypothesis.settings.register_profile("maskline", deadline=None)
    hypothesis.settings.load_profile("maskline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole lines first: a worker that began with one of them at the end would keep the others waiting."""
    items.sort(key=lambda item: item.get_closest_marker("line") is None)


class _Module(pytest.Module):
    """A test module that is skipped, and says why, where the extra `train` is not installed."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return list(super().collect())
        except pytest.Collector.CollectError as error:
            missing = re.search(r"No module named '(torch|onnx|safetensors)'", str(error))
            if missing and self.path.parent.name in _NEED_TRAIN:
                pytest.skip(f"needs {missing[1]}: pip install 'maskline[train]'", allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return _Module.from_parent(parent, path=module_path)


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A folder of this test alone, with a path short enough for sockets (pytest's own folders are too deep)."""
    folder = Path(tempfile.mkdtemp(prefix="ml-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the runtime, the state or the overrides of whoever runs it. Compiled networks are kept
    from test to test: they answer the same to the bit. Tests on real images need MASKLINE_TEST_DATA."""
    for name in [n for n in os.environ if n.startswith("MASKLINE_") and n != "MASKLINE_TEST_DATA"]:
        monkeypatch.delenv(name)
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASKLINE_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("MASKLINE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MASKLINE_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """A command that a test calls in this process sets up logging for all of it."""
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """After a test no process and no socket of its own may be alive; what is, is ended here, and the test fails."""
    children, sockets = _children(), _sockets()
    yield
    leaked = _wait_for_none(lambda: _children() - children)
    names = {pid: _command(pid) for pid in leaked}
    for pid in leaked:
        _end(pid)
    open_sockets = _sockets() - sockets
    if open_sockets:
        gc.collect()
        open_sockets = _wait_for_none(lambda: _sockets() - sockets)
    assert not names, f"the test left processes behind: {names}"
    assert not open_sockets, f"the test left sockets open: {sorted(open_sockets)}"


def _wait_for_none(leaks: object) -> set[object]:
    """What `leaks()` still finds after a grace: what was just killed needs a moment to be gone."""
    assert callable(leaks)
    give_up = time.monotonic() + _GRACE_S
    while (found := leaks()) and time.monotonic() < give_up:
        time.sleep(0.02)
    return set(found)


def _children() -> set[int]:
    """Our children that run, whoever started them. Ended ones are left for whoever may ask for their exit code."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:  # the thread ended
            continue
        found.update(pid for pid in map(int, pids) if not _is_over(pid))
    return found


def _is_over(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z" or any(name in _command(pid) for name in _KEPT_FOR_THE_SESSION)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _sockets() -> set[str]:
    """The sockets that this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found
