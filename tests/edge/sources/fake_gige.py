"""Aravis' simulated GigE Vision camera on 127.0.0.1, in a process of its own: what arv-fake-gv-camera-0.8 runs, without
the viewer that Debian packs beside it.

`python fake_gige.py LOST_PERCENT [GENICAM_XML]` says "ready" when it answers. A line "ADDRESS VALUE" on its standard
input writes a register of the camera; the end of it ends the camera. `python fake_gige.py genicam` prints the
description of its features, as Aravis ships it.
"""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ADDRESS = "127.0.0.1"
XML_URL = 0x200
"""The register with the place of the description (GigE Vision's bootstrap registers)."""
LOCK = Path(tempfile.gettempdir()) / "maskline-fake-gige.lock"


def main() -> None:
    import gi

    gi.require_version("Aravis", "0.8")
    from gi.repository import Aravis

    if sys.argv[1] == "genicam":
        sys.stdout.write(shipped_genicam(Aravis.FakeCamera.new("GV01")))
        return
    fake = Aravis.GvFakeCamera.new_full(ADDRESS, "GV01", sys.argv[2] if len(sys.argv) > 2 else None)
    if not fake.is_running():
        sys.exit("the camera does not run: is its port (UDP 3956) taken?")
    fake.set_property("gvsp-lost-ratio", float(sys.argv[1]) / 100)
    say("ready")
    for line in sys.stdin:
        address, value = line.split()
        fake.get_fake_camera().write_register(int(address, 0), int(value, 0))
        say("written")


def shipped_genicam(camera: Any) -> str:
    """Read from the camera's memory: PyGObject takes Aravis' own text of it for one that ends with a zero byte."""

    def read(address: int, nbytes: int) -> str:
        words = (camera.read_register(address + at)[1] for at in range(0, nbytes, 4))
        return b"".join(word.to_bytes(4, "big") for word in words)[:nbytes].decode()

    url = read(XML_URL, 512).rstrip("\0")  # "Local:NAME;ADDRESS;BYTES", in hexadecimal
    return read(*(int(number, 16) for number in url.split(";")[1:])).rstrip("\0")


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


class FakeCamera:
    """The process, to be killed and started again."""

    def __init__(self, lost_percent: float = 0) -> None:
        self._command = [sys.executable, __file__, str(lost_percent)]
        self.start()

    def describe(self, genicam: Path) -> None:
        """From the next start on, these are its features."""
        self._command = [*self._command[:3], str(genicam)]

    @staticmethod
    def genicam() -> str:
        """The features that it has without another description."""
        return subprocess.run([sys.executable, __file__, "genicam"], check=True, capture_output=True, text=True).stdout

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._hear("ready")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def write_register(self, address: int, value: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{address} {value}\n")
        self._hear("written")

    def _hear(self, word: str) -> None:
        assert self.process.stdout is not None
        heard = self.process.stdout.readline().strip()
        assert heard == word, f"the simulated camera said {heard!r}, not {word!r}"


@contextlib.contextmanager
def fake_camera(**options: Any) -> Iterator[FakeCamera]:
    """One on this machine at a time: they share a port."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        camera = FakeCamera(**options)
        try:
            yield camera
        finally:
            camera.kill()


if __name__ == "__main__":
    main()
