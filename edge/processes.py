"""The process table: every process of a line, in one list. Nothing starts a process elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge.settings import Recipe
from edge.slab import EngineState

__all__ = [
    "ARCHIVE",
    "BUILD",
    "CHANNEL",
    "DETECT",
    "GATE",
    "JUDGE",
    "PREPARE",
    "RECORD",
    "Process",
    "capture",
    "process_table",
]

GATE, PREPARE, DETECT, JUDGE, ARCHIVE, BUILD = "gate", "prepare", "detect", "judge", "archive", "build"
CHANNEL, RECORD = "channel", "record"
RECORD_INDEX = 40  # after the captures of 32 stations


def always(engine: EngineState) -> bool:
    """Whatever becomes of the engine."""
    return True


def engine_is_stale(engine: EngineState) -> bool:
    """While a stale engine is built."""
    return engine is EngineState.STALE


def engine_is_not_stale(engine: EngineState) -> bool:
    """While no engine is being built: one process has the device."""
    return engine is not EngineState.STALE


@dataclass(frozen=True)
class Process:
    """One row of the table."""

    name: str
    entry: str  # module with `run(worker)`
    index: int  # its row in the slab, and its number as the holder of a slot; 0 is nobody
    niceness: int  # the gate comes first, the engine last
    start_ms: int  # it may take so long to be ready; one that does a thing and ends, to end
    turn_ms: int  # one turn of its loop may take so long; then it counts as hung and is killed
    stop_order: int  # on a stop: lower ones end first, those that owe an answer last
    station: str = ""
    should_run: Callable[[EngineState], bool] = always
    may_be_away: bool = False  # the line runs without it; it is tried again and again, and spends no budget
    tries: int = 0  # it does one thing and ends, and has so many tries; 0: a loop, within the recipe's restart budget


def capture(station: str) -> str:
    """Name of the capture process of a station."""
    return f"capture.{station}"


# Ends after the gate too. Its disk may hang for as long as it likes: that is another thread of it.
_RECORD = Process(
    RECORD,
    "edge.recorder.process",
    RECORD_INDEX,
    niceness=10,
    start_ms=20_000,
    turn_ms=10_000,
    stop_order=11,
    may_be_away=True,
)


def process_table(recipe: Recipe) -> tuple[Process, ...]:
    """The processes of a line, in the order in which they start."""
    # An inference that outlasts two deadlines answers nobody: the engine hangs, or the recipe asks too much of it.
    engine_turn_ms = max(2_000, 2 * recipe.deadline.deadline_ms)
    return (
        Process(GATE, "edge.gate", 1, niceness=0, start_ms=20_000, turn_ms=5_000, stop_order=9),
        Process(PREPARE, "edge.prepare", 2, niceness=1, start_ms=20_000, turn_ms=2_000, stop_order=2),
        Process(
            DETECT,
            "edge.detect",
            3,
            niceness=5,
            start_ms=300_000,
            turn_ms=engine_turn_ms,
            stop_order=3,
            should_run=engine_is_not_stale,
        ),
        Process(JUDGE, "edge.judge", 4, niceness=1, start_ms=20_000, turn_ms=5_000, stop_order=4),
        Process(ARCHIVE, "edge.archive", 5, niceness=10, start_ms=20_000, turn_ms=10_000, stop_order=5),
        Process(
            BUILD,
            "edge.build",
            6,
            niceness=10,
            start_ms=1_800_000,
            turn_ms=1_800_000,
            stop_order=1,
            should_run=engine_is_stale,
            tries=3,
        ),
        # Ends after the gate, whose last words it passes on.
        Process(CHANNEL, "edge.channel", 7, niceness=0, start_ms=20_000, turn_ms=5_000, stop_order=10),
        *([_RECORD] if recipe.recording else []),
        *(
            Process(
                capture(station.name),
                "edge.capture",
                8 + i,
                niceness=1,
                start_ms=20_000 if station.source.is_camera else 60_000,
                turn_ms=10_000,
                stop_order=1,
                station=station.name,
                may_be_away=station.source.is_camera,
            )
            for i, station in enumerate(recipe.stations)
        ),
    )
