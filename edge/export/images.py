"""Recordings as folders of images in MVTec-AD's layout, a category for each station; `calib.datasets` describes it.

Where a recording knows the truth, that is what sorts its images. Elsewhere it is the line's own decision, which is an
opinion: somebody should look through these folders before anything is learnt from them. Masks are written of truths
only; the boxes that the line drew are in parts.csv.
"""

from __future__ import annotations

import contextlib
import csv
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from edge.errors import SourceError
from edge.export.parts import Progress, RecordedView, Recordings, StationParts, folder_made_whole, safe_name
from edge.recording import RecordedTruth
from edge.recording.frames import encode_frame
from edge.sources import Image
from edge.sources.images import BadImageError
from edge.verdict import Decision

__all__ = ["TEST_EVERY", "export_images"]

TEST_EVERY = 4
"""Every fourth good image goes to test/good, the others to train/good."""

GOOD = "good"
UNSORTED = "unsorted"
"""Images of which nothing is known: no truth, and no decision."""

_COLUMNS = ("file", "part", "utc", "truth", "published", "decision", "reason", "score", "threshold", "boxes")


def export_images(paths: Sequence[Path], out: Path, progress: Progress = lambda text: None) -> list[str]:
    """Write OUT/STATION/{train,test,ground_truth,...} and OUT/STATION/parts.csv; returns what there is to say of it.

    The folder appears whole or not at all. Raises SourceError for what is no recording or holds no frame, and for a
    folder that is taken or cannot be written.
    """
    recordings = Recordings(paths)
    said: list[str] = []
    with folder_made_whole(out) as made:
        for station in recordings.stations:
            met = StationParts(station)
            with contextlib.closing(_Category(made / station)) as category:
                for view in recordings.views(met, progress):
                    category.add(view)
            said += [f"{station}: {category.summary()}", *met.remarks()]
        if not any(made.glob("*/*/")):
            raise SourceError(f"{', '.join(map(str, paths))}: no frame in it that could be exported")
    return [*said, *recordings.damage(), f"Images: {out}"]


class _Category:
    """The folder of one station."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._counts = folder, Counter[str]()
        folder.mkdir()
        self._file = (folder / "parts.csv").open("w", encoding="utf-8", newline="")
        self._table = csv.writer(self._file)
        self._table.writerow(_COLUMNS)

    def add(self, view: RecordedView) -> None:
        """Write a view's image, its mask where there is one, and its row."""
        kind = _kind(view)
        place = self._place(kind)
        path = self._file_in(place, f"{view.name}{_suffix(view)}")
        path.write_bytes(view.frame.data if view.frame.encoding in ("png", "jpeg") else _png(view.image))
        self._counts[place] += 1
        if place == f"test/{kind}" and view.truth is not None and (mask := _mask(view.truth, view.image)) is not None:
            self._file_in(f"ground_truth/{kind}", f"{view.name}_mask.png").write_bytes(_png(mask))
        self._table.writerow(_row(f"{place}/{path.name}", view))

    def summary(self) -> str:
        """How many images went where."""
        return ", ".join(f"{count} {place}" for place, count in sorted(self._counts.items())) or "no images"

    def close(self) -> None:
        self._file.close()

    def _place(self, kind: str) -> str:
        if kind == GOOD:
            good = self._counts["train/good"] + self._counts["test/good"]
            return "test/good" if good % TEST_EVERY == TEST_EVERY - 1 else "train/good"
        return kind if kind.startswith((UNSORTED, "uninspected/")) else f"test/{kind}"

    def _file_in(self, place: str, name: str) -> Path:
        folder = self._folder / place
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name


def _kind(view: RecordedView) -> str:
    """`good`, the kind of defect, `reject`, or what is neither and belongs to no category."""
    if view.truth is not None:
        kind = safe_name(view.truth.kind or "defect")
        return GOOD if not view.truth.bad else f"defect_{kind}" if kind == GOOD else kind
    if view.said is None:
        return UNSORTED
    if view.said.decision is Decision.UNINSPECTED:
        return f"uninspected/{view.said.reason.value if view.said.reason else 'unknown'}"
    return GOOD if view.said.decision is Decision.PASS else "reject"


def _suffix(view: RecordedView) -> str:
    return ".jpg" if view.frame.encoding == "jpeg" else ".png"


def _mask(truth: RecordedTruth, image: Image) -> Image | None:
    """Where the defect is, 0 or 255 [H, W, 1]; None where that is not known, or does not fit its image."""
    try:
        mask = truth.mask(image.shape[0] * image.shape[1])
    except BadImageError:
        return None
    return mask[..., None].astype(np.uint8) * 255 if mask is not None and mask.shape == image.shape[:2] else None


def _row(file: str, view: RecordedView) -> tuple[object, ...]:
    utc = datetime.fromtimestamp(view.frame.at_ns / 1e9, timezone.utc).isoformat(timespec="milliseconds")
    truth = "" if view.truth is None else "bad" if view.truth.bad else GOOD
    if (said := view.said) is None:
        return (file, view.frame.number, utc, truth, *[""] * (len(_COLUMNS) - 4))
    boxes = "; ".join(" ".join(map(str, box)) for box in said.boxes)
    published, reason = said.part.value if said.part else "", said.reason.value if said.reason else ""
    return (
        *(file, view.frame.number, utc, truth, published, said.decision.value, reason),
        *(said.score, said.threshold, boxes),
    )


def _png(image: Image) -> bytes:
    return bytes(encode_frame(image, "png", 0)["data"])
