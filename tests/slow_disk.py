"""A disk that is slow: a library, preloaded into the processes of a line, that delays fdatasync and fsync."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["SlowDisk"]

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void wait_as_told(void) {
    for (int waited = 0;; waited += 10) {
        int ms = 0;
        FILE *told = fopen(getenv("SLOW_DISK_MS"), "re");
        if (told) {
            if (fscanf(told, "%d", &ms) != 1) ms = 0;
            fclose(told);
        }
        if (waited >= ms) return;
        usleep(10000);
    }
}

int fdatasync(int fd) {
    wait_as_told();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

int fsync(int fd) {
    wait_as_told();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
"""


class SlowDisk:
    """Compiled in a folder; the test is skipped where there is no compiler."""

    def __init__(self, folder: Path) -> None:
        self._told, library = folder / "slow_disk_ms", folder / "slow_disk.so"
        compiler = shutil.which("cc") or pytest.skip("no C compiler (cc) here")
        command = [compiler, "-shared", "-fPIC", "-o", str(library), "-x", "c", "-", "-ldl"]
        subprocess.run(command, input=SOURCE, text=True, check=True, timeout=60)
        self.delay(0)
        self.environment = {"LD_PRELOAD": str(library), "SLOW_DISK_MS": str(self._told)}
        """Of the processes whose disk is slow."""

    def delay(self, ms: int) -> None:
        """Every sync takes so much longer, those that wait now included."""
        self._told.write_text(str(ms))
