"""From the judgement to a subscriber that acknowledges: what gate, journal and channel do with verdicts, and how fast.

The real gate and channel run as processes of their own, fed with triggers and view results as capture and judge send
them; a subscriber in a fourth process takes the verdicts off the acknowledged channel. First as fast as it goes, for
the rate; then at 2,000 per second, for the time from a result to its verdict at the subscriber, in bare descriptor
round trips of the same run at the same pace.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import zmq

from edge.bench import Budget, Progress, percentile
from edge.bench.pipeline import write_recipe
from edge.bench.transport import round_trip_ms
from edge.messages import Heartbeat, Trigger, Verdict, ViewResult, encode
from edge.paths import channel_endpoint, make_private
from edge.plan import plan_line
from edge.processes import CHANNEL, GATE
from edge.recipes import load_recipe
from edge.slab import Slab, State
from edge.testing import wait_until
from edge.verdict import Decision
from edge.verdicts import Channel
from edge.worker import QUEUE_MESSAGES, start_command

__all__ = ["BUDGETS", "RATE_HZ", "feed", "gate_and_channel", "run"]

BUDGETS = {
    "gate.verdicts_per_s": Budget(at_least=2000),
    "gate.p99_vs_round_trip": Budget(at_most=25),
}
RATE_HZ, VERDICTS, ROUNDS = 2000.0, 10_000, 5
LINE = "bench"


def run(progress: Progress = lambda _: None, verdicts: int = VERDICTS, rounds: int = ROUNDS) -> dict[str, float]:
    """Median of some rounds."""
    found = []
    for i in range(rounds):
        progress(f"round {i + 1} of {rounds}")
        found.append(_round(verdicts))
    return {key: statistics.median(f[key] for f in found) for key in found[0]}


def _round(verdicts: int) -> dict[str, float]:
    trip_ms = round_trip_ms(1 / RATE_HZ)
    with tempfile.TemporaryDirectory(prefix="ml-") as folder, gate_and_channel(Path(folder)) as (send, endpoint):
        with _subscriber(endpoint, verdicts) as subscriber:
            began_ns = time.monotonic_ns()
            for number in range(verdicts):
                feed(send, number)
            received_ns, _ = _heard(subscriber)
        with _subscriber(endpoint, verdicts) as subscriber:
            due = time.perf_counter()
            for i in range(verdicts):
                due = max(due + 1 / RATE_HZ, time.perf_counter())  # what was held up does not come in a heap
                time.sleep(max(0.0, due - time.perf_counter()))
                feed(send, verdicts + i)
            _, latencies_ms = _heard(subscriber)
    p99 = percentile(latencies_ms, 99)
    return {
        "gate.verdicts_per_s": verdicts / ((received_ns - began_ns) / 1e9),
        "gate.p50_ms": percentile(latencies_ms, 50),
        "gate.p99_ms": p99,
        "gate.round_trip_ms": trip_ms,
        "gate.p99_vs_round_trip": p99 / trip_ms,
    }


def feed(send: zmq.Socket[bytes], number: int) -> None:
    """A part is triggered, and judged at once."""
    now_ns = time.monotonic_ns()
    result = ViewResult(
        station="cam",
        number=number,
        at_ns=now_ns,
        decision=Decision.PASS,
        score=0.1,
        threshold=0.5,
        engine={"backend": "null", "version": "0", "precision": "f32", "device": "none"},
        calibration="0" * 64,
        stamps=[now_ns] * 4,
    )
    send.send(encode(Trigger("cam", number, now_ns)))
    send.send(encode(result))


@contextlib.contextmanager
def gate_and_channel(folder: Path) -> Iterator[tuple[zmq.Socket[bytes], str]]:
    """Gate and channel of a line, as its supervisor starts them; what feeds the gate, and the channel's endpoint."""
    recipe = load_recipe(write_recipe(folder, width=448, height=448, rate_hz=1, parts=1))
    plan, runtime = plan_line(recipe), make_private(folder / "run")
    (runtime / "recipe.json").write_text(recipe.model_dump_json(), encoding="utf-8")
    slab, context = Slab.create(plan.layouts), zmq.Context()
    environment = os.environ | {
        "MASKLINE_SUPERVISOR_PID": str(os.getpid()),
        "MASKLINE_SLAB_FD": str(slab.fd),
        "MASKLINE_LINE_RUNTIME_DIR": str(runtime),
        "MASKLINE_LINE_STATE_DIR": str(folder / "state"),
        "MASKLINE_LOG_LEVEL": "warning",
    }
    processes = {p.name: p for p in plan.processes}
    for process in plan.processes:
        slab.row(process.index)["state"] = State.STARTING if process.name in (GATE, CHANNEL) else State.RUNNING
    children = [
        subprocess.Popen(start_command(name), env=environment, pass_fds=[slab.fd], cwd=runtime)
        for name in (GATE, CHANNEL)
    ]
    try:
        rows = [slab.row(processes[name].index) for name in (GATE, CHANNEL)]
        wait_until(lambda: all(int(row["state"]) == State.RUNNING for row in rows), 60)
        slab.head["start_ns"] = time.monotonic_ns()
        send: zmq.Socket[bytes] = context.socket(zmq.PUSH)
        send.set_hwm(QUEUE_MESSAGES)
        send.connect(f"ipc://{runtime}/{GATE}")
        yield send, channel_endpoint(runtime)
    finally:
        context.destroy(linger=0)
        for child in children:
            child.terminate()
            child.wait(20)
        slab.close()


@contextlib.contextmanager
def _subscriber(endpoint: str, verdicts: int) -> Iterator[subprocess.Popen[str]]:
    """A subscriber in a process of its own, which waits for so many verdicts."""
    command = [sys.executable, "-m", "edge.bench.gate", endpoint, str(verdicts)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
        try:
            assert subscriber.stdout is not None
            subscriber.stdout.readline()  # it is there
            yield subscriber
        finally:
            subscriber.kill()


def _heard(subscriber: subprocess.Popen[str]) -> tuple[int, list[float]]:
    """When the last verdict came, monotonic, ns; per verdict the milliseconds since its judgement."""
    assert subscriber.stdout is not None
    said = subscriber.stdout.readline()
    if not said:
        raise RuntimeError("the subscriber of the bench died; its message is above")
    received_ns, latencies_ms = json.loads(said)
    return received_ns, latencies_ms


def _subscribe(endpoint: str, verdicts: int) -> None:
    latencies_ms: list[float] = []
    here = False
    with Channel(endpoint, line=LINE, name="bench") as channel:
        for event in channel:
            now_ns = time.monotonic_ns()
            if isinstance(event, Heartbeat) and not here:
                here = True
                os.write(1, b"here\n")
            elif isinstance(event, Verdict):
                latencies_ms.append((now_ns - event.views[0].stamps[3]) / 1e6)
                if len(latencies_ms) == verdicts:
                    break
        while channel.receive(0) is not None:  # the last one is handled, and acknowledged
            pass
    os.write(1, json.dumps([now_ns, latencies_ms]).encode() + b"\n")


if __name__ == "__main__":
    _subscribe(sys.argv[1], int(sys.argv[2]))
