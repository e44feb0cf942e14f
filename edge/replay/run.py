"""A recording through a whole line: the same processes, from the frames that were recorded.

`replay_recording` is the one entry: whoever calls it, a command, a process of a pool or another machine, gets the same
answer as plain data. It prints nothing. The line runs beside any other one of its name: its sockets and its state are
its own, and nobody is told of its verdicts.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from calib.calibration import Calibration, save_calibration
from edge.errors import ResourceError
from edge.journal import open_for_reading
from edge.journal.runs import read_verdicts
from edge.logs import configure_logs
from edge.messages import Verdict
from edge.paths import calibration_path, journal_path, make_private
from edge.processes import GATE, JUDGE, process_table
from edge.recording import Recording
from edge.replay.compare import Comparison, Rules, Why, compare
from edge.replay.outcome import Outcome, outcome
from edge.replay.references import read_references
from edge.replay.setup import ReplayError, SetUp, set_up
from edge.settings import Mode, Recipe
from edge.slab import State
from edge.supervisor import Supervisor
from edge.verdict import Decision, Reason

__all__ = [
    "ReplayOptions",
    "ReplayResult",
    "expected_outcomes",
    "recorded_verdicts",
    "replay_recording",
    "require_tolerance",
]

IDLE_S = 10.0
"""After the death of a process: a line that has had nothing in hand for so long will answer no more."""

Progress = Callable[[int, int], None]
"""Is told how many views were judged, of how many."""


@dataclass(frozen=True)
class ReplayOptions:
    """How a recording is replayed, and what the answers are held against."""

    recipe: Recipe | None = None  # instead of the recorded one
    calibration: Calibration | None = None  # instead of the recorded one
    live: bool = False  # at the recorded times, instead of as fast as the engine can
    expected: Literal["recorded"] | Path | None = None  # the recorded verdicts, a file of references, or nothing
    tolerance: float | None = None  # see `Rules`
    ignore: tuple[str, ...] = ()  # see `Rules`
    out: Path | None = None  # a new or empty folder for the line's state; absent: it is thrown away
    threads: int = 0  # of the engine, where the recipe names none: other replays run beside this one


@dataclass(frozen=True)
class ReplayResult:
    """What a replay said. Equal for equal inputs, but for the time that it took."""

    recording: str
    line: str
    outcomes: list[Outcome]  # by lane and recorded part
    comparison: Comparison | None
    notes: tuple[str, ...]
    seconds: float = field(compare=False)  # from the first trigger to the last verdict

    @property
    def decisions(self) -> dict[str, int]:
        """PASS, REJECT, UNINSPECTED(reason) -> parts."""
        said = Counter(o["decision"] + (f"({o['reason']})" if o["reason"] else "") for o in self.outcomes)
        return dict(sorted(said.items()))

    def figures(self) -> dict[str, float]:
        """For `--json`: one flat object."""
        said = Counter(o["decision"] for o in self.outcomes)
        figures = {"replay.parts": float(len(self.outcomes)), "replay.seconds": self.seconds}
        figures |= {f"replay.{d.value.lower()}": float(said[d.value]) for d in Decision}
        if self.seconds:
            figures["replay.parts_per_s"] = len(self.outcomes) / self.seconds
        if found := self.comparison:
            figures |= {
                "replay.compared": float(found.parts),
                "replay.different": float(found.different),
                "replay.apart": float(found.apart_parts),
                "replay.scores_compared": float(found.scores_compared),
                "replay.largest_score_difference": found.largest_score_difference,
            }
        return figures


def replay_recording(path: Path, options: ReplayOptions, progress: Progress | None = None) -> ReplayResult:
    """Replay one recording. To be called in the main thread of a process.

    Raises ReplayError, and whatever else a recording, recipe, bundle or calibration is refused for: MasklineError.
    """
    recording = Recording(path)
    expected = None if options.expected is None else expected_outcomes(recording, options)
    ready = set_up(
        recording,
        options.recipe,
        options.calibration,
        live=options.live,
        pictures=options.out is not None,
        threads=options.threads,
    )
    ready = replace(ready, detectors={})  # the line opens its own
    with _state_folder(options.out) as state:
        verdicts, died = _run(ready, state, progress)
    outcomes = [outcome(v, ready.survey.lanes[v.lane].start) for v in verdicts]
    return ReplayResult(
        recording=str(path),
        line=ready.plan.recipe.line,
        outcomes=sorted(outcomes, key=lambda o: (o["lane"], o["part"])),
        comparison=None if expected is None else _compare(expected, outcomes, ready, options),
        notes=(*ready.notes, *died),
        seconds=(max(v.decided_ns for v in verdicts) - min(v.trigger_ns for v in verdicts)) / 1e9,
    )


def require_tolerance(recording: Recording, tolerance: float | None) -> None:
    """Raise ReplayError where frames lost something in the recording, and nobody said how much scores may differ."""
    if not recording.lossless and tolerance is None:
        raise ReplayError(
            f"{recording.path}: its frames are compressed with losses, so scores cannot be equal to the bit; say with "
            "--tolerance what share of the threshold they may differ by, such as 0.05"
        )


def recorded_verdicts(recording: Recording) -> list[Verdict]:
    """What the line said when it was recorded. Raises ReplayError for a recording without verdicts."""
    verdicts = list(recording.verdicts())
    if not verdicts:
        raise ReplayError(
            f"{recording.path}: there are no verdicts in this recording to compare with; compare with a file of "
            "references (--reference)"
        )
    newest = max(v.run for v in verdicts)  # a gate also answers what an earlier run of the line left open
    return [v for v in verdicts if v.run == newest]


def expected_outcomes(recording: Recording, options: ReplayOptions) -> list[Outcome]:
    """What `options` says that a replay is held against. Raises ReplayError."""
    require_tolerance(recording, options.tolerance)
    if isinstance(options.expected, Path):
        return read_references(options.expected).outcomes
    return [outcome(v) for v in recorded_verdicts(recording)]


def _compare(expected: list[Outcome], found: list[Outcome], ready: SetUp, options: ReplayOptions) -> Comparison:
    survey = ready.survey
    rules = Rules(
        ignore=frozenset(options.ignore),
        tolerance=options.tolerance,
        live=options.live,
        complete=options.expected != "recorded",
    )
    keys = [(o["lane"], o["part"]) for o in expected]
    outside = [(lane, part) for lane, part in keys if part not in survey.lanes.get(lane, ())]
    frozen = {
        (view["station"], part["part"])
        for part in expected
        for view in part["views"]
        if view["reason"] == Reason.FROZEN_FRAME.value
    }
    unrecorded = survey.unrecorded | (frozen & survey.after_gap)
    excused = dict.fromkeys(unrecorded, Why.UNRECORDED)
    return compare(expected, found, rules, excused=excused, outside=outside, adding_up=ready.adding_up)


def _run(ready: SetUp, state: Path, progress: Progress | None) -> tuple[list[Verdict], list[str]]:
    """The verdicts of the line, once all sources have ended, and which of its processes died meanwhile, in words.

    Raises ReplayError when it was stopped before.
    """
    recipe, parts = ready.plan.recipe, ready.survey.parts
    os.environ.setdefault("MASKLINE_LOG_LEVEL", "warning")
    configure_logs("replay")
    save_calibration(ready.calibration, calibration_path(make_private(state), recipe.name))
    with tempfile.TemporaryDirectory(prefix="maskline-") as sockets:
        supervisor = Supervisor(recipe, Path(sockets) / "line", state)
        supervisor.run(on_tick=_Tick(supervisor, ready.survey.views(recipe), progress))
    verdicts = _verdicts(state)
    if len(verdicts) < parts:
        raise ReplayError(f"the replay was stopped after {len(verdicts)} of {parts} parts")
    return verdicts, [
        f"the process {name} died during this replay ({count}x): what it had in hand is lost"
        for name, count in sorted(supervisor.died.items())
    ]


class _Tick:
    """What a replay does at each turn of its supervisor: it tells how far it is, and ends a line that cannot go on.

    What a process had in hand when it died has no answer, and nothing but its deadline ends such a part: ten minutes in
    a lossless replay. Once all sources have ended and no frame is in any hands, such a line is stopped instead, and the
    part is UNINSPECTED(stopping). A line of which no process died is waited for, however slow it is.
    """

    def __init__(self, supervisor: Supervisor, views: int, progress: Progress | None) -> None:
        self._supervisor, self._views, self._progress = supervisor, views, progress
        self._rows = {p.name: supervisor.slab.row(p.index) for p in process_table(supervisor.recipe)}
        self._captures = [p.name for p in process_table(supervisor.recipe) if p.station]
        self._lossless = all(s.source.mode is Mode.LOSSLESS for s in supervisor.recipe.stations)
        self._idle_since: float | None = None

    def __call__(self) -> None:
        if self._progress:
            self._progress(int(self._rows[JUDGE]["done"]), self._views)
        if not (self._lossless and self._supervisor.died and self._nothing_in_hand()):
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > IDLE_S:
            self._supervisor.request_stop()

    def _nothing_in_hand(self) -> bool:
        slab = self._supervisor.slab
        ended = all(int(self._rows[name]["state"]) == State.DONE for name in self._captures)
        answering = int(self._rows[GATE]["state"]) == State.RUNNING
        return ended and answering and all(slab.is_free(s) for slots in slab.station_slots.values() for s in slots)


def _verdicts(state: Path) -> list[Verdict]:
    if not journal_path(state).is_file():  # stopped before its gate was up
        return []
    with closing(open_for_reading(journal_path(state))) as db:
        return read_verdicts(db)


@contextmanager
def _state_folder(chosen: Path | None) -> Iterator[Path]:
    """The folder of the line's state. Raises ResourceError for one that holds something."""
    if chosen is None:
        with tempfile.TemporaryDirectory(prefix="maskline-") as folder:
            yield Path(folder)
        return
    if chosen.exists() and (not chosen.is_dir() or any(chosen.iterdir())):
        raise ResourceError(f"{chosen}: is not empty; name a new folder with --out, the replay keeps its own journal")
    yield chosen
