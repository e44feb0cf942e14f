"""Archive: keeps the pictures that somebody will want to look at, and deletes the oldest when they are many.

It works on slots that the judge hands to it after the result is out, so that no picture ever delays a verdict.
"""

from __future__ import annotations

import contextlib
import shutil
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

_SWEEP_EVERY = 50


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
    spec = plan.bundle.manifest.error_map
    return spec.ssim_weight + spec.l1_weight


def write_pictures(folder: Path, arrays: dict[str, NDArray[Any]], plan: StationPlan) -> None:
    """Write image.png (the frame as it came), and stitched: tiles.png, reconstruction.png, map.png (16 bit)."""
    folder.mkdir(parents=True, exist_ok=True)
    tiling, channels = plan.prepare.tiling, arrays["tiles"].shape[3]
    tiles = np.zeros((tiling.height, tiling.width, channels), np.uint8)
    repainted = np.zeros(tiles.shape, np.float32)
    errors = np.zeros(tiles.shape[:2], np.float32)
    stitch(arrays["tiles"], tiling, tiles)
    stitch(arrays["reconstruction"], tiling, repainted, "mean")
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


def delete_oldest(root: Path, keep_bytes: int) -> int:
    """Delete the oldest pictures until at most `keep_bytes` are left; returns how many views lost theirs."""
    folders = list(_oldest_first(root))
    excess, deleted = sum(size for _, size in folders) - keep_bytes, 0
    for folder, size in folders:
        if excess <= 0:
            break
        shutil.rmtree(folder, ignore_errors=True)
        excess -= size
        deleted += 1
    return deleted


def run(worker: Worker) -> None:
    """The archive process."""
    cv2.setNumThreads(1)
    worker.inbox()
    worker.ready()
    keep_bytes = worker.recipe.pictures.max_mib << 20
    root = worker.state_dir / "pictures"
    for written, frame in enumerate(worker.frames(), 1):
        _keep(worker, frame)
        worker.slab.release(frame.slot)
        if written % _SWEEP_EVERY == 0:
            delete_oldest(root, keep_bytes)


def _keep(worker: Worker, frame: FrameRef) -> None:
    """Write one view's pictures. On a full disk old pictures make room; verdicts are never at stake here."""
    folder = worker.state_dir / picture_path(worker.slab.server_id, frame.station, frame.number)
    arrays, plan = worker.slab.arrays(frame.slot), worker.plan.stations[frame.station]
    try:
        write_pictures(folder, arrays, plan)
    except OSError as error:
        worker.count("failed")
        worker.log.warning("pictures_lost", station=frame.station, number=frame.number, error=str(error))
        shutil.rmtree(folder, ignore_errors=True)
        delete_oldest(worker.state_dir / "pictures", worker.recipe.pictures.max_mib << 19)


def backlog_limit(station: Station) -> int:
    """How many of a station's slots may wait for their pictures: a slow disk must not take the line's slots."""
    return max(1, station.slots // 2)
