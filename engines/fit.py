"""Fits a network to a folder of good images: `maskline fit`. Needs the extra `train`.

Some hundred steps on crops of the user's own texture, from a bundle's weights or from fresh ones: minutes on two cores.
The run can be stopped at any time; the same call goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edge.errors import MasklineError, SourceError
from engines.bundle import GRAPH, Bundle, Manifest, Trained, find_bundle, load_bundle
from engines.export import export_bundle, load_model
from engines.networks import Network, build
from engines.registry import ENGINES, Fitting
from engines.training import Schedule, Trainer, montage, write_picture

__all__ = ["Start", "draw_curve", "fit", "from_bundle", "from_scratch", "load_good"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
MIB_AT_ONCE = 1024
SHOWN = 6

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Start:
    """What fitting begins with; `network` is trained in place."""

    network: Network
    manifest: Manifest
    base: str = ""
    """Name and hash of the bundle that the weights come from; empty for fresh weights."""


def from_bundle(name: str | Path) -> Start:
    """Goes on from a bundle: one that ships, by name, or a path. Raises BundleError."""
    bundle = load_bundle(find_bundle(name))
    return Start(load_model(bundle), bundle.manifest, f"{bundle.manifest.name} {bundle.sha256}")


def from_scratch(
    engine: str, *, size: str | None = None, tile_px: int | None = None, channels: int = 1, seed: int = 0
) -> Start:
    """Fresh weights, or those of the bundle that this engine starts from, if size and tile are left as they are.

    Raises MasklineError for an engine or size that does not exist, or a tile that the network cannot have.
    """
    kind = ENGINES.get(engine)
    if kind is None:
        raise MasklineError(f"--engine {engine!r}: there is no such engine; there are: {', '.join(ENGINES)}")
    if kind.base and (size, tile_px, channels) == (None, None, 1):
        return from_bundle(kind.base)
    size = size or next(iter(kind.sizes))
    if size not in kind.sizes:
        raise MasklineError(f"--size {size!r}: engine {engine!r} has the sizes {', '.join(kind.sizes)}")
    changes = {"channels": channels} | ({} if tile_px is None else {"tile_px": tile_px})
    plain = kind.sizes[size]
    try:
        architecture = type(plain).model_validate(plain.model_dump() | changes)
    except ValidationError as error:
        raise MasklineError(f"engine {engine!r}: {error.errors(include_url=False)[0]['msg']}") from error
    torch.manual_seed(seed)
    manifest = Manifest(
        name=engine,
        architecture=architecture,
        plans=architecture.plans,
        error_map=kind.error_map,
        score=kind.score,
        licence="yours: the weights come from your images alone",
        files={GRAPH: "0" * 64},
    )
    return Start(build(architecture), manifest)


def fit(
    good: Path, start: Start, out: Path, fitting: Fitting | None = None, *, name: str | None = None, quiet: bool = False
) -> Bundle:
    """Fits the network of `start` to the images in `good` and writes the bundle `out`.

    Beside the network, `out` gets `loss.png` (the network's error over steps; images held out in green) and
    `repainted.png` (held-out crops above what the network makes of them). Raises SourceError for images that cannot be
    used, MasklineError for a checkpoint of another run.
    """
    fitting, manifest = fitting or Fitting(), start.manifest
    images = load_good(good, manifest)
    held_out = images[:: max(2, min(10, len(images)))] if len(images) > 1 else images
    kept = [image for k, image in enumerate(images) if k % max(2, min(10, len(images)))] or images
    work = out.with_name(out.name + ".fit")
    trainer = Trainer(start.network, _schedule(fitting), fitting.average)
    losses = _resume(trainer, work, {"fitting": asdict(fitting), "start": start.base or manifest.sha256})
    shown = torch.from_numpy(_crops(held_out, manifest.tile_px, SHOWN, np.random.default_rng(fitting.seed)))
    with _bar(fitting.steps, trainer.step, quiet) as advance:
        while trainer.step < fitting.steps:
            rng = np.random.default_rng([fitting.seed, trainer.step])
            side = trainer.model.architecture.crop_px(trainer.step / fitting.steps)
            count = round(fitting.batch * (manifest.tile_px / side) ** 2)  # small crops, as many as cost the same
            losses["seen"].append(trainer.train_step(torch.from_numpy(_crops(kept, side, count, rng)), rng))
            if trainer.step % fitting.every == 0 or trainer.step == fitting.steps:
                losses["held_out"].append(montage(trainer.averaged, shown)[1])
                _checkpoint(trainer, work, losses)
            advance(losses["seen"][-1])
    data = f"{len(images)} images of {good.name}"
    trained = Trained(steps=fitting.steps, seed=fitting.seed, data=data, base=start.base)
    fresh = manifest.model_copy(update={"name": name or out.name, "trained": trained})
    bundle = export_bundle(out, trainer.averaged, fresh)
    write_picture(out / "loss.png", draw_curve(losses["seen"], losses["held_out"], fitting.every))
    write_picture(out / "repainted.png", montage(trainer.averaged, shown)[0])
    shutil.rmtree(work, ignore_errors=True)
    return bundle


def load_good(folder: Path, manifest: Manifest) -> list[Pixels]:
    """The images of a folder, sorted by name, uint8 [H, W, C] with the bundle's channels, its window applied to deep
    ones.

    Raises SourceError that names the file that is missing, unreadable or smaller than a tile.
    """
    if not folder.is_dir():
        raise SourceError(f"--good {folder}: there is no such folder; name one with images of good parts")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise SourceError(f"--good {folder}: no images in it (looked for {', '.join(sorted(SUFFIXES))})")
    images, total = [], 0
    for path in paths:
        images.append(_load(path, manifest))
        total += images[-1].nbytes
        if total > MIB_AT_ONCE << 20:
            break
    return images


def _load(path: Path, manifest: Manifest) -> Pixels:
    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if raw is None:
        raise SourceError(f"image {path} does not decode; remove it or save it again")
    if min(raw.shape[:2]) < manifest.tile_px:
        raise SourceError(
            f"image {path} is {raw.shape[1]} x {raw.shape[0]}, expected at least {manifest.tile_px} each way"
        )
    image = np.asarray(raw)
    if image.dtype != np.uint8:
        low, high = manifest.window.low, manifest.window.high
        image = np.clip((image.astype(np.float32) - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)
    if image.ndim == 2:
        image = image[..., None]
    elif image.shape[2] == 1:
        pass
    elif manifest.channels == 1:
        image = np.asarray(cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2GRAY))[..., None]
    else:
        image = image[..., 2::-1]
    return np.ascontiguousarray(np.repeat(image, 3, 2) if image.shape[2] < manifest.channels else image)


def _crops(images: Sequence[Pixels], side: int, count: int, rng: np.random.Generator) -> Pixels:
    crops = []
    for _ in range(count):
        image = images[int(rng.integers(len(images)))]
        y, x = (int(rng.integers(n - side + 1)) for n in image.shape[:2])
        crops.append(image[y : y + side, x : x + side])
    return np.stack(crops)


def _schedule(fitting: Fitting) -> Schedule:
    return Schedule(fitting.steps, fitting.learning_rate, max(1, fitting.steps // 20), max(1, fitting.steps // 3))


def _resume(trainer: Trainer, work: Path, identity: dict[str, Any]) -> dict[str, list[float]]:
    """Losses so far; the trainer goes on from the checkpoint in `work`, if there is one, and it is of this run."""
    note = work / "run.json"
    if trainer.resume(work):
        saved = json.loads(note.read_text()) if note.exists() else None
        if saved != identity:
            raise MasklineError(f"{work} holds a run with other settings ({saved}); remove it, or choose those again")
        losses: dict[str, list[float]] = json.loads((work / "losses.json").read_text())
        losses["seen"] = losses["seen"][: trainer.step]
        return losses
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(identity))
    return {"seen": [], "held_out": []}


def _checkpoint(trainer: Trainer, work: Path, losses: dict[str, list[float]]) -> None:
    part = work / "losses.json.part"
    part.write_text(json.dumps(losses))
    part.replace(work / "losses.json")
    trainer.save(work)


@contextmanager
def _bar(steps: int, done: int, quiet: bool) -> Iterator[_Advance]:
    columns = (
        TextColumn("fit"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("error {task.fields[error]:.3f}"),
    )
    with Progress(*columns, disable=quiet) as progress:
        yield _Advance(progress, steps, done)


class _Advance:
    def __init__(self, progress: Progress, steps: int, done: int) -> None:
        self._progress, self._task = progress, progress.add_task("fit", total=steps, completed=done, error=0.0)

    def __call__(self, error: float) -> None:
        self._progress.update(self._task, advance=1, error=error)


def draw_curve(seen: Sequence[float], held_out: Sequence[float], every: int) -> Pixels:
    """The error over the steps, uint8 RGB [360, 640, 3]: training in grey, its mean in black, held out in green."""
    height, width, left, bottom = 360, 640, 56, 40
    picture = np.full((height, width, 3), 255, np.uint8)
    top_value = max([*seen, *held_out, 1e-6]) * 1.05
    last = max(len(seen), every * len(held_out), 1)

    def at(step: float, value: float) -> tuple[int, int]:
        x = left + (width - left - 16) * step / last
        return int(x), int(height - bottom - (height - bottom - 16) * value / top_value)

    def line(points: list[tuple[int, int]], colour: tuple[int, int, int], thick: int) -> None:
        cv2.polylines(picture, [np.array(points, np.int32).reshape(-1, 1, 2)], False, colour, thick, cv2.LINE_AA)

    def text(words: str, x: int, y: int) -> None:
        cv2.putText(picture, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (60, 60, 60), 1, cv2.LINE_AA)

    for tick in range(5):
        value = top_value * tick / 4
        y = at(0, value)[1]
        cv2.line(picture, (left, y), (width - 16, y), (225, 225, 225), 1)
        text(f"{value:.2f}", 12, y + 4)
        text(str(round(last * tick / 4)), at(last * tick / 4, 0)[0] - 10, height - bottom + 16)
    line([at(k + 1, value) for k, value in enumerate(seen)] or [at(0, 0)], (190, 190, 190), 1)
    window = max(1, len(seen) // 40)
    smooth = [at(k + 1, float(np.mean(seen[max(0, k - window) : k + 1]))) for k in range(len(seen))]
    line(smooth or [at(0, 0)], (30, 30, 30), 2)
    line([at(every * (k + 1), value) for k, value in enumerate(held_out)] or [at(0, 0)], (0, 140, 60), 2)
    text("error / contrast over steps: training (black), held out (green)", left, height - 8)
    return picture
