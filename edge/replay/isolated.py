"""A call in a process of its own, so that whatever becomes of it, the caller goes on.

A replay takes over its process: it starts the processes of a line, handles signals, sets the environment and the logs.
Each one therefore gets a Python of its own, and a folder that is taken away after it, whoever killed it: its temporary
files, the line's sockets and state lie there. The process dies with its parent, and the line with the process.

`python -m edge.replay.isolated PARENT_PID` is that process; the call and its answer are files in its folder.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.parent import die_with_parent

__all__ = ["Isolated", "LostError"]

POLL_S = 0.05
_GONE_S = 5.0
"""How long what a killed process leaves behind may take to be gone."""
_SAID_BYTES = 4000
"""Of what it wrote to standard error, this much of the end is kept."""


class LostError(Exception):
    """The process ended without an answer. The message says how."""


class Isolated:
    """A call that runs in a process of its own. To be made and awaited by one thread: it dies with that one."""

    def __init__(self, call: Callable[[], Any]) -> None:
        """Starts it. `call` can be pickled, and its answer too."""
        self.folder = Path(tempfile.mkdtemp(prefix="ml-"))  # sockets lie in it: their paths must be short
        try:
            (self.folder / "call").write_bytes(pickle.dumps(call))
            with (self.folder / "said").open("wb") as said:
                self._popen = subprocess.Popen(
                    [sys.executable, "-m", "edge.replay.isolated", str(os.getpid())],
                    cwd=self.folder,  # `python -m edge` would take an `edge` that lies in the user's current folder
                    env=os.environ | {"TMPDIR": str(self.folder)},
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,  # a terminal's Ctrl-C is for the caller, who ends it
                )
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    @property
    def pid(self) -> int:
        return self._popen.pid

    def ended(self) -> bool:
        """Whether there is an answer, or will be none."""
        return self._popen.poll() is not None

    def answer(self) -> Any:
        """Wait for the answer; nothing is left of the process then. Raises LostError."""
        try:
            while not self.ended():
                time.sleep(POLL_S)
            code, answer = self._popen.returncode, self.folder / "answer"
            if code == 0 and answer.exists():
                return pickle.loads(answer.read_bytes())  # noqa: S301 - our own process wrote it
            said = (self.folder / "said").read_bytes()[-_SAID_BYTES:].decode("utf-8", "replace").strip()
            raise LostError(_ending(code) + (f"; it said: {said}" if said else ""))
        finally:
            self.end()

    def end(self) -> None:
        """Kill it if it runs, and take its folder away. The processes of its line die with it."""
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()
        give_up = time.monotonic() + _GONE_S
        while self.folder.exists() and time.monotonic() < give_up:
            shutil.rmtree(self.folder, ignore_errors=True)  # one that dies just now may still write a file
            if self.folder.exists():
                time.sleep(POLL_S)


def _ending(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"its process was killed ({name})"


def _main() -> None:
    die_with_parent(int(sys.argv[1]))
    call = pickle.loads(Path("call").read_bytes())  # noqa: S301 - our own parent wrote it
    Path("answer").write_bytes(pickle.dumps(call()))


if __name__ == "__main__":
    _main()
