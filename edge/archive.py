"""Archive: keeps the pictures that somebody will want to look at, and deletes the oldest when they are many.

It works on slots that the judge hands to it after the result is out, so that no picture ever delays a verdict.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.messages import FrameRef
from edge.plan import StationPlan
from edge.settings import Pictures, Station
from edge.tiling import stitch
from edge.verdict import Decision
from edge.worker import Worker

__all__ = ["map_full_scale", "picture_path", "run", "wanted", "write_pictures"]

SWEEP_EVERY_S = 5.0


def wanted(pictures: Pictures, decision: Decision, number: int) -> bool:
    """Whether the recipe wants the pictures of this view kept."""
    if pictures.keep != "rejects":
        return pictures.keep == "all"
    nth = pictures.every_nth_pass
    return decision is not Decision.PASS or (nth > 0 and number % nth == 0)


def picture_path(server_id: int, station: str, number: int) -> str:
    """The folder of a view's pictures, relative to the state directory; unique over all starts of the line."""
    return f"pictures/{server_id:016x}/{station}/{number:08d}"


def map_full_scale(plan: StationPlan) -> float:
    """The largest value that an anomaly map of this station can have: what 65535 in its map.png stands for."""
    return plan.bundle.manifest.error_map.largest


def write_pictures(folder: Path, arrays: dict[str, NDArray[Any]], plan: StationPlan) -> None:
    """Write image.png (the frame as it came), and stitched: tiles.png, reconstruction.png, map.png (16 bit)."""
    folder.mkdir(parents=True, exist_ok=True)
    tiling, channels = plan.prepare.tiling, arrays["tiles"].shape[3]
    tiles = np.zeros((tiling.height, tiling.width, channels), np.uint8)
    repainted = np.zeros(tiles.shape, np.float32)
    errors = np.zeros(tiles.shape[:2], np.float32)
    stitch(arrays["tiles"], tiling, tiles)
    stitch(arrays["reconstruction"][..., :channels], tiling, repainted, "mean")
    stitch(arrays["map"], tiling, errors, "mean")
    _write(folder / "image.png", arrays["frame"])
    _write(folder / "tiles.png", tiles)
    _write(folder / "reconstruction.png", np.clip(repainted * 255 + 0.5, 0, 255).astype(np.uint8))
    deep = np.clip(errors * (65535 / map_full_scale(plan)), 0, 65535).astype(np.uint16)
    _write(folder / "map.png", deep[..., None])


def _write(path: Path, image: NDArray[Any]) -> None:
    bgr = image[..., ::-1] if image.shape[2] == 3 else image
    ok, data = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not ok:
        raise OSError(f"{path}: cannot be encoded as PNG")
    path.write_bytes(data.tobytes())


def _oldest_first(root: Path) -> Iterator[tuple[Path, int]]:
    """Every folder of pictures with its bytes, oldest first."""
    folders = []
    for folder in root.glob("*/*/*"):
        with contextlib.suppress(FileNotFoundError):
            folders.append((folder.stat().st_mtime_ns, folder, sum(f.stat().st_size for f in folder.iterdir())))
    for _, folder, size in sorted(folders):
        yield folder, size


def delete_oldest(root: Path, keep_bytes: int, free_bytes: int) -> int:
    """Delete the oldest pictures until at most `keep_bytes` of them are left and the disk has `free_bytes` free.

    Returns how many views lost theirs.
    """
    folders = list(_oldest_first(root))
    excess = sum(size for _, size in folders) - keep_bytes
    if root.is_dir():
        disk = os.statvfs(root)
        excess = max(excess, free_bytes - disk.f_bavail * disk.f_frsize)
    deleted = 0
    for folder, size in folders:
        if excess <= 0:
            break
        shutil.rmtree(folder, ignore_errors=True)
        excess -= size
        deleted += 1
    return deleted


class Archive:
    """The archive's disk: pictures are written, and swept whether or not any come."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._root = worker, worker.state_dir / "pictures"
        self._keep_bytes = worker.recipe.pictures.max_mib << 20
        self._next_sweep = 0.0

    def keep(self, frame: FrameRef) -> None:
        """Write one view's pictures. On a full disk old pictures make room; verdicts are never at stake here."""
        worker = self._worker
        folder = worker.state_dir / picture_path(worker.slab.server_id, frame.station, frame.number)
        try:
            write_pictures(folder, worker.slab.arrays(frame.slot), worker.plan.stations[frame.station])
        except OSError as error:
            worker.count("failed")
            worker.log.warning("pictures_lost", station=frame.station, number=frame.number, error=str(error))
            shutil.rmtree(folder, ignore_errors=True)
            self._next_sweep = 0.0

    def sweep(self) -> None:
        """Every few seconds: keep to the recipe's bound, and leave the journal room for its reserve twice."""
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + SWEEP_EVERY_S
            delete_oldest(self._root, self._keep_bytes, self._worker.recipe.journal.reserve_mib << 21)


def backlog_limit(station: Station) -> int:
    """How many of a station's slots may wait for their pictures: a slow disk must not take the line's slots."""
    return max(1, station.slots // 2)


def run(worker: Worker) -> None:
    """The archive process."""
    cv2.setNumThreads(1)
    worker.inbox()
    archive = Archive(worker)
    worker.ready()
    for frame in worker.frames(each_turn=archive.sweep):
        archive.keep(frame)
        worker.slab.release(frame.slot)
