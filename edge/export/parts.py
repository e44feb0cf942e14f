"""What recordings know of each view: its frame, what the line said of it, and the truth where it is known.

Rolls of one run belong together: what one of them says of a part is found in whichever of them it stands.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge.errors import SourceError
from edge.messages import Boxes, View, ViewResult
from edge.recorder.open_recording import END
from edge.recording import RecordedFrame, RecordedTrigger, RecordedTruth, Recording
from edge.settings import Station
from edge.sources import Image
from edge.sources.folder import max_pixels
from edge.sources.images import MAX_PIXELS, BadImageError, quiet_opencv
from edge.verdict import Decision, Reason

__all__ = ["Progress", "RecordedView", "Recordings", "Said", "StationParts", "folder_made_whole", "safe_name"]

Progress = Callable[[str], None]

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_SAYS_EVERY = 25
_NAMED = 5
"""So many frames that do not decode are named one by one; the others are counted."""


@dataclass(frozen=True)
class Said:
    """What the line said of one view, and of the part that it belongs to."""

    decision: Decision
    reason: Reason | None
    score: float | None
    threshold: float | None
    boxes: Boxes
    part: Decision | None  # as it was published; None where no verdict was recorded


@dataclass(frozen=True)
class RecordedView:
    """One view that has a frame."""

    name: str  # of recording and part, to name a file after
    frame: RecordedFrame
    image: Image
    said: Said | None
    truth: RecordedTruth | None


@dataclass
class StationParts:
    """What was met on the way through one station."""

    station: str
    frames: int = 0
    frameless: set[tuple[str, str, int]] = field(default_factory=set)
    """Parts, by run and number, that were triggered and have no frame in the recordings."""
    bad: list[str] = field(default_factory=list)
    """Frames that do not decode, and why."""

    def remarks(self) -> list[str]:
        """What a person should know about what is missing."""
        said = [f"{self.station}: {len(self.frameless)} parts without a frame"] if self.frameless else []
        if self.bad:
            said.append(f"{self.station}: {len(self.bad)} frames left out, for they do not decode:")
            said += [f"  {what}" for what in self.bad[:_NAMED]]
            said += [f"  and {len(self.bad) - _NAMED} more"] if len(self.bad) > _NAMED else []
        return said


class Recordings:
    """Recordings that are exported together. Raises SourceError for what is no recording or is named twice."""

    def __init__(self, paths: Sequence[Path]) -> None:
        quiet_opencv()
        names = [path.stem for path in paths]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SourceError(f"recordings called {', '.join(twice)} are named twice: files are named after them")
        self._all = [Recording(path) for path in paths]
        self._runs = {recording.path: _run(recording) for recording in self._all}
        self.stations = sorted({station for recording in self._all for station in recording.stations})
        self._parts: dict[tuple[str, str, str, int], Decision] = {}
        self._views: dict[tuple[str, str, str, int], ViewResult | View] = {}
        for recording in self._all:
            self._listen(recording)

    @property
    def simulated(self) -> bool:
        """Whether any of them says that no camera was there."""
        return any(recording.metadata.get("simulated") == "true" for recording in self._all)

    def times_ns(self, station: str, most: int) -> list[int]:
        """When the first parts of a station were triggered."""
        times: list[int] = []
        for recording in self._all:
            for event in recording.events(station):
                if isinstance(event, RecordedTrigger):
                    times.append(event.at_ns)
                if len(times) == most:
                    return times
        return times

    def views(self, met: StationParts, progress: Progress) -> Iterator[RecordedView]:
        """The views of a station that have a frame, in order; what has none is counted in `met`."""
        for recording in self._all:
            if met.station in recording.stations:
                yield from self._views_of(recording, met, progress)

    def damage(self) -> list[str]:
        """What could not be read, in words; to ask for after reading."""
        return [f"{recording.path}: {what}" for recording in self._all for what in recording.damage]

    def _views_of(self, recording: Recording, met: StationParts, progress: Progress) -> Iterator[RecordedView]:
        truths, station = recording.truths(met.station), _station(recording, met.station)
        # Boxes count from the rows above each frame of a web, which are those of the one before, and not in it.
        rows_above = station.web.overlap_px if station and station.web else 0
        most_pixels = max_pixels(station.frame) if station else MAX_PIXELS
        run, last = self._runs[recording.path], -1
        for event in recording.events(met.station):
            if isinstance(event, RecordedTrigger):
                met.frameless.add((*run, event.number))
                continue
            met.frameless.discard((*run, event.number))
            try:
                if event.number <= last:
                    raise BadImageError(f"follows part {last}")
                image = event.decode(most_pixels)
            except BadImageError as error:
                met.bad.append(f"{recording.path.name}: part {event.number}: {error}")
                continue
            finally:
                last = max(last, event.number)
            if met.frames % _SAYS_EVERY == 0:
                progress(f"{met.station}: part {event.number} of {recording.path.name}")
            met.frames += 1
            said = self._said(recording, met.station, event.number, rows_above)
            name = f"{safe_name(recording.path.stem)}_{event.number:08d}"
            yield RecordedView(name, event, image, said, truths.get(event.number))

    def _listen(self, recording: Recording) -> None:
        """Collect decisions. What judge said of a view goes before what the gate made of it when it was late."""
        run = self._runs[recording.path]
        for _, result in recording.results():
            self._views.setdefault((*run, result.station, result.number), result)
        for verdict in recording.verdicts():
            for view in verdict.views:
                key = (*run, view.station, verdict.part)
                self._parts.setdefault(key, verdict.decision)
                self._views.setdefault(key, view)

    def _said(self, recording: Recording, station: str, number: int, rows_above: int) -> Said | None:
        key = (*self._runs[recording.path], station, number)
        view = self._views.get(key)
        if view is None:
            return None
        boxes = [[x, max(0, y - rows_above), w, min(h, y + h - rows_above)] for x, y, w, h in _whole(view.boxes)]
        boxes = [box for box in boxes if box[3] > 0]
        return Said(view.decision, view.reason, view.score, view.threshold, boxes, self._parts.get(key))


def _run(recording: Recording) -> tuple[str, str]:
    """Which run of which line a recording is of. One that does not say so, or was cut, stands for itself."""
    end = dict(recording.metadata_records).get(END, {})
    return (end["epoch"], end["run"]) if {"epoch", "run"} <= end.keys() else ("", str(recording.path))


def _whole(boxes: Boxes) -> Boxes:
    return [box for box in boxes if len(box) == 4]


def _station(recording: Recording, name: str) -> Station | None:
    """What the recipe of a recording says of a station; None without one, as in an import."""
    with contextlib.suppress(SourceError, KeyError):
        recipe = recording.recipe()
        return recipe.station(name) if recipe else None
    return None


def safe_name(name: str) -> str:
    """A name for a file or folder, whatever a recording says: no path, nothing hidden, never empty."""
    return _UNSAFE.sub("_", name).lstrip(".")[:100] or "_"


@contextlib.contextmanager
def folder_made_whole(out: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name `out` when everything is in it, or vanishes. Raises SourceError."""
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SourceError(f"--out {out}: there is something already; name a folder that is new or empty")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            made = Path(scratch) / out.name
            made.mkdir()
            yield made
            made.replace(out)
    except OSError as error:
        raise SourceError(f"--out {out}: cannot write there: {error.strerror or error}") from error
