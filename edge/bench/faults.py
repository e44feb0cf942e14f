"""A line on the simulated conveyor, in real processes, and what a box can do to it, one thing after the other.

One round: each fault of `edge.bench.process_faults` once, in random order, with parts on the belt. When LINE-OK stops,
the machine springs to reject while the parts go on, or, in every other round, stops the belt. What it has cost is
counted from where the parts lie, from the journal, and from what subscribers have got (`edge.bench.balance`). The share
of good parts in the good bin stands beside it: a line that rejects everything makes no mistake either.

What is wrong is logged, and the folder with the journal and the logs is kept.

The power-cut window is measured apart, with 2,000 verdicts per second through a gate that is left alone: the age of the
oldest commit that is not on the disk yet, at its highest.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import structlog

from edge.actuators.belt import BeltSettings
from edge.bench import Budget, Progress
from edge.bench.balance import Balance
from edge.bench.gate import RATE_HZ, feed, gate_and_channel
from edge.bench.process_faults import message_faults, process_faults
from edge.bench.recorders import PubRecorder
from edge.bench.storm import Storm, storm
from edge.paths import make_private, verdict_endpoint

__all__ = ["BUDGETS", "belt_of_round", "run"]

MUST_BE_NONE = (
    "false_pass",
    "bad_passed",
    "lost",
    "duplicated",
    "subscriber_gaps",
    "subscriber_repeats",
    "unjournalled",
)
BUDGETS = {f"faults.{name}": Budget(at_most=0) for name in (*MUST_BE_NONE, "not_healed")} | {
    "faults.good_share": Budget(at_least=0.25),
    "faults.power_cut_window_ms": Budget(at_most=1000),
}
ROUNDS = 1
VERDICTS = 10_000
SHOWN = 20


def run(progress: Progress = lambda _: None, rounds: int = ROUNDS) -> dict[str, float]:
    """All rounds; counts are of all of them together."""
    found, struck, stopped_ms = Counter[str](), Counter[str](), 0.0
    began = time.monotonic()
    for i in range(rounds):
        progress(f"round {i + 1} of {rounds}, {found['parts']} parts so far")
        balance, seen, not_healed = _round(i)
        found += Counter({name: getattr(balance, name) for name in ("parts", "good_parts", "passed", *MUST_BE_NONE)})
        found["not_healed"] += not_healed
        found["messages"] += sum(seen.mischief.done.values()) if seen.mischief else 0
        found["silences"] += seen.recorders[0].silences
        struck += seen.struck
        stopped_ms = max(stopped_ms, seen.pub.longest_lag_ms)
    progress("the power-cut window")
    return {
        "faults.rounds": rounds,
        "faults.seconds": time.monotonic() - began,
        "faults.parts": found["parts"],
        "faults.faults": sum(struck.values()),
        **{f"faults.struck.{kind}": many for kind, many in sorted(struck.items())},
        "faults.distorted_messages": found["messages"],
        "faults.silences": found["silences"],
        **{f"faults.{name}": found[name] for name in MUST_BE_NONE},
        "faults.not_healed": found["not_healed"],
        "faults.good_share": (found["passed"] - found["bad_passed"]) / max(1, found["good_parts"]),
        "faults.power_cut_window_ms": _power_cut_window_ms(),
        "faults.power_cut_window_in_storm_ms": stopped_ms,
    }


def belt_of_round(number: int) -> BeltSettings:
    """Some 12 parts a second, 0.3 s before the ejector; as fast as two cores sustain without being late."""
    return BeltSettings(
        speed_mm_s=1000.0,
        spacing_mm=80.0,
        jitter_mm=3.0,
        sensor_mm=400.0,
        ejector_mm=440.0,
        interlock="stop" if number % 2 else "reject",
        interlock_ms=60.0,
        seed=number,
    )


def _round(number: int) -> tuple[Balance, Storm, int]:
    """What it has cost, the line that it has hit, and 1 where that did not heal, which ends the round."""
    log, not_healed = structlog.get_logger(), 0
    folder = Path(tempfile.mkdtemp(prefix="ml-"))
    faults = [*process_faults(), *message_faults()]
    random.Random(number).shuffle(faults)
    with storm(folder, make_private(folder / "run"), belt_of_round(number), seed=number, proxy=True) as it:
        try:
            for fault in faults:
                it.strike(fault)
        except AssertionError as error:
            not_healed = 1
            log.error("not_healed", round=number + 1, folder=str(folder), error=str(error))
        found = it.finish()
    for what in found.wrong[:SHOWN]:
        log.error("fault_found", round=number + 1, folder=str(folder), what=what)
    if not (found.wrong or not_healed):
        shutil.rmtree(folder)
    return found, it, not_healed


def _power_cut_window_ms() -> float:
    with tempfile.TemporaryDirectory(prefix="ml-") as folder, gate_and_channel(Path(folder)) as (send, _):
        recorder = PubRecorder(verdict_endpoint(Path(folder) / "run"))
        with recorder:
            start = time.perf_counter()
            for number in range(VERDICTS):
                time.sleep(max(0.0, start + number / RATE_HZ - time.perf_counter()))
                feed(send, number)
            while recorder.beat is None or recorder.beat.seq < VERDICTS:
                time.sleep(0.01)
        return recorder.longest_lag_ms
