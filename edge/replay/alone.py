"""One process of a line alone, on what was recorded of its inputs, against what was recorded of its answers.

What goes from one stage to the next is not recorded, so the frames are brought to the stage that is asked for by the
functions of those before it; what is compared is what this stage adds.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from edge.ledger import view_of
from edge.messages import ViewResult
from edge.processes import DETECT, GATE, JUDGE, PREPARE
from edge.recording import Recording
from edge.replay.compare import Comparison, Rules, compare
from edge.replay.gate import replay_gate
from edge.replay.outcome import Outcome, plain_outcome
from edge.replay.run import ReplayOptions, ReplayResult, require_tolerance
from edge.replay.setup import ReplayError, SetUp, Survey, channel_of, recipe_of, recorded_bundles, set_up, survey
from edge.replay.stages import Stages
from edge.settings import Recipe
from edge.verdict import Decision, Reason

__all__ = ["PROCESSES", "replay_process", "require_alone"]

PROCESSES = (PREPARE, DETECT, JUDGE, GATE)

_USABLE = "usable"
"""What is said of a view by a stage that gives no verdict, and found nothing wrong."""
_OF_PREPARE = frozenset({Reason.NO_PART.value, Reason.SEVERAL_PARTS.value, Reason.MISPLACED.value})
_OF_DETECT = frozenset({*_OF_PREPARE, Reason.ENGINE_ERROR.value})
_BY_THRESHOLDS: dict[str, Any] = {"threshold": None, "boxes": [], "areas_px": [], "calibration": ""}
_BY_ENGINE: dict[str, Any] = {**_BY_THRESHOLDS, "score": None, "witness": None, "engine": {}}


def replay_process(path: Path, name: str, options: ReplayOptions) -> ReplayResult:
    """Replay one process; the outcomes of a stage are those of single views, with the station as their lane.

    Raises ReplayError for what `require_alone` refuses or a recording without its answers, and whatever else
    `edge.replay.run.replay_recording` raises.
    """
    require_alone(name, options)
    recording = Recording(path)
    if name == GATE:
        recipe = recipe_of(recording, options.recipe)
        said, comparison = replay_gate(recording, recipe, survey(recording, recipe), options.ignore)
        return _result(path, recipe, sorted(said, key=_key), comparison, ())
    require_tolerance(recording, options.tolerance)
    ready = set_up(recording, options.recipe, options.calibration, threads=options.threads)
    stages = [Stages(plan, ready.detectors[n], ready.calibration) for n, plan in ready.plan.stations.items()]
    judged = dict(_recorded_views(ready, name))
    expected = {key: told for key, told in judged.items() if key not in ready.survey.unrecorded}
    said = [o for s in stages for o in _views(s, ready.survey, name, judged) if _key(o) in expected]
    rules = Rules(frozenset(options.ignore), options.tolerance)
    comparison = compare(expected.values(), said, rules, adding_up=ready.adding_up)
    return _result(path, ready.plan.recipe, said, comparison, ready.notes)


def require_alone(name: str, options: ReplayOptions) -> None:
    """Raise ReplayError for a process that cannot be replayed alone, and for options that would do nothing."""
    if name not in PROCESSES:
        raise ReplayError(f"--process {name}: cannot be replayed alone; these can: {', '.join(PROCESSES)}")
    idle = [
        ("--out", options.out is not None, "there is no line whose journal could be kept"),
        ("--speed 1", options.live, "its inputs come at no speed"),
        ("--calibration", name == GATE and options.calibration is not None, "it knows no thresholds"),
        ("--tolerance", name == GATE and options.tolerance is not None, "it computes no scores"),
    ]
    if refused := next(((option, why) for option, given, why in idle if given), None):
        raise ReplayError(f"--process {name}: {refused[1]}; leave {refused[0]} out")


def _result(
    path: Path, recipe: Recipe, said: list[Outcome], comparison: Comparison, notes: tuple[str, ...]
) -> ReplayResult:
    return ReplayResult(str(path), recipe.line, said, comparison, notes, seconds=0.0)


def _key(outcome: Outcome) -> tuple[str, int]:
    return outcome["lane"], outcome["part"]


def _recorded_views(ready: SetUp, name: str) -> Iterator[tuple[tuple[str, int], Outcome]]:
    """What was recorded of the views that went through all stages: those with stamps."""
    stations = {channel_of(s): s for s in ready.plan.recipe.stations}
    bundles = recorded_bundles(ready.recording)
    any_result = False
    for _, result in ready.recording.results():
        any_result = True
        station = stations.get(result.station)
        if station is None or not result.stamps or result.number not in ready.survey.lanes[station.lane]:
            continue
        told = _outcome(result, station.name, result.number, bundles.get(result.station, ""), name)
        yield _key(told), told
    if not any_result:
        raise ReplayError(f"{ready.recording.path}: there are no view results in this recording to compare with")


def _views(stages: Stages, found: Survey, name: str, judged: Container[tuple[str, int]]) -> Iterator[Outcome]:
    """What this process says of the views that the line judged: a frame of a web that it did not judge hands nothing on
    to the next one."""
    station = stages.plan.station
    first = found.lanes[station.lane].start
    for result in stages.views(lambda number: (station.name, number + first) in judged):
        yield _outcome(result, station.name, result.number + first, stages.plan.bundle.sha256, name)


def _outcome(result: ViewResult, station: str, number: int, bundle: str, name: str) -> Outcome:
    view = view_of(result, bundle)
    return _project(plain_outcome({"lane": station, "part": number}, [view]), name)


def _project(part: Outcome, name: str) -> Outcome:
    """A view as the stage of that name leaves it."""
    (view,) = part["views"]
    shown = _SHOWN[name](view)
    return {**part, "decision": shown["decision"], "reason": shown["reason"], "views": [shown]}


def _refused(view: Outcome, reasons: frozenset[str]) -> Outcome:
    reason = view["reason"] if view["reason"] in reasons else None
    return {"decision": Decision.UNINSPECTED.value if reason else _USABLE, "reason": reason}


def _as_prepared(view: Outcome) -> Outcome:
    return {**view, **_BY_ENGINE, **_refused(view, _OF_PREPARE)}


def _as_detected(view: Outcome) -> Outcome:
    return {**view, **_BY_THRESHOLDS, **_refused(view, _OF_DETECT)}


_SHOWN: dict[str, Callable[[Outcome], Outcome]] = {
    PREPARE: _as_prepared,
    DETECT: _as_detected,
    JUDGE: lambda view: view,
}
