"""What a recording is replayed with: the recipe, its bundles and a calibration that holds for this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from calib.calibration import Calibration, Provenance, StationCalibration, mismatch
from edge.detector import Detector, open_detectors
from edge.errors import BundleError, CalibrationError, MasklineError, SourceError
from edge.judge import provenance
from edge.plan import LinePlan, plan_line
from edge.recording import RecordedFrame, Recording
from edge.settings import Mode, Outputs, Pictures, Recipe, Source, Station
from edge.sources.recorded import MAX_GAP

__all__ = [
    "ReplayError",
    "SetUp",
    "Survey",
    "channel_of",
    "fit_calibration",
    "recipe_of",
    "recorded_bundles",
    "replay_recipe",
    "set_up",
    "survey",
]

LONGEST_DEADLINE_MS = 600_000
"""As fast as the engine can, no part is late: in front of it wait as many frames as there are slots."""

_OF_THE_MACHINE = ("backend_version", "device", "isa")
"""What a calibration is taken over from another machine with: the same network, precision and pixels."""


class ReplayError(MasklineError):
    """A recording that cannot be replayed as it was asked for."""


@dataclass(frozen=True)
class Survey:
    """Which parts of a recording can be replayed."""

    lanes: Mapping[str, range]
    """The recorded numbers of the parts that all stations of a lane saw; its first is part 0 of the replay."""
    unrecorded: frozenset[tuple[str, int]]
    """Stations and parts among them without a frame in the recording; on a web, without the one before it too, and
    where areas are added up, without the one before that."""
    after_gap: frozenset[tuple[str, int]]
    """Those that have a frame, and none before it: whether the camera stood still cannot be seen any more."""

    @property
    def parts(self) -> int:
        return sum(map(len, self.lanes.values()))

    def views(self, recipe: Recipe) -> int:
        return sum(len(parts) * len(recipe.lane_views(lane)) for lane, parts in self.lanes.items())


def recipe_of(recording: Recording, given: Recipe | None) -> Recipe:
    """The recipe to replay with: the one that was given, or the recorded one. Raises ReplayError without either, and
    for one with stations that were not recorded."""
    recipe = given or recording.recipe()
    if recipe is None:
        raise ReplayError(f"{recording.path}: there is no recipe in this recording; name one with --recipe")
    channels = {s.name: channel_of(s) for s in recipe.stations}
    if missing := sorted({c for c in channels.values() if c not in recording.stations}):
        raise ReplayError(
            f"{recording.path}: the recipe needs {', '.join(missing)}, and recorded are "
            f"{', '.join(recording.stations) or 'no stations'}; name them as source.channel in a recipe, with --recipe"
        )
    return recipe


def survey(recording: Recording, recipe: Recipe) -> Survey:
    """Look through the recording. Raises ReplayError for a lane of which no part was seen by all stations."""
    frames = {s.name: _numbers(recording, s) for s in recipe.stations}
    lanes = {}
    for lane in recipe.lanes:
        seen = [frames[v] for v in recipe.lane_views(lane)]
        lanes[lane] = range(max(s.first for s in seen), min(s.last for s in seen) + 1)
        if not lanes[lane]:
            views = " and ".join(recipe.lane_views(lane))
            raise ReplayError(f"{recording.path}: it has no part of lane {lane} that {views} both saw")
    unrecorded: set[tuple[str, int]] = set()
    after_gap: set[tuple[str, int]] = set()
    for station in recipe.stations:
        for number in lanes[station.lane]:
            if number not in frames[station.name].frames:
                unrecorded.add((station.name, number))
            elif any(number - back not in frames[station.name].frames for back in range(1, 2 + station.adds_up)):
                (after_gap if station.web is None else unrecorded).add((station.name, number))
    return Survey(lanes, frozenset(unrecorded), frozenset(after_gap))


def replay_recipe(
    recording: Recording, recipe: Recipe, found: Survey, *, live: bool, pictures: bool, threads: int = 0
) -> Recipe:
    """The recipe with each source replaced by the recording, and without what would reach beyond this process."""
    stations = tuple(
        s.model_copy(update={"source": _source(recording, s, found.lanes[s.lane], live)}) for s in recipe.stations
    )
    longest = {"deadline_ms": LONGEST_DEADLINE_MS, "view_timeout_ms": LONGEST_DEADLINE_MS}
    changes = {
        "stations": stations,
        "outputs": Outputs(),
        "actuators": (),
        "change_over": {},
        "recording": None,
        "engine": recipe.engine.model_copy(update={"threads": recipe.engine.threads or threads}),
        "journal": recipe.journal.model_copy(update={"reserve_mib": 1}),
        "pictures": recipe.pictures if pictures else Pictures(keep="none"),
        "deadline": recipe.deadline if live else recipe.deadline.model_copy(update=longest),
    }
    return recipe.model_copy(update=changes)


@dataclass(frozen=True)
class SetUp:
    """All that a replay needs."""

    recording: Recording
    survey: Survey
    plan: LinePlan
    """Of the line that reads the recording."""
    calibration: Calibration
    notes: tuple[str, ...]
    detectors: Mapping[str, Detector]

    @property
    def adding_up(self) -> frozenset[str]:
        """See `edge.replay.compare.compare`."""
        return frozenset(name for name, plan in self.plan.stations.items() if plan.carry is not None)


def set_up(
    recording: Recording,
    recipe: Recipe | None,
    calibration: Calibration | None,
    *,
    live: bool = False,
    pictures: bool = False,
    threads: int = 0,
) -> SetUp:
    """Work out what a recording is replayed with. `recipe`, `calibration`: instead of the recorded ones; `threads`: of
    the engine, where the recipe names none.

    Raises MasklineError, which says what is missing or does not fit.
    """
    chosen = recipe_of(recording, recipe)
    found = survey(recording, chosen)
    line = replay_recipe(recording, chosen, found, live=live, pictures=pictures, threads=threads)
    plan = plan_line(line) if recipe else _recorded_plan(recording, line)
    detectors = open_detectors(plan)
    thresholds, notes = fit_calibration(recording, calibration, plan, detectors)
    damage = tuple(f"the recording is damaged: {what}" for what in recording.damage)
    return SetUp(recording, found, plan, thresholds, (*notes, *damage), detectors)


def _recorded_plan(recording: Recording, line: Recipe) -> LinePlan:
    """The plan of the recorded recipe. Raises BundleError where a bundle is gone, or is not the one that was there."""
    recorded = recorded_bundles(recording)
    try:
        plan = plan_line(line)
    except BundleError as error:
        ran = ", ".join(f"{name}: {sha256[:12]}…" for name, sha256 in recorded.items()) or "not said"
        raise BundleError(
            f"{recording.path}: {error}. The line ran with these bundles: {ran}; put them where its recipe says, or "
            "name a recipe with --recipe"
        ) from error
    for name, sha256 in recorded.items():
        station = plan.stations.get(name)
        if station and station.bundle.sha256 != sha256:
            raise BundleError(
                f"{recording.path}: station {name} ran with the bundle {sha256[:12]}…, and {station.bundle.path} is "
                f"{station.bundle.sha256[:12]}…: its scores would be others. Put the one that it ran with there, or "
                "name a recipe with --recipe to replay with what that one names"
            )
    return plan


def recorded_bundles(recording: Recording) -> dict[str, str]:
    """Station -> hash of the bundle that the line ran with, as far as the recording says."""
    try:
        found = json.loads(recording.metadata.get("bundles", "{}"))
        return {str(k): str(v) for k, v in found.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise SourceError(f"{recording.path}: its bundles cannot be read: {error!r}") from error


def fit_calibration(
    recording: Recording, given: Calibration | None, plan: LinePlan, detectors: Mapping[str, Detector]
) -> tuple[Calibration, list[str]]:
    """The calibration to judge by, and what must be said about it.

    Thresholds that were made with another version of the library, device or instruction set are taken over: on a box
    where nothing is thrown out, an answer that may differ in its last digits is better than none. Raises
    CalibrationError where there is none, or none for this bundle, these pixels, this backend, precision or plan.
    """
    calibration = given or recording.calibration()
    if calibration is None:
        raise CalibrationError(
            f"{recording.path}: there is no calibration in this recording; name one with --calibration (a line keeps "
            "its own in its state folder; `maskline calibrate` makes one)"
        )
    stations, notes = dict(calibration.stations), []
    for name, station in plan.stations.items():
        if name not in stations:
            raise CalibrationError(f"station {name}: the calibration has no thresholds for it; calibrate again")
        here = provenance(station, detectors[name].info)
        moved = _move(stations[name], here)
        if why := mismatch(moved, here):
            raise CalibrationError(
                f"station {name}: the calibration does not hold for this recipe: {why}; calibrate with this recipe, or "
                "name another calibration with --calibration"
            )
        if why := mismatch(stations[name], here):
            notes.append(f"station {name}: thresholds are taken over from another machine: {why}")
        stations[name] = moved
    return calibration.model_copy(update={"stations": stations}) if notes else calibration, notes


def _move(limits: StationCalibration, here: Provenance) -> StationCalibration:
    changed = {name: getattr(here, name) for name in _OF_THE_MACHINE}
    return limits.model_copy(update={"provenance": limits.provenance.model_copy(update=changed)})


def channel_of(station: Station) -> str:
    """Under which name the recording has this station."""
    return (station.source.channel if station.source.kind == "recording" else None) or station.name


@dataclass(frozen=True)
class _Seen:
    """What a recording has of a station: the first and the last number, and those of its frames."""

    first: int
    last: int
    frames: frozenset[int]


def _numbers(recording: Recording, station: Station) -> _Seen:
    first, last, frames = None, -1, set()
    for event in recording.events(channel_of(station)):
        if first is not None and event.number - last > MAX_GAP:
            raise ReplayError(
                f"{recording.path}: {channel_of(station)}: part {event.number} follows part {last}; at most {MAX_GAP} "
                "numbers may be missing in a row"
            )
        first, last = event.number if first is None else min(first, event.number), max(last, event.number)
        if isinstance(event, RecordedFrame):
            frames.add(event.number)
    if first is None:
        raise ReplayError(f"{recording.path}: station {channel_of(station)} has no part in this recording")
    return _Seen(first, last, frozenset(frames))


def _source(recording: Recording, station: Station, parts: range, live: bool) -> Source:
    return Source(
        kind="recording",
        path=recording.path.absolute(),
        channel=channel_of(station),
        mode=Mode.LIVE if live else Mode.LOSSLESS,
        triggers=station.source.triggers,
        camera=station.source.camera,
        first=parts.start,
        parts=len(parts),
    )
