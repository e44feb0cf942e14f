"""Recordings as videos for people: one per station, with boxes, decision, score and part number drawn in.

H.264 in MP4, as every player and browser shows it. Parts follow each other at the pace that the line usually had; the
time of each is in its caption, so that a break in the recording is no break in the video.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import MasklineError, SourceError
from edge.export.parts import Progress, RecordedView, Recordings, StationParts, folder_made_whole
from edge.sources import Image
from edge.sources.images import BadImageError
from edge.verdict import Decision

__all__ = ["Canvas", "export_video"]

MAX_SIDE_PX = 1920
MIN_WIDTH_PX = 480
"""Smaller pictures are enlarged: a caption must be readable beside them."""

_CAPTION_PX, _LINE_PX, _MARGIN_PX = 56, 22, 8
_MAX_TEXT = 160
_RATE_HZ = (1, 30)
_PACED_BY = 200  # parts
_CODECS = ("libx264", "libopenh264", "mpeg4")
_WHITE, _BLACK, _TRUTH = (255, 255, 255), (24, 24, 24), (255, 220, 0)  # BGR, as OpenCV draws
_COLOURS = {Decision.PASS: (60, 160, 60), Decision.REJECT: (40, 40, 220), Decision.UNINSPECTED: (0, 150, 230)}

Picture = NDArray[np.uint8]


def export_video(paths: Sequence[Path], out: Path, progress: Progress = lambda text: None) -> list[str]:
    """Write OUT/STATION.mp4 for each station; returns what there is to say of it.

    The folder appears whole or not at all. Raises SourceError for what is no recording or holds no frame, and for a
    folder that is taken or cannot be written; MasklineError if the extra `video` is not installed.
    """
    _require_av()
    recordings, said = Recordings(paths), list[str]()
    with folder_made_whole(out) as made:
        for station in recordings.stations:
            met, rate = StationParts(station), _rate(recordings.times_ns(station, _PACED_BY))
            with _Video(made / f"{station}.mp4", rate) as video:
                canvas: Canvas | None = None
                for view in recordings.views(met, progress):
                    canvas = canvas or Canvas(view.image.shape[0], view.image.shape[1], recordings.simulated)
                    video.add(canvas.draw(view))
            if met.frames:
                said.append(f"{station}: {met.frames} parts at {float(rate):g} per second")
            said += met.remarks()
        if not any(made.iterdir()):
            raise SourceError(f"{', '.join(map(str, paths))}: no frame in it that could be exported")
    return [*said, *recordings.damage(), f"Videos: {out}"]


@dataclass
class Canvas:
    """What a station's video shows: its pictures in a fixed place, whatever their size, and a caption below."""

    height: int
    width: int
    simulated: bool = False
    _bits: int = 8  # of the deepest picture so far

    def __post_init__(self) -> None:
        factor = min(MAX_SIDE_PX / max(self.height, self.width), max(1, -(-MIN_WIDTH_PX // self.width)))
        self._area = (max(1, round(self.height * factor)), max(1, round(self.width * factor)))
        self.size = (_even(self._area[0] + _CAPTION_PX), _even(max(self._area[1], MIN_WIDTH_PX)))

    def draw(self, view: RecordedView) -> Picture:
        """The picture of one part: uint8 [H, W, 3], BGR."""
        canvas: Picture = np.zeros((*self.size, 3), np.uint8)
        image = self._as_bgr(view.image)
        factor = min(self._area[0] / image.shape[0], self._area[1] / image.shape[1])
        height, width = (max(1, round(side * factor)) for side in image.shape[:2])
        left = (self.size[1] - width) // 2
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
        picture = canvas[:height, left : left + width]
        picture[:] = cv2.resize(image, (width, height), interpolation=how)
        _draw_truth(picture, view)
        for box in view.said.boxes if view.said else ():
            _draw_box(picture, box, factor)
        self._caption(canvas[-_CAPTION_PX:], view)
        return canvas

    def _as_bgr(self, image: Image) -> Picture:
        """8 bits: of deeper pixels the upper ones of as many as were ever used."""
        if image.dtype == np.uint16:
            self._bits = max(self._bits, int(image.max()).bit_length())
            image = (image >> (self._bits - 8)).astype(np.uint8)
        code = cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_GRAY2BGR
        return np.asarray(cv2.cvtColor(image, code), np.uint8)

    def _caption(self, strip: Picture, view: RecordedView) -> None:
        said = view.said
        decision = (said.part or said.decision) if said else None
        strip[:] = _COLOURS[decision] if decision else _BLACK
        words = [f"part {view.frame.number}", decision.value if decision else "no decision"]
        if said:
            words += [said.reason.value] if said.reason else []
            words += [f"this view: {said.decision.value}"] if said.decision is not decision else []
            words += [f"score {said.score:.4g}"] if said.score is not None else []
            words += [f"threshold {said.threshold:.4g}"] if said.threshold is not None else []
        utc = datetime.fromtimestamp(view.frame.at_ns / 1e9, timezone.utc)
        below = [utc.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", " UTC")]
        below += ["simulated"] if self.simulated else []
        below += [f"truth: {view.truth.kind or 'bad' if view.truth.bad else 'good'}"] if view.truth else []
        for line, text in enumerate(("  ".join(words), "  ".join(below))):
            _write(strip, text, _LINE_PX * (line + 1))


def _write(strip: Picture, text: str, y: int) -> None:
    """Write text as large as it fits."""
    text = text[:_MAX_TEXT]
    font, thick, room = cv2.FONT_HERSHEY_SIMPLEX, 1, strip.shape[1] - 2 * _MARGIN_PX
    (width, _), _ = cv2.getTextSize(text, font, 0.55, thick)
    cv2.putText(strip, text, (_MARGIN_PX, y), font, 0.55 * min(1, room / max(1, width)), _WHITE, thick, cv2.LINE_AA)


def _draw_box(picture: Picture, box: Sequence[int], factor: float) -> None:
    """Draw [x, y, width, height] of the frame, a pixel outside of what it encloses."""
    x, y, width, height = (min(max(value, -1), 1 << 15) * factor for value in box)
    first, last = (round(x) - 1, round(y) - 1), (round(x + width), round(y + height))
    cv2.rectangle(picture, first, last, _COLOURS[Decision.REJECT], 1 if factor < 2 else 2)


def _draw_truth(picture: Picture, view: RecordedView) -> None:
    """Outline what is defective in truth, where that is known."""
    try:
        mask = view.truth.mask(view.image.shape[0] * view.image.shape[1]) if view.truth else None
    except BadImageError:
        return
    if mask is None:
        return
    scaled = cv2.resize(mask.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(scaled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, _TRUTH, 1)


class _Video:
    """An MP4 file that grows frame by frame; without any it is not made."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._path, self._rate = path, rate
        self._container: Any = None
        self._stream: Any = None

    def add(self, picture: Picture) -> None:
        import av

        if self._container is None:
            self._container = av.open(str(self._path), "w", options={"movflags": "+faststart"})
            codec = next(name for name in _CODECS if name in av.codecs_available)
            self._stream = self._container.add_stream(codec, rate=self._rate)
            self._stream.height, self._stream.width = picture.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "20", "preset": "veryfast"} if codec == "libx264" else {}
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))

    def __enter__(self) -> _Video:
        return self

    def __exit__(self, *_: object) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()


def _require_av() -> None:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise MasklineError(f"--video needs {error.name}: pip install 'maskline[video]'") from error


def _rate(times_ns: Sequence[int]) -> Fraction:
    """Parts per second: the usual one of these times, as far as eyes can follow."""
    intervals = [after - before for before, after in itertools.pairwise(times_ns) if after > before]
    usual = 1e9 / statistics.median(intervals) if intervals else 5.0
    return Fraction(min(max(usual, _RATE_HZ[0]), _RATE_HZ[1])).limit_denominator(1000)


def _even(value: int) -> int:
    return value + value % 2
