"""Small disks that really run full: an ext4 file system in a file, mounted through a loop device."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["fill", "loop_disk"]


@contextlib.contextmanager
def loop_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A mounted ext4 of `mib` MiB; the test is skipped where nobody may mount."""
    image, disk = folder / "disk.img", folder / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(mib << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True, capture_output=True, timeout=100)
        subprocess.run(["mount", "-o", "loop", image, disk], check=True, capture_output=True, timeout=100)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small disk here: {error}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True, timeout=100)


def fill(disk: Path, leave_bytes: int = 0) -> Path:
    """Write a file until at most `leave_bytes` are free; returns it, to be deleted for space again."""
    plug = disk / "plug"
    with plug.open("ab", buffering=0) as file:
        for block in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while _free(disk) > leave_bytes + block:
                    file.write(b"\1" * block)
        if not leave_bytes:
            with contextlib.suppress(OSError):
                while file.write(b"\1" * 512):
                    pass
        os.fsync(file.fileno())
    return plug


def _free(disk: Path) -> int:
    about = os.statvfs(disk)
    return about.f_bavail * about.f_frsize
