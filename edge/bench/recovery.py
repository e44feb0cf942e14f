"""Recordings as files: a seek in a large one against reads of its chunks, and `recover` against the disk itself.

The files lie where the recordings of a line would lie: name a folder of that disk. Caches are dropped before each
measurement, so that the disk is what is measured.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from edge.bench import Budget, Progress
from edge.recording import Recording, RecordingWriter, recover

__all__ = ["BUDGETS", "measure_recovery", "measure_seek"]

BUDGETS = {
    "replay.seek_vs_three_reads": Budget(at_most=1),
    "replay.recover_vs_disk": Budget(at_least=0.5),
    "replay.recover_growth_mib": Budget(at_most=64),
}

FRAME = (2048, 2448, 1)
SEEK_BYTES, RECOVER_BYTES = 4 << 30, 1 << 30
SEEKS = 15
_PIECE = 4 << 20


def measure_seek(folder: Path, progress: Progress = lambda _: None, nbytes: int = SEEK_BYTES) -> dict[str, float]:
    """Medians over random parts of a recording of `nbytes`: opening it, the seek to a frame, and the read of a chunk.

    Each from a cold cache, and each seek in a recording that was just opened and knows of no other part.
    """
    path = folder / "seek.mcap"
    progress(f"writing {nbytes / 1e9:.1f} GB")
    parts = _write(path, nbytes)
    rng = random.Random(0)
    opens, seeks, reads = [], [], []
    try:
        for i in range(SEEKS):
            progress(f"seek {i + 1} of {SEEKS}")
            _forget(path)
            start = time.perf_counter()
            recording = Recording(path)
            opens.append(time.perf_counter() - start)
            _forget(path)
            start = time.perf_counter()
            frame = recording.frame("bench", rng.randrange(parts))
            seeks.append(time.perf_counter() - start)
            assert frame is not None
            _forget(path)
            reads.append(_read_s(path, rng.randrange(parts) * (nbytes // parts), len(frame.data)))
    finally:
        path.unlink()
    return {
        "replay.open_ms": statistics.median(opens) * 1e3,
        "replay.seek_ms": statistics.median(seeks) * 1e3,
        "replay.chunk_read_ms": statistics.median(reads) * 1e3,
        "replay.seek_vs_three_reads": statistics.median(seeks) / (3 * statistics.median(reads)),
    }


def measure_recovery(
    folder: Path, progress: Progress = lambda _: None, nbytes: int = RECOVER_BYTES
) -> dict[str, float]:
    """`recover` of a cut recording, to the last byte on the disk, against writing as much; and how its memory grew."""
    cut, out = folder / "cut.mcap", folder / "recovered.mcap"
    progress(f"writing {nbytes / 1e9:.1f} GB")
    _write(cut, nbytes, whole=False)
    try:
        _forget(cut)
        progress("recovering")
        command = [sys.executable, "-m", "edge.bench.recovery", str(cut), str(out)]
        done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        out.unlink()
        progress("writing as much")
        write_s = _sequential_write_s(out, cut.stat().st_size)
        _forget(out)
        progress("reading as much")
        read_s = sum(_read_s(out, at, _PIECE) for at in range(0, out.stat().st_size, _PIECE))
        size = cut.stat().st_size / 1e6
    finally:
        cut.unlink()
        out.unlink(missing_ok=True)
    return {
        "replay.recover_mb_per_s": size / done["seconds"],
        "replay.disk_write_mb_per_s": size / write_s,
        "replay.disk_read_mb_per_s": size / read_s,
        "replay.recover_vs_disk": write_s / done["seconds"],
        "replay.recover_growth_mib": done["growth_mib"],
    }


def _write(path: Path, nbytes: int, whole: bool = True) -> int:
    """A recording of about so many bytes; returns how many parts it has."""
    image = np.random.default_rng(0).integers(0, 256, FRAME, np.uint8)
    parts = max(1, nbytes // image.nbytes)
    out = RecordingWriter(path, {})
    for number in range(parts):
        out.trigger("bench", number, number)
        out.frame("bench", number, number, image, "raw")
    if whole:
        out.close()
    else:
        out.abandon()
    return parts


def _forget(path: Path) -> None:
    """Have the kernel read the file from the disk when it is read next."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_s(path: Path, at: int, length: int) -> float:
    with path.open("rb", buffering=0) as file:
        start = time.perf_counter()
        os.pread(file.fileno(), length, at)
        return time.perf_counter() - start


def _sequential_write_s(path: Path, nbytes: int) -> float:
    piece = np.random.default_rng(0).integers(0, 256, _PIECE, np.uint8).data
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for at in range(0, nbytes, _PIECE):
            file.write(piece[: min(_PIECE, nbytes - at)])
        os.fsync(file.fileno())
    return time.perf_counter() - start


def _recover(cut: Path, out: Path) -> None:
    """In a process of its own: only what `recover` needs counts as its memory."""
    before_kib = _most_resident_kib()
    start = time.perf_counter()
    recover(cut, out)
    seconds = time.perf_counter() - start
    growth_mib = (_most_resident_kib() - before_kib) / 1024
    sys.stdout.write(json.dumps({"seconds": seconds, "growth_mib": growth_mib}))


def _most_resident_kib() -> int:
    """Since this program began. (`ru_maxrss` begins with what the process had before it became this program.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    _recover(Path(sys.argv[1]), Path(sys.argv[2]))
