"""A recording through a whole line: the same processes, from the frames that were recorded.

`replay_recording` is the one entry: whoever calls it, a command, a process of a pool or another machine, gets the same
answer as plain data. It prints nothing. The line runs beside any other one of its name: its sockets and its state are
its own, and nobody is told of its verdicts.
"""

from __future__ import annotations

import os
import tempfile
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
from edge.processes import JUDGE, process_table
from edge.recording import Recording
from edge.replay.compare import Comparison, Rules, compare
from edge.replay.outcome import Outcome, outcome
from edge.replay.references import read_references
from edge.replay.setup import ReplayError, SetUp, Survey, set_up
from edge.settings import Recipe
from edge.supervisor import Supervisor
from edge.verdict import Decision, Reason

__all__ = [
    "ReplayOptions",
    "ReplayResult",
    "expected_outcomes",
    "recorded_outcomes",
    "replay_recording",
    "require_tolerance",
]

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
                "replay.apart": float(len({(a.lane, a.part) for a in found.apart})),
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
        verdicts = _run(ready, state, progress)
    outcomes = [outcome(v, ready.survey.lanes[v.lane].start) for v in verdicts]
    return ReplayResult(
        recording=str(path),
        line=ready.plan.recipe.line,
        outcomes=sorted(outcomes, key=lambda o: (o["lane"], o["part"])),
        comparison=None if expected is None else _compare(expected, outcomes, ready.survey, options),
        notes=ready.notes,
        seconds=(max(v.decided_ns for v in verdicts) - min(v.trigger_ns for v in verdicts)) / 1e9,
    )


def require_tolerance(recording: Recording, tolerance: float | None) -> None:
    """Raise ReplayError where frames lost something in the recording, and nobody said how much scores may differ."""
    if not recording.lossless and tolerance is None:
        raise ReplayError(
            f"{recording.path}: its frames are compressed with losses, so scores cannot be equal to the bit; say with "
            "--tolerance what share of the threshold they may differ by, such as 0.05"
        )


def recorded_outcomes(recording: Recording) -> list[Outcome]:
    """What the line said when it was recorded. Raises ReplayError for a recording without verdicts."""
    verdicts = list(recording.verdicts())
    if not verdicts:
        raise ReplayError(
            f"{recording.path}: there are no verdicts in this recording to compare with; compare with a file of "
            "references (--reference)"
        )
    newest = max(v.run for v in verdicts)  # a gate also answers what an earlier run of the line left open
    return [outcome(v) for v in verdicts if v.run == newest]


def expected_outcomes(recording: Recording, options: ReplayOptions) -> list[Outcome]:
    """What `options` says that a replay is held against. Raises ReplayError."""
    require_tolerance(recording, options.tolerance)
    if isinstance(options.expected, Path):
        return read_references(options.expected).outcomes
    return recorded_outcomes(recording)


def _compare(expected: list[Outcome], found: list[Outcome], survey: Survey, options: ReplayOptions) -> Comparison:
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
    return compare(expected, found, rules, unrecorded=unrecorded, outside=outside)


def _run(ready: SetUp, state: Path, progress: Progress | None) -> list[Verdict]:
    """The verdicts of the line, once all sources have ended. Raises ReplayError when it was stopped before."""
    recipe, parts = ready.plan.recipe, ready.survey.parts
    os.environ.setdefault("MASKLINE_LOG_LEVEL", "warning")
    configure_logs("replay")
    save_calibration(ready.calibration, calibration_path(make_private(state), recipe.name))
    with tempfile.TemporaryDirectory(prefix="maskline-") as sockets:
        supervisor = Supervisor(recipe, Path(sockets) / "line", state)
        supervisor.run(on_tick=_teller(supervisor, ready.survey.views(recipe), progress) if progress else None)
    verdicts = _verdicts(state)
    if len(verdicts) < parts:
        raise ReplayError(f"the replay was stopped after {len(verdicts)} of {parts} parts")
    return verdicts


def _teller(supervisor: Supervisor, total: int, progress: Progress) -> Callable[[], None]:
    row = supervisor.slab.row(next(p.index for p in process_table(supervisor.recipe) if p.name == JUDGE))
    return lambda: progress(int(row["done"]), total)


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
