"""Disk space that is held back in a file: when the disk is full it is given up, so that every open part can still be
closed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from edge.errors import ResourceError

__all__ = ["Ballast", "is_full"]


def is_full(error: BaseException) -> bool:
    """Whether the disk has no room, as SQLite or the kernel says it."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "full" in str(error) or "disk I/O error" in str(error)


class Ballast:
    """One file, as large as the recipe's reserve, or empty."""

    def __init__(self, path: Path, size: int) -> None:
        """`size` in bytes. Raises ResourceError when the file cannot be made, for another reason than a full disk."""
        self._path, self._size = path, size
        self.held = self.take()

    def take(self) -> bool:
        """Make the file if it is not there; False when the disk has no room for it."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._size)
            except OSError:
                os.ftruncate(fd, 0)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            if is_full(error):
                return False
            raise ResourceError(f"{self._path}: cannot reserve {self._size} bytes: {error.strerror}") from error
        return True

    def take_again(self) -> None:
        """Take it if the disk has room for it and as much again for the journal."""
        disk = os.statvfs(self._path.parent)
        self.held = disk.f_bavail * disk.f_frsize >= 2 * self._size and self.take()

    def release(self) -> bool:
        """Give it up; False when that was done before."""
        had, self.held = self.held, False
        if had:
            os.truncate(self._path, 0)
        return had
