"""Where a line keeps its sockets (gone at reboot) and its state (journal, calibration, pictures), and how files get
there whole."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from edge.errors import ResourceError

__all__ = [
    "calibration_path",
    "channel_endpoint",
    "journal_path",
    "make_private",
    "runtime_dir",
    "state_dir",
    "verdict_endpoint",
    "write_durably",
]

_LONGEST_SOCKET_PATH = 107  # sun_path, less its final zero
_LONGEST_SOCKET_NAME = len("/capture.") + 31


def runtime_dir(line: str) -> Path:
    """The folder of a line's sockets: under $MASKLINE_RUNTIME_DIR, /run/maskline when that is there for us to use,
    $XDG_RUNTIME_DIR/maskline, or a folder of this user under the temporary directory."""
    if explicit := os.environ.get("MASKLINE_RUNTIME_DIR"):
        base = Path(explicit)
    elif os.access("/run/maskline", os.R_OK | os.X_OK):
        base = Path("/run/maskline")
    elif user := os.environ.get("XDG_RUNTIME_DIR"):
        base = Path(user) / "maskline"
    else:
        base = make_private(Path(tempfile.gettempdir()) / f"maskline-{os.getuid()}")  # anyone may have made it
    path = base / line
    if len(str(path)) + _LONGEST_SOCKET_NAME > _LONGEST_SOCKET_PATH:
        raise ResourceError(f"{path}: too long a path for sockets; set MASKLINE_RUNTIME_DIR to a shorter one")
    return path


def state_dir(line: str) -> Path:
    """The folder of a line's state: in $MASKLINE_STATE_DIR, systemd's $STATE_DIRECTORY or ~/.local/state/maskline."""
    base = os.environ.get("MASKLINE_STATE_DIR") or os.environ.get("STATE_DIRECTORY") or "~/.local/state/maskline"
    return Path(base).expanduser().absolute() / line


def verdict_endpoint(folder: Path) -> str:
    """Where the gate publishes for everyone on this machine: a socket in the runtime folder of its line."""
    return f"ipc://{folder}/verdicts"


def channel_endpoint(folder: Path) -> str:
    """Where whoever must not miss a verdict gets them on this machine: a socket in the runtime folder of its line."""
    return f"ipc://{folder}/channel"


def calibration_path(folder: Path, recipe: str = "") -> Path:
    """Where `maskline calibrate` leaves the calibration of a line: for a recipe with a name, one of its own."""
    return folder / (f"calibration.{recipe}.json" if recipe else "calibration.json")


def journal_path(state_dir: Path) -> Path:
    """Where the gate of a line keeps its journal."""
    return state_dir / "journal.sqlite"


def make_private(path: Path) -> Path:
    """Make a folder that only this user may enter. Raises ResourceError when it cannot be, or is somebody else's."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = path.stat()
        if about.st_uid != os.getuid():
            raise ResourceError(
                f"{path}: belongs to user {about.st_uid}, not to us; remove it or choose another folder"
            )
        if stat.S_IMODE(about.st_mode) != 0o700:
            path.chmod(0o700)
    except OSError as error:
        raise ResourceError(f"{path}: cannot make this folder: {error.strerror}") from error
    return path


def write_durably(path: Path, data: bytes) -> None:
    """Writes the whole file or leaves the old one, also through a power cut; everybody may read it. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # who writes need not be who reads: an engineer builds, a service serves
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
