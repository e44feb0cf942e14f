"""A 5 MiB frame from one process to another: through the slab, against pyzmq over ipc with copies.

Both ways the producer starts with the frame in its own memory and the consumer ends with an array that it can read;
it reads one byte of each page's worth, so that the bytes are really there. What the slab saves are the copies into and
out of the socket.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zmq
from numpy.typing import NDArray

from edge.bench import Budget, Progress
from edge.slab import ArraySpec, Slab, SlotLayout

__all__ = ["BUDGETS", "round_trip_ms", "run"]

BUDGETS = {"transport.ratio_vs_pyzmq_copy": Budget(at_least=4)}

FRAME = (2048, 2560)  # 5 MiB of uint8
FRAMES, ROUNDS = 200, 5
SLOTS = 3  # one being written, one on its way, one being read; more would leave the cache sooner
Frame = NDArray[np.uint8]
LAYOUT = {"bench": SlotLayout((ArraySpec("frame", FRAME, "uint8"),), SLOTS)}
PRODUCER, CONSUMER = 1, 2


def run(progress: Progress = lambda _: None) -> dict[str, float]:
    """Median of five runs each, in turn."""
    slab_s, copy_s, trip_us = [], [], []
    for i in range(ROUNDS):
        progress(f"round {i + 1} of {ROUNDS}")
        slab_s.append(_seconds("slab", _produce_slab))
        copy_s.append(_seconds("copy", _produce_copy))
        trip_us.append(round_trip_ms() * 1e3)
    gigabytes = FRAMES * FRAME[0] * FRAME[1] / 1e9
    return {
        "transport.gb_per_s": gigabytes / statistics.median(slab_s),
        "transport.pyzmq_copy_gb_per_s": gigabytes / statistics.median(copy_s),
        "transport.ratio_vs_pyzmq_copy": statistics.median(c / s for c, s in zip(copy_s, slab_s, strict=True)),
        "transport.round_trip_us": statistics.median(trip_us),
    }


def round_trip_ms(pause_s: float = 0.0) -> float:
    """Median of the time that a descriptor needs to another process and back, `pause_s` after the last one.

    Without a pause both processes stay awake and their caches warm, which those of a line between two parts do not.
    """
    times = []
    with _consumer("trip") as (_, out, back):
        for _i in range(FRAMES):
            time.sleep(pause_s)
            start = time.perf_counter()
            out.send(b"x" * 200)  # about the size of a descriptor
            back.recv()
            times.append((time.perf_counter() - start) * 1e3)
        back.recv()
    return statistics.median(times)


def _seconds(way: str, produce: Callable[[Slab, Frame, zmq.Socket[bytes]], None]) -> float:
    """Seconds for FRAMES frames to a consumer process."""
    frame = np.random.default_rng(0).integers(0, 256, FRAME, np.uint8)
    with _consumer(way) as (slab, out, back):
        start = time.perf_counter()
        produce(slab, frame, out)
        back.recv()  # it has read the last one
        return time.perf_counter() - start


@contextlib.contextmanager
def _consumer(way: str) -> Iterator[tuple[Slab, zmq.Socket[bytes], zmq.Socket[bytes]]]:
    """A consumer process that is ready, the slab that it shares, the sockets to it and back."""
    slab = Slab.create(LAYOUT)
    context = zmq.Context()
    with tempfile.TemporaryDirectory(prefix="ml-") as folder:
        out, back = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        out.set_hwm(SLOTS)
        out.bind(f"ipc://{folder}/out")
        back.bind(f"ipc://{folder}/back")
        command = [sys.executable, "-m", "edge.bench.transport", way, folder, str(slab.fd)]
        consumer = subprocess.Popen(command, pass_fds=[slab.fd])
        try:
            back.recv()  # it is there
            yield slab, out, back
        finally:
            context.destroy(linger=0)
            consumer.wait(10)
            slab.close()


def _produce_slab(slab: Slab, frame: Frame, out: zmq.Socket[bytes]) -> None:
    for _ in range(FRAMES):
        while (taken := slab.acquire("bench", PRODUCER)) is None:
            os.sched_yield()
        np.copyto(slab.arrays(taken[0])["frame"], frame)
        slab.hand_over(taken[0], CONSUMER)
        out.send(b"%d" % taken[0])


def _produce_copy(_: Slab, frame: Frame, out: zmq.Socket[bytes]) -> None:
    for _i in range(FRAMES):
        out.send(frame.data)  # copies by default


def _consume(way: str, folder: Path, fd: int) -> None:
    slab = Slab(fd, LAYOUT, populate=True)
    context = zmq.Context()
    receive, back = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    receive.set_hwm(SLOTS)
    receive.connect(f"ipc://{folder}/out")
    back.connect(f"ipc://{folder}/back")
    back.send(b"here")
    seen = 0
    for _ in range(FRAMES):
        data = receive.recv()
        if way == "trip":
            back.send(data)
            continue
        frame = slab.arrays(int(data))["frame"] if way == "slab" else np.frombuffer(data, np.uint8).reshape(FRAME)
        seen += int(frame.ravel()[::4096].sum())
        if way == "slab":
            slab.release(int(data))
    back.send(b"%d" % seen)
    context.destroy(linger=1000)


if __name__ == "__main__":
    _consume(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
