"""What becomes of the recorded frames of one station, in this process: the functions of prepare, detect and judge in a
row, one frame at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeGuard

import numpy as np

from calib.calibration import Calibration
from edge.detector import Detector
from edge.judge import Judge, Judgement, view_result
from edge.messages import FrameRef, ViewResult
from edge.plan import StationPlan
from edge.prepare import prepare_view
from edge.recording import Recording
from edge.replay.setup import channel_of
from edge.slab import Array
from edge.sources import Ended, Exposed, Image, Triggered, open_source
from edge.sources.folder import max_pixels
from edge.sources.images import BadImageError
from edge.verdict import Decision
from edge.webs.stitching import Stitcher

__all__ = ["Stages"]


class Stages:
    """One station. `arrays`: what a slot of the line holds, as the newest view has left it."""

    def __init__(self, plan: StationPlan, detector: Detector, calibration: Calibration) -> None:
        """`plan`: of a recipe that reads the recording (`edge.replay.setup.replay_recipe`)."""
        self.plan = plan
        self._detector, self._limits = detector, calibration.stations[plan.station.name]
        self._calibration = calibration.sha256
        self._judge = Judge(plan, self._limits)
        self.arrays: dict[str, Array] = {s.name: np.zeros(s.shape, s.dtype) for s in plan.layout.arrays}

    def views(self, wanted: Callable[[int], bool] = lambda number: True) -> Iterator[ViewResult]:
        """The answer for each frame that capture would hand to prepare, in their order; numbers begin at 0. One that is
        not wanted is not judged."""
        source, stitcher = open_source(self.plan.station, 0, 0), Stitcher(self.plan.station, 0)
        try:
            while not isinstance(event := source.poll(0), Ended):
                if isinstance(event, Triggered) and not event.missed:
                    stitcher.trigger(event.count)
                if isinstance(event, Exposed):
                    if wanted(event.number) and self._fits(event.image) and not stitcher.lost:
                        yield self._view(event.number, event.image, stitcher)
                    stitcher.keep(event.number, event.image)
        finally:
            source.close()

    def look(self, recording: Recording, number: int) -> bool:
        """Fill `arrays` with the view of one recorded part; False where its frame was not recorded, or does not fit."""
        stitcher = Stitcher(self.plan.station, 0)
        image = self._recorded(recording, number)
        if not self._fits(image):
            return False
        if self.plan.station.web is not None:
            stitcher.keep(number - 1, self._recorded(recording, number - 1))
        self._view(number, image, stitcher)
        return True

    def _recorded(self, recording: Recording, number: int) -> Image | None:
        frame = recording.frame(channel_of(self.plan.station), number)
        try:
            return frame.decode(max_pixels(self.plan.station.frame)) if frame else None
        except BadImageError:
            return None

    def _fits(self, image: Image | None) -> TypeGuard[Image]:
        frame = self.plan.station.frame
        declared = (frame.height_px, frame.width_px, frame.channels)
        return image is not None and image.shape == declared and image.dtype == frame.dtype

    def _view(self, number: int, image: Image, stitcher: Stitcher) -> ViewResult:
        arrays = self.arrays
        rows_before = stitcher.fill(number, image, arrays["frame"])
        found = prepare_view(arrays["frame"], self.plan, arrays["tiles"])
        witness, said = None, Judgement(Decision.UNINSPECTED, found.reason)
        if found.reason is None:
            witness = self._detector.infer(arrays["tiles"], arrays["reconstruction"], self._limits, rows_before, number)
            said = self._judge.judge(
                *(arrays["tiles"], arrays["reconstruction"], arrays["map"]),
                self._detector.info,
                found.place,
                rows_before,
                number,
            )
        frame = FrameRef(
            *(self.plan.station.name, number, 0, 0, 0, []),
            rows_before=rows_before,
            place=list(found.place or ()),
            engine=self._detector.info,
            witness=witness,
        )
        return view_result(frame, said, self._calibration)
