"""The panel of a running actuator: its state for whoever asks, and the few things that a person may tell it.

Files, in folders that only the service's user may enter: whoever may write the state folder may reset, and the audit
trail says who did. The actuator takes a request and leaves an answer; the command waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edge.actuators.latch import actuator_dir
from edge.errors import LineBusyError, MasklineError, ResourceError
from edge.paths import make_private, write_durably

__all__ = ["ActuatorError", "Panel", "Request", "ask", "hold", "read_status", "status_path"]

MAX_BYTES = 1 << 16
FRESH_S = 2.0
"""A state that is older is of an actuator that died or hangs."""
POLL_S = 0.02

Wish = Literal["reset", "test_fire"]


class ActuatorError(MasklineError):
    """The actuator does not run, or will not do what was asked."""


@dataclass(frozen=True)
class Request:
    """What a person wants of an actuator."""

    wish: Wish
    who: str
    why: str
    token: str  # the answer carries it
    utc_ns: int


def status_path(runtime_dir: Path, name: str) -> Path:
    """Where an actuator writes what it is doing."""
    return runtime_dir / f"actuator.{name}.json"


class Panel:
    """The actuator's side."""

    def __init__(self, state_dir: Path, runtime_dir: Path, name: str) -> None:
        """What was asked of an earlier process is forgotten: nobody waits for it any more. Raises ResourceError."""
        self._status = status_path(make_private(runtime_dir), name)
        folder = make_private(actuator_dir(state_dir, name))
        self._request, self._answer = folder / "request.json", folder / "answer.json"
        with contextlib.suppress(FileNotFoundError):
            self._request.unlink()

    def show(self, **fields: Any) -> None:
        """Write what the actuator is doing. A disk that does not take it costs the picture, not the actuator."""
        with contextlib.suppress(OSError):
            temporary = self._status.with_suffix(".new")
            temporary.write_text(json.dumps({"utc_ns": time.time_ns(), "pid": os.getpid(), **fields}))
            os.replace(temporary, self._status)

    def hide(self) -> None:
        """Nothing is shown any more: the actuator ends."""
        with contextlib.suppress(OSError):
            self._status.unlink()

    def take(self) -> Request | None:
        """The request that was left, once; None when there is none, or it is garbled or old."""
        try:
            with self._request.open("rb") as file:
                data = file.read(MAX_BYTES)
            self._request.unlink()
            request = Request(**json.loads(data))
            if abs(time.time_ns() - request.utc_ns) > FRESH_S * 1e9:
                return None
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return request

    def answer(self, request: Request, said: str, refused: bool = False) -> None:
        """Tell whoever asked."""
        with contextlib.suppress(OSError):
            fields = {"token": request.token, "said": said, "refused": refused}
            write_durably(self._answer, json.dumps(fields).encode())


def ask(state_dir: Path, name: str, wish: Wish, who: str, why: str) -> str:
    """Ask a running actuator and return its answer.

    Raises ActuatorError when it refuses or does not answer, ResourceError when the state folder cannot be written.
    """
    folder = actuator_dir(state_dir, name)
    request = Request(wish, who, why, secrets.token_hex(8), time.time_ns())
    try:
        write_durably(folder / "request.json", json.dumps(asdict(request)).encode())
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot ask the actuator: {error.strerror}; has it ever run here, and are you its user?"
        ) from error
    give_up = time.monotonic() + FRESH_S
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            answer = json.loads((folder / "answer.json").read_bytes())
            if answer["token"] == request.token:
                if answer["refused"]:
                    raise ActuatorError(f"{name}: {answer['said']}")
                return str(answer["said"])
        time.sleep(POLL_S)
    with contextlib.suppress(FileNotFoundError):
        (folder / "request.json").unlink()
    raise ActuatorError(f"{name}: no answer within {FRESH_S:.0f} s; the actuator hangs, or reads another state folder")


def read_status(runtime_dir: Path, name: str) -> dict[str, Any] | None:
    """What an actuator is doing; None when it does not run, or hangs."""
    try:
        found = json.loads(status_path(runtime_dir, name).read_bytes())
        fresh = time.time_ns() - found["utc_ns"] < FRESH_S * 1e9 and Path(f"/proc/{found['pid']}").exists()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(found) if fresh else None


def hold(state_dir: Path, name: str) -> int:
    """Hold an actuator: two processes never drive one ejector. The kernel lets go when the process ends.

    Raises LineBusyError when another process has it, ResourceError.
    """
    path = make_private(actuator_dir(state_dir, name)) / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ResourceError(f"{path}: cannot lock the actuator: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise LineBusyError(f"{path}: another process runs the actuator {name}") from error
    return fd
