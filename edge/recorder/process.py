"""Record: writes down what the line sees and says. It has its own slots, its own thread for the disk, and no say.

It gets each trigger and frame from capture, each answer from capture and judge, and hears the verdicts as any
subscriber does. When it is slow, dead or has no disk, frames are missing in the recording, and nothing else happens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from edge import __version__
from edge.journal import boot_id
from edge.messages import FrameRef, Heartbeat, Trigger, Verdict, ViewResult
from edge.plan import record_slots
from edge.recorder.open_recording import Frame
from edge.recorder.retention import RollFolder
from edge.recorder.rolls import Bounds
from edge.recorder.settings import RecordingSettings
from edge.recorder.slots import RecordTrouble, recording_counters
from edge.recorder.writing import Counts, Recorder
from edge.settings import Recipe
from edge.slab import Orphans
from edge.verdicts import Gap, Subscriber
from edge.worker import IDLE_MS, Worker

__all__ = ["Record", "about_recipe", "lost_with_an_earlier_one", "roll_folder", "run"]

SWEEP_NS = 250_000_000
BEHIND_NS = 5_000_000_000
"""So long after a frame or a message was left out the recording counts as behind."""
FINISH_S = 1.5
"""Within the supervisor's budget for an end."""
JOIN_S = 5.0
"""So long the first heartbeat is waited for, before parts are triggered: what the gate publishes before a subscription
has reached it is lost without a trace."""
QUIET_MS = 100
"""At the end of the line: when nothing came for so long, nothing is on its way."""


class Record:
    """The recorder of a line, as a process of it."""

    def __init__(self, worker: Worker) -> None:
        settings = worker.recipe.recording
        assert settings is not None, "the process table has no recorder for a line that does not record"
        self.worker, self._slab, self._me = worker, worker.slab, worker.process.index
        self._orphans, self._held = Orphans(worker.slab, self._me), dict[int, None]()
        self._next_sweep_ns = self._behind_until_ns = self._left_out = 0
        self.epoch, self.run, self.gaps = "", 0, 0
        self._calibration = worker.calibration()
        self.recorder = Recorder(
            roll_folder(worker, settings),
            settings,
            self._about,
            calibration=self._calibration.to_bytes() if self._calibration else None,
            first_numbers={s.name: worker.numbered(s.name) for s in worker.recipe.stations},
            at_end=self._at_end,
        )
        self._before = {name: int(self._row[name]) for name in ("done", "frames_unrecorded", "messages_unrecorded")}
        self._before["frames_unrecorded"] += lost_with_an_earlier_one(worker)

    @property
    def _row(self) -> Mapping[str, int]:
        row: Mapping[str, int] = self._slab.row(self._me)
        return row

    def turn(self, verdicts: Subscriber, wait_ms: int) -> bool:
        """Take what has come; whether anything has."""
        self.worker.beat()
        messages = self.worker.receive(wait_ms, Trigger, ViewResult, FrameRef)
        for message in messages:
            if isinstance(message, FrameRef):
                self._take(message)
            else:
                self.recorder.put(message)
        heard = verdicts.poll(0)
        for event in heard:
            if isinstance(event, Verdict):
                self.epoch, self.run = event.epoch, event.run
                self.recorder.put(event)
            elif isinstance(event, Heartbeat):
                self.epoch = event.epoch
            elif isinstance(event, Gap):
                self.gaps += event.last - event.first + 1
        self._sweep(time.monotonic_ns())
        return bool(messages) or any(isinstance(e, Verdict) for e in heard)

    def finish(self, verdicts: Subscriber) -> None:
        """The line ends: take what is on its way, and close the recording."""
        give_up = time.monotonic() + FINISH_S
        while time.monotonic() < give_up and self.turn(verdicts, QUIET_MS):
            pass
        whole = self.recorder.finish(max(0.1, give_up - time.monotonic()))
        self._say_how_it_goes(time.monotonic_ns())
        say = self.worker.log.info if whole else self.worker.log.error
        say("recording_ended", whole=whole, frames=int(self._row["done"]), **recording_counters(self.worker))

    def _take(self, ref: FrameRef) -> None:
        if ref.slot in self._held or not self._slab.holds(ref.slot, ref.generation, self._me):
            self.worker.count("stale")
            return
        self._held[ref.slot] = None
        image = self._slab.arrays(ref.slot)["frame"]
        self.recorder.put(Frame(ref.station, ref.number, ref.stamps[0], image, lambda: self._release(ref.slot)))

    def _release(self, slot: int) -> None:
        """The recorder's thread is done with a slot. Forgotten first: once it is free, it may come back at once."""
        del self._held[slot]
        self._slab.release(slot)

    def _sweep(self, now_ns: int) -> None:
        if now_ns < self._next_sweep_ns:
            return
        self._next_sweep_ns = now_ns + SWEEP_NS
        if lost := self._orphans.release(list(self._held), now_ns):
            self.worker.log.warning("orphaned_slots_released", slots=lost)
            self._before["frames_unrecorded"] += len(lost)
        if not self.recorder.alive:
            raise RuntimeError("the thread that writes the recording has died; its traceback is above")
        self._say_how_it_goes(now_ns)

    def _say_how_it_goes(self, now_ns: int) -> None:
        """Put counters and trouble where the gate sees them; say in the log when something begins to be left out."""
        self._tell(self.recorder.counts)
        counters = recording_counters(self.worker)
        left_out = sum(counters.values())
        if left_out > self._left_out:
            if now_ns > self._behind_until_ns and self.recorder.trouble is RecordTrouble.NO:
                self.worker.log.warning(
                    "not_all_recorded", **counters, why="the disk is too slow, or what came does not fit"
                )
            self._behind_until_ns = now_ns + BEHIND_NS
        elif self._behind_until_ns and now_ns > self._behind_until_ns:
            self._behind_until_ns = 0
            self.worker.log.info("recording_caught_up", **counters)
        self._left_out = left_out
        behind = RecordTrouble.BEHIND if self._behind_until_ns else RecordTrouble.NO
        self._slab.row(self._me)["trouble"] = self.recorder.trouble or behind

    def _tell(self, counts: Counts) -> None:
        """Put what was counted, by this recorder and those before it, where the gate sees it."""
        row = self._slab.row(self._me)
        row["done"] = self._before["done"] + counts.frames
        row["frames_unrecorded"] = self._before["frames_unrecorded"] + counts.frames_lost
        row["messages_unrecorded"] = self._before["messages_unrecorded"] + counts.messages_lost + self.gaps

    def _about(self) -> dict[str, str]:
        """What a recording of this line says of itself when it begins."""
        plan, calibration = self.worker.plan, self._calibration
        return about_recipe(self.worker.recipe) | {
            "bundles": json.dumps({name: p.bundle.sha256 for name, p in plan.stations.items()}),
            "calibration_sha256": calibration.sha256 if calibration else "",
            "epoch": self.epoch,
        }

    def _at_end(self, counts: Counts) -> dict[str, str]:
        """What is known only when it is closed; counts are those since the start of the line."""
        self._tell(counts)
        counters = {name: str(count) for name, count in recording_counters(self.worker).items()}
        return {"epoch": self.epoch, "run": str(self.run), "frames": str(int(self._row["done"])), **counters}


def about_recipe(recipe: Recipe) -> dict[str, str]:
    """What a recording says of the line, its recipe, and the box that it was made on."""
    return {
        "line": recipe.line,
        "stations": json.dumps([s.name for s in recipe.stations]),
        "recipe": recipe.model_dump_json(),
        "recipe_sha256": recipe.sha256,
        "simulated": "true" if recipe.simulated else "false",
        "maskline_version": __version__,
        "boot_id": boot_id(),
    }


def roll_folder(worker: Worker, settings: RecordingSettings) -> RollFolder:
    """Where this line records. More of the disk than the archive leaves stays free: pictures outlive recordings."""
    bounds = Bounds(settings.roll_mib << 20, settings.max_mib << 20, settings.marked_mib << 20)
    folder = settings.folder or worker.state_dir / "recordings"
    return RollFolder(folder, worker.recipe.line, bounds, worker.recipe.journal.reserve_mib << 22)


def lost_with_an_earlier_one(worker: Worker) -> int:
    """Frames that were in the hands of a recorder of this line when it died: in its open chunk or in its slots."""
    offered = sum(int(worker.slab.row(p.index)["frames_offered"]) for p in worker.plan.processes)
    slots = [s for station in worker.plan.stations for s in worker.slab.station_slots[record_slots(station)]]
    waiting = sum(not worker.slab.is_free(slot) for slot in slots)
    accounted = int(worker.slab.row(worker.process.index)["done"]) + recording_counters(worker)["frames_unrecorded"]
    return max(0, offered - accounted - waiting)


def run(worker: Worker) -> None:
    """The recording process."""
    worker.inbox()
    record = Record(worker)
    with Subscriber(worker.verdict_endpoint, worker.recipe.line) as verdicts:
        record.recorder.start()
        give_up = time.monotonic() + JOIN_S
        while not record.epoch and not worker.stopping and time.monotonic() < give_up:
            record.turn(verdicts, IDLE_MS)
        worker.ready()
        while not worker.stopping:
            record.turn(verdicts, IDLE_MS)
        record.finish(verdicts)
