"""A slow disk and a wall clock that is wrong: a library, preloaded into the processes of a line, between them and libc.

Debian's libfaketime is no help: 0.9.10 breaks sleeping until a monotonic time, which is how Python sleeps.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["Preloaded"]

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Numbers that a test leaves in files: how many ms a sync takes longer, how many s the wall clock is ahead. */
static long told(const char *name) {
    long number = 0;
    FILE *file = fopen(getenv(name), "re");
    if (file) {
        if (fscanf(file, "%ld", &number) != 1) number = 0;
        fclose(file);
    }
    return number;
}

static long ahead_s(void) {
    static __thread long number;
    static __thread time_t asked;
    struct timespec now;
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    if (!real(CLOCK_MONOTONIC_COARSE, &now) && now.tv_sec != asked) {
        asked = now.tv_sec;
        number = told("TEST_CLOCK_AHEAD_S");
    }
    return number;
}

static void be_slow(void) {
    for (int waited_ms = 0; waited_ms < told("TEST_SYNC_MS"); waited_ms += 10) usleep(10000);
}

int fdatasync(int fd) {
    be_slow();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

int fsync(int fd) {
    be_slow();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int clock_gettime(clockid_t clock, struct timespec *found) {
    int failed = ((int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime"))(clock, found);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) found->tv_sec += ahead_s();
    return failed;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *found) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found) *found = now.tv_sec;
    return now.tv_sec;
}

/* Python 3.10 waits until a wall clock's time: it computes it with the one above, the kernel has the real one. */
int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    struct timespec real = {until->tv_sec - ahead_s(), until->tv_nsec};
    return ((int (*)(sem_t *, const struct timespec *))dlsym(RTLD_NEXT, "sem_timedwait"))(semaphore, &real);
}
"""


class Preloaded:
    """Compiled in a folder; the test is skipped where there is no compiler."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or pytest.skip("no C compiler (cc) here")
        library, self._sync_ms, self._ahead_s = (folder / name for name in ("preloaded.so", "sync_ms", "ahead_s"))
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), "-x", "c", "-", "-ldl"]
        subprocess.run(command, input=SOURCE, text=True, check=True, timeout=100)
        self.environment = {
            "LD_PRELOAD": str(library),
            "TEST_SYNC_MS": str(self._sync_ms),
            "TEST_CLOCK_AHEAD_S": str(self._ahead_s),
        }
        """Of the processes that it is for."""
        self.slow_down(0)
        self.jump(0)

    def slow_down(self, ms: int) -> None:
        """Every fdatasync and fsync takes so much longer, those that wait now included."""
        _write(self._sync_ms, ms)

    def jump(self, ahead_s: int) -> None:
        """Within a second the wall clock is so far ahead, or behind. Monotonic clocks go on, as they do in a box."""
        _write(self._ahead_s, ahead_s)


def _write(path: Path, number: int) -> None:
    path.with_suffix(".new").write_text(str(number))
    os.replace(path.with_suffix(".new"), path)
