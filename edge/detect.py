"""Detect: the one process that runs engines. Repaints the tiles of each frame, in the slot.

One turn of its loop: take the frames that have come, run the batch whose time has come (`edge.batching`), pass on the
frames that are done.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Iterable, Iterator

from msgspec.structs import replace

from edge.batching import Batch, Piece, Schedule, Share, SideBySide
from edge.detector import Detector, Doubt, open_detectors
from edge.errors import EXIT_STALE, StaleEngineError
from edge.ledger import MARGIN_NS
from edge.messages import FrameRef
from edge.plan import StationPlan
from edge.processes import JUDGE
from edge.settings import Engine, Mode
from edge.verdict import Reason
from edge.worker import IDLE_MS, Worker
from engines.backends import Backend

__all__ = ["Serving", "run"]

FAILURES_IN_A_ROW = 3
"""An engine that fails so often is started anew, with its process."""

JUDGES_SHARE = 4
"""No frame waits for others into the last quarter of its deadline: that belongs to judge and gate."""


def _side_by_side(settings: Engine, stations: list[StationPlan]) -> SideBySide:
    """Room for the largest frame of these stations, and for those that fill up its last batch."""
    most, tile = max(s.prepare.tiles_shape[0] for s in stations), stations[0].prepare.tiles_shape[1:]
    shape = (-(-most // settings.batch) * settings.batch, *tile)
    return SideBySide(shape, stations[0].bundle.manifest.answer_shape(shape))


def _cost_ns(backend: Backend, arrays: SideBySide, batch: int) -> int:
    """What one batch takes, tried on grey tiles. 0 where a batch is one tile, and no tile waits for others."""
    if batch == 1:
        return 0
    grey = arrays.tiles[:batch]
    grey.fill(128)
    began_ns = time.monotonic_ns()
    backend.infer(grey, arrays.answers[:batch])
    return time.monotonic_ns() - began_ns


def _again(detector: Detector) -> Backend | Detector:
    """Who looks again at what is in doubt."""
    return detector if detector.asks_for_blocks else detector.exact


class Serving:
    """The frames that are in detect's hands, on their way through the engines."""

    def __init__(self, worker: Worker) -> None:
        """Open the engines. Raises MasklineError when one cannot be had."""
        self._worker, recipe = worker, worker.recipe
        self._detectors = open_detectors(worker.plan)
        calibration = worker.calibration()
        self._limits = calibration.stations if calibration else {}
        users: dict[Backend, list[StationPlan]] = {}
        for detector in self._detectors.values():
            for backend in filter(None, (detector.cheap, detector.exact)):
                users.setdefault(backend, []).append(detector.plan)
        self._engines = {backend: _side_by_side(recipe.engine, stations) for backend, stations in users.items()}
        batch = recipe.engine.batch
        # Whole tiles go through an engine; blocks that are in doubt are for the detector that knows which.
        costs: dict[Backend | Detector, tuple[int, int]] = dict.fromkeys(self._detectors.values(), (1, 0))
        costs |= {b: (batch, _cost_ns(b, e, batch)) for b, e in self._engines.items()}
        self._schedule = Schedule(costs)
        self._frames: dict[int, FrameRef] = {}
        self._doubts: dict[int, Doubt] = {}
        self._in_order = {name for name, d in self._detectors.items() if d.plan.carry is not None}
        self._done: dict[int, FrameRef] = {}  # those that wait for an earlier one
        self._deadline_ns = recipe.deadline.deadline_ms * 1_000_000
        self._after_ns = MARGIN_NS + self._deadline_ns // JUDGES_SHARE
        self._failures, self._warned = 0, False

    def slots(self) -> Collection[int]:
        """The slots of the frames that are here."""
        return self._frames.keys() | self._done.keys()

    def wait_ms(self) -> int:
        """How long more frames may be waited for."""
        start_by_ns = self._schedule.start_by_ns()
        if start_by_ns is None:
            return IDLE_MS
        return max(0, min(IDLE_MS, (start_by_ns - time.monotonic_ns()) // 1_000_000))

    def add(self, frame: FrameRef) -> None:
        """Take a frame; one that cannot be inspected goes on at once."""
        self._frames[frame.slot] = frame
        if frame.reason is not None:
            self._pass_on(frame.slot, frame.reason)
            return
        detector = self._detectors[frame.station]
        first, count = detector.first(self._limits.get(frame.station)), detector.plan.prepare.tiles_shape[0]
        again_ns = self._schedule.cost_ns(_again(detector), count) if first is detector.cheap else 0
        self._schedule.add(
            first,
            frame.slot,
            range(count),
            deadline_ns=self._deadline_of(frame),
            then_ns=again_ns + self._after_ns,
            patient=self._may_wait(frame),
        )

    def turn(self) -> None:
        """Run the batch whose time has come; keep the engines warm when there is nothing to do.

        Raises RuntimeError when an engine fails again and again.
        """
        batch = self._schedule.take(time.monotonic_ns(), hurry=self._nobody_comes())
        if batch is None:
            if not self._frames:
                for backend in self._engines:
                    backend.keep_warm()
            return
        failures, witness = self._failures, None
        with self._answering_for([s.frame for s in batch.shares]):
            witness = self._repaint(batch)
        for share in batch.shares:
            if share.last and share.frame in self._frames:
                self._go_on(batch.engine, share, witness)
        if self._failures == failures:
            self._failures = 0
        elif self._failures >= FAILURES_IN_A_ROW:
            raise RuntimeError(f"the engine failed {self._failures} times in a row")

    def _deadline_of(self, frame: FrameRef) -> int:
        return frame.at_ns + self._deadline_ns

    def _may_wait(self, frame: FrameRef) -> bool:
        """Whether a frame may wait for others. A lossless source waits for it; and when fewer than half of the
        station's slots are free, the next trigger may find none."""
        slots = self._worker.slab.station_slots[frame.station]
        free = sum(self._worker.slab.is_free(s) for s in slots)
        return self._detectors[frame.station].plan.station.source.mode is Mode.LIVE and 2 * free >= len(slots)

    def _nobody_comes(self) -> bool:
        ended = (self._worker.source_ended(name) for name in self._detectors)
        return bool(self._worker.line_ending) or all(ended)

    def _repaint(self, batch: Batch[Backend | Detector]) -> int | None:
        began_ns = time.monotonic_ns()
        pieces, witness = [self._piece(share) for share in batch.shares], None
        if isinstance(batch.engine, Detector):
            for share, piece in zip(batch.shares, pieces, strict=True):
                batch.engine.look_again(piece.tiles, piece.answers, self._doubts.pop(share.frame))
        else:
            witness = self._engines[batch.engine].through(batch.engine.infer, pieces)
        spent_ns = time.monotonic_ns() - began_ns
        self._schedule.took(batch.engine, batch.rounds, spent_ns)
        if spent_ns > self._deadline_ns and not self._warned:
            self._warned = True  # once: what it means for each part stands in the verdicts
            deadline_ms = self._worker.recipe.deadline.deadline_ms
            self._worker.log.warning(
                "engine_slower_than_deadline", took_ms=round(spent_ns / 1e6), deadline_ms=deadline_ms
            )
        return witness

    def _piece(self, share: Share) -> Piece:
        arrays = self._worker.slab.arrays(share.frame)
        return Piece(arrays["tiles"], arrays["reconstruction"], share.tiles)

    def _go_on(self, engine: Backend | Detector, share: Share, witness: int | None) -> None:
        """What follows for a frame that an engine is done with: the exact engine for what is in doubt, or the judge."""
        frame, doubt = self._frames[share.frame], None
        detector = self._detectors[frame.station]
        if engine is detector.cheap:
            piece = self._piece(share)
            with self._answering_for([frame.slot]):
                limits = self._limits.get(frame.station)
                doubt = detector.doubtful(piece.tiles, piece.answers, limits, frame.rows_before)
        if doubt and doubt.tiles:
            self._doubts[frame.slot] = doubt
            deadline_ns = self._deadline_of(frame)
            self._schedule.add(_again(detector), frame.slot, doubt.tiles, deadline_ns=deadline_ns, patient=False)
        elif frame.slot in self._frames:
            self._pass_on(frame.slot, None, witness)

    @contextlib.contextmanager
    def _answering_for(self, slots: Iterable[int]) -> Iterator[None]:
        """Whatever the block throws: these frames get their reason and go on, the next ones get their chance."""
        try:
            yield
        except Exception:
            parts = [f"{f.station} {f.number}" for f in map(self._frames.__getitem__, slots)]
            self._worker.log.exception("engine_error", parts=parts)
            self._failures += 1
            for slot in slots:
                self._worker.count("failed")
                self._schedule.drop(slot)
                self._pass_on(slot, Reason.ENGINE_ERROR)

    def _pass_on(self, slot: int, reason: Reason | None, witness: int | None = None) -> None:
        frame = self._frames.pop(slot)
        self._doubts.pop(slot, None)
        info, stamps = self._detectors[frame.station].info, [*frame.stamps, time.monotonic_ns()]
        self._done[slot] = replace(frame, reason=reason, witness=witness, engine=info, stamps=stamps)
        for done in sorted(self._done.values(), key=lambda f: f.number):
            if not self._must_wait(done):
                self._worker.pass_on(self._done.pop(done.slot), JUDGE)
                self._worker.count("done")

    def _must_wait(self, done: FrameRef) -> bool:
        """Whether an earlier frame is still with an engine. That matters where areas are added up from frame to frame:
        the exact engine of a cascade is asked for some frames and not for others."""
        earlier = (f.station == done.station and f.number < done.number for f in self._frames.values())
        return done.station in self._in_order and any(earlier)


def run(worker: Worker) -> None:
    """The detect process. It ends with EXIT_STALE when an engine must be built first: the supervisor sees to that."""
    worker.inbox()
    worker.beat()
    try:
        serving = Serving(worker)
    except StaleEngineError as error:
        worker.log.warning("engine_stale", why=str(error))
        sys.exit(EXIT_STALE)
    worker.ready()
    for frames in worker.turns(serving.wait_ms, serving.slots):
        for frame in frames:
            serving.add(frame)
        serving.turn()
