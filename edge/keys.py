"""Keys: who may listen to a line over TCP. `edge.doorman` is what keeps everyone else out.

Each side has a pair of keys. A client must know the line's public key before it connects; the line lets in the clients
whose public keys lie in its folder `allowed`, and nobody else. Who a client is, its key says. Key files are those of
ZeroMQ's own tools (`zmq.auth`, czmq), so clients in other languages can read them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth
from zmq.utils import z85

from edge.audit import AuditTrail, audit_path, locked
from edge.errors import EXIT_CONFIG, MasklineError, ResourceError
from edge.paths import make_private, write_durably

__all__ = [
    "Keyring",
    "KeysError",
    "Pair",
    "load_pair",
    "load_public_key",
    "make_pair",
    "parse_public_key",
    "require_curve",
]

MAX_KEY_FILE_BYTES = 1 << 14
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")


class KeysError(MasklineError):
    """A key is missing, wrong, taken or readable by others."""

    exit_code = EXIT_CONFIG


@dataclass(frozen=True)
class Pair:
    """A pair of keys, each in Z85: 40 printable characters."""

    public: bytes
    secret: bytes = field(repr=False)


def make_pair(folder: Path, name: str) -> Pair:
    """Make the files NAME.key (0644, to give away) and NAME.key_secret (0600) in a folder of this user, durably.

    Raises KeysError for files that are there already: a pair is never overwritten, all that trust it would be lost.
    """
    require_curve()
    _check_name(name)
    _require_own(folder)
    secret, public = folder / f"{name}.key_secret", folder / f"{name}.key"
    if there := next((path for path in (secret, public) if path.exists()), None):
        raise KeysError(
            f"{there}: is there already, and a pair is never overwritten: who trusts it would be locked out. Choose "
            "another folder, or remove the old pair"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as hidden:
            zmq.auth.create_certificates(hidden, name)
            for path, mode in ((secret, 0o600), (public, 0o644)):
                made = Path(hidden) / path.name
                made.chmod(mode)
                _sync(made)
                os.link(made, path)  # unlike a rename it never replaces what is there
            _sync(folder)
    except OSError as error:
        raise KeysError(f"{folder}: cannot write keys here: {error.strerror}") from error
    return load_pair(secret)


def load_pair(path: Path) -> Pair:
    """Read a .key_secret file. Raises KeysError if it is missing, is none, or if others may read it."""
    public, secret = _read_or_say(path)
    if secret is None:
        raise KeysError(f"{path}: holds a public key alone; name the file that ends in .key_secret")
    if mode := stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise KeysError(f"{path}: others may read or change this secret (mode {mode | 0o600:o}): chmod 600 {path}")
    return Pair(public, secret)


def load_public_key(path: Path) -> bytes:
    """Read a .key file. Raises KeysError if it is missing or holds something else, a secret above all."""
    public, secret = _read_or_say(path)
    if secret is not None:
        raise KeysError(f"{path}: holds a secret key, which never leaves its box; name the file that ends in .key")
    return public


def parse_public_key(key_or_file: str) -> bytes:
    """A public key as it is printed, or the file that holds it. Raises KeysError for anything else."""
    if _is_key(key := os.fsencode(key_or_file)):
        return key
    if not os.path.exists(key_or_file):
        raise KeysError(
            f"{key_or_file!r}: neither a file nor a key: a public key has 40 characters; put it in single quotes"
        )
    return load_public_key(Path(key_or_file))


class Keyring:
    """The keys of one line, in its state folder: its own pair, and the public keys of the clients it lets in."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "keys"
        self.public_path = self.folder / "line.key"
        self._allowed = self.folder / "allowed"
        self._trail = AuditTrail(audit_path(state_dir))

    def make(self, who: str) -> Pair:
        """Make the line's own pair. Raises KeysError if it has one."""
        _require_own(self.folder)
        make_private(self.folder)
        pair = make_pair(self.folder, "line")
        self._trail.record("keys.new", who, key=pair.public.decode())
        return pair

    def pair(self) -> Pair:
        """The line's own pair. Raises KeysError if none was made yet."""
        path = self.folder / "line.key_secret"
        if not path.exists():
            raise KeysError(f"{path}: this line has no keys yet; make them: maskline keys new --line RECIPE")
        return load_pair(path)

    def allowed(self) -> dict[str, bytes]:
        """Name -> public key of every client that is let in. A file that is no key lets nobody in.

        Raises ResourceError when the list cannot be read: it is then unknown, not empty.
        """
        found = {}
        try:
            for name in sorted(os.listdir(self._allowed)):
                stem, suffix = os.path.splitext(name)
                if suffix == ".key" and _NAME.fullmatch(stem):
                    with contextlib.suppress(KeysError, FileNotFoundError, PermissionError):
                        found[stem], _ = _read(self._allowed / name)
        except FileNotFoundError:
            pass  # nobody was allowed yet
        except OSError as error:
            raise ResourceError(f"{self._allowed}: cannot read who is allowed: {error.strerror}") from error
        return found

    def allow(self, name: str, key: bytes, who: str) -> str:
        """Let a client in, from now on; returns the audit trail's head. Recorded first, so that nobody is let in
        without a record. Raises KeysError for a name or key that is taken, and for the line's own key."""
        _check_name(name)
        with self._changing():
            if key == self.pair().public:
                raise KeysError(f"{key.decode()}: this is the line's own key; a client makes a pair of its own")
            allowed = self.allowed()
            if (taken := allowed.get(name)) is not None:
                raise KeysError(
                    f"{name}: is allowed already, with {'this' if taken == key else 'another'} key; choose another "
                    f"name, or first: maskline keys revoke RECIPE {name}"
                )
            if other := next((n for n, k in allowed.items() if k == key), None):
                raise KeysError(f"{key.decode()}: is allowed already, as {other}; each client needs a pair of its own")
            head = self._trail.record("keys.allow", who, name=name, key=key.decode())
            text = f'metadata\ncurve\n    public-key = "{key.decode()}"\n'
            write_durably(self._allowed / f"{name}.key", text.encode())
        return head

    def revoke(self, name: str, who: str) -> str:
        """Let a client in no more; a line that runs cuts it off at once. Returns the audit trail's head.

        Recorded last: what cannot be recorded (a full disk) is revoked nevertheless. Raises KeysError for a stranger.
        """
        with self._changing():
            path = self._allowed / f"{name}.key"
            if not _NAME.fullmatch(name) or not path.exists():
                raise KeysError(f"{name}: is not allowed; allowed are: {', '.join(self.allowed()) or 'none'}")
            key = self.allowed().get(name, b"")
            path.unlink()
            _sync(self._allowed)
            head = self._trail.record("keys.revoke", who, name=name, key=key.decode())
            if also := next((n for n, k in self.allowed().items() if k == key), None):
                raise KeysError(f"{name}: revoked, but a file that was put there by hand allows its key as {also}")
        return head

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """One at a time, by the owner alone."""
        _require_own(self.folder)
        self.pair()
        try:
            make_private(self._allowed)
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with locked(folder, self.folder):
                    yield
            finally:
                os.close(folder)
        except OSError as error:
            raise KeysError(f"{self.folder}: cannot change the allowed keys: {error.strerror}") from error


def require_curve() -> None:
    """Raises KeysError where libzmq was built without CURVE."""
    if not zmq.has("curve"):
        raise KeysError(
            f"pyzmq {zmq.__version__} has a libzmq {zmq.zmq_version()} without CURVE (libsodium), so nothing can be "
            "encrypted: install pyzmq's wheel: pip install --force-reinstall --only-binary :all: pyzmq"
        )


def _require_own(folder: Path) -> None:
    """Raises KeysError for a folder that belongs to somebody else, or in which somebody else may put files."""
    if not folder.exists():
        return
    about = folder.stat()
    if about.st_uid != os.getuid():
        owner = _user(about.st_uid)
        raise KeysError(
            f"{folder}: belongs to {owner}, and you are {_user(os.getuid())}; do this as {owner}: sudo -u {owner} ..."
        )
    if about.st_mode & 0o022:
        raise KeysError(f"{folder}: others may write in it (mode {stat.S_IMODE(about.st_mode):o}): chmod go-w {folder}")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise KeysError(f"{name!r}: expected a name of 1 to 31 characters out of a-z, 0-9, - and _, such as gate-3")


def _is_key(text: bytes) -> bool:
    try:
        return len(text) == 40 and z85.encode(z85.decode(text)) == text
    except Exception:  # z85 raises whatever comes up: KeyError, struct.error
        return False


def _read_or_say(path: Path) -> tuple[bytes, bytes | None]:
    try:
        return _read(path)
    except OSError as error:
        raise KeysError(f"{path}: cannot read this key file: {error.strerror}") from error


def _read(path: Path) -> tuple[bytes, bytes | None]:
    """Public and secret key of a key file. Raises KeysError if it is none, OSError if it cannot be read."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_KEY_FILE_BYTES:
            raise KeysError(f"{path}: not a key file")
        public, secret = zmq.auth.load_certificate(path)
    except (ValueError, IndexError) as error:
        raise KeysError(f"{path}: not a key file: it has no line public-key = ...") from error
    if not _is_key(public) or (secret is not None and not _is_key(secret)):
        raise KeysError(f"{path}: damaged: its key is not of 40 characters in Z85")
    return public, secret


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
