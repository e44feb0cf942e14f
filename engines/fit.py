"""Fits a network to a folder of good images: `maskline fit`. Needs the extra `train`.

Some hundred steps on crops of the user's own texture, from a bundle's weights or from fresh ones: minutes on two cores.
The run can be stopped at any time; the same call goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edge.errors import MasklineError
from edge.padding import pad_mirrored
from edge.sources import Image
from edge.sources.folder import SUFFIXES, list_images, load_image
from edge.tiling import Scale, convert_channels, cut, grid, prepared_size, resize, to_8bit
from engines.architecture import AnovitArchitecture, Architecture, RetouchArchitecture
from engines.bundle import GRAPH, Bundle, Manifest, Trained, find_bundle, load_bundle
from engines.export import export_bundle, load_model
from engines.lite0 import weights_file
from engines.loss_curve import draw_curve
from engines.mae import MaskedAutoencoder
from engines.networks import Network, build
from engines.registry import ENGINES, YOURS, Fitting
from engines.retouch import Retouch, retouch_from
from engines.settings import Settings, changed, default_settings, with_tiles
from engines.training import Schedule, Trainer, montage, write_picture
from engines.vit_weights import load_encoder
from engines.weight_files import file_sha256, find_file

__all__ = ["Start", "as_seen", "fit", "from_bundle", "from_scratch", "load_good"]

MIB_AT_ONCE = 1024
SHOWN = 6
MEASURED_TILES = 256
"""Of good parts, from which `engines.retouch` learns what is usual."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Start:
    """What fitting begins with; `network` is trained in place."""

    network: Network
    manifest: Manifest
    base: str = ""
    """Name and hash of the bundle or file that the weights come from; empty for fresh weights."""
    fitting: Fitting = field(default_factory=Fitting)
    """How such a network is fitted, unless `fit` is told otherwise."""


def from_bundle(name: str | Path, settings: Sequence[str] = ()) -> Start:
    """Goes on from a bundle: one that ships, by name, or a path, with `settings` changed (`engines.settings`).

    Raises BundleError, and MasklineError for settings that cannot be, or that its weights do not fit.
    """
    bundle = load_bundle(find_bundle(name))
    network, manifest = load_model(bundle), bundle.manifest
    a = network.architecture
    plain = Settings(
        architecture=a, error_map=manifest.error_map, score=manifest.score, fitting=ENGINES[a.kind].fitting
    )
    chosen = changed(plain, settings)
    if chosen.architecture != a:
        network = _with_weights_of(network, chosen.architecture, f"bundle {name} with --set {' --set '.join(settings)}")
    said = {"architecture": chosen.architecture, "error_map": chosen.error_map, "score": chosen.score}
    base = f"{manifest.name} {bundle.sha256}"
    return Start(network, manifest.model_copy(update=said), base, chosen.fitting)


def _with_weights_of(network: Network, architecture: Architecture, what: str) -> Network:
    other = build(architecture)
    try:
        other.load_state_dict(network.state_dict())
    except RuntimeError as error:
        message = f"{what}: its weights do not fit such a network; leave the bundle out for fresh ones"
        raise MasklineError(message) from error
    return other


def from_scratch(
    engine: str,
    *,
    size: str | None = None,
    tile_px: int | None = None,
    channels: int = 1,
    seed: int = 0,
    weights: Path | None = None,
    settings: Sequence[str] = (),
) -> Start:
    """Fresh weights, or those of the bundle that this engine starts from, if size, tile and architecture are left as
    they are.

    `weights`: a file of weights that others have published, for what such a file has (`engines.vit_weights`).
    `settings`: what is not as the size has it (`engines.settings`). Raises MasklineError for an engine or size that
    does not exist, a tile or setting that the network cannot have, or a file that does not fit.
    """
    plain, kind = default_settings(engine, size), ENGINES[engine]
    if weights is not None and kind.tuning is None:
        able = ", ".join(name for name, other in ENGINES.items() if other.tuning)
        raise MasklineError(f"--weights {weights}: engine {engine!r} takes none; those that do: {able}")
    if isinstance(plain.architecture, RetouchArchitecture) and not weights_file():
        settings = ("features=none", *settings)
    fitting = kind.tuning if weights and kind.tuning else kind.fitting
    chosen = changed(with_tiles(plain, channels, tile_px).model_copy(update={"fitting": fitting}), settings)
    architecture = chosen.architecture
    as_it_is = (size, tile_px, channels) == (None, None, 1) and architecture == plain.architecture
    if kind.base and engine != "retouch" and as_it_is:
        return from_bundle(kind.base, settings)
    torch.manual_seed(seed)
    manifest = Manifest(
        name=engine,
        architecture=architecture,
        plans=architecture.plans,
        error_map=chosen.error_map,
        score=chosen.score,
        licence=kind.licence if isinstance(architecture, RetouchArchitecture) else YOURS,
        files={GRAPH: "0" * 64},
    )
    if isinstance(architecture, RetouchArchitecture):
        base = from_bundle("texture-s")
        assert isinstance(base.network, MaskedAutoencoder)
        return Start(retouch_from(architecture, base.network), manifest, base.base, chosen.fitting)
    if weights is None:
        return Start(build(architecture), manifest, fitting=chosen.fitting)
    assert isinstance(architecture, AnovitArchitecture)
    network, file = load_encoder(weights, architecture), find_file(weights)
    manifest = manifest.model_copy(
        update={"architecture": network.architecture, "licence": f"yours, and that of {file.name}, where fitting began"}
    )
    return Start(network, manifest, f"{file.name} {file_sha256(file)}", chosen.fitting)


def fit(
    good: Path | Sequence[Path],
    start: Start,
    out: Path,
    fitting: Fitting | None = None,
    *,
    scale: Scale = 1.0,
    name: str | None = None,
    quiet: bool = False,
) -> Bundle:
    """Fits the network of `start` to the images in `good`, a folder or files, and writes the bundle `out`.

    `scale`: what the line resizes its frames by before it cuts them into tiles (a recipe's `tiling.resize`). Beside the
    network, `out` gets `loss.png` (the network's error over steps; images held out in green) and `repainted.png`
    (held-out crops above what the network makes of them). Raises SourceError for images that cannot be used,
    MasklineError for a checkpoint of another run.
    """
    fitting, manifest = fitting or start.fitting, start.manifest
    images = load_good(good, manifest, scale)
    held_out = images[:: max(2, min(10, len(images)))] if len(images) > 1 else images
    kept = [image for k, image in enumerate(images) if k % max(2, min(10, len(images)))] or images
    work = out.with_name(out.name + ".fit")
    trainer = Trainer(start.network, _schedule(fitting), fitting.average)
    losses = _resume(trainer, work, _identity(start, fitting, scale))
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
    data = f"{len(images)} images of {(good if isinstance(good, Path) else good[0].parent).name}"
    how = fitting.model_dump(include={"steps", "seed", "batch", "learning_rate", "average"})
    trained = Trained(data=data, base=start.base, resize=scale, **how)
    fresh = manifest.model_copy(update={"name": name or out.name, "trained": trained})
    if isinstance(trainer.averaged, Retouch):
        trainer.averaged.measure(_as_cut(images, manifest.tile_px))
    bundle = export_bundle(out, trainer.averaged, fresh)
    write_picture(out / "loss.png", draw_curve(losses["seen"], losses["held_out"], fitting.every))
    write_picture(out / "repainted.png", montage(trainer.averaged, shown)[0])
    shutil.rmtree(work, ignore_errors=True)
    return bundle


def load_good(good: Path | Sequence[Path], manifest: Manifest, scale: Scale = 1.0) -> list[Pixels]:
    """The images of a folder and those below it, sorted by name, or the files named: `as_seen`, up to MIB_AT_ONCE.

    Raises SourceError that names the folder without images, or the file that cannot be read.
    """
    images, total = [], 0
    for path in _below(good) if isinstance(good, Path) else good:
        images.append(as_seen(load_image(path), manifest, scale))
        total += images[-1].nbytes
        if total > MIB_AT_ONCE << 20:
            break
    return images


def _below(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return found or list_images(folder)  # which says what is wrong with it


def as_seen(image: Image, manifest: Manifest, scale: Scale = 1.0) -> Pixels:
    """An image uint8 or uint16 [H, W, C] as the line sees it before it is cut into tiles, in the order of
    `edge.tiling.prepare`: with the bundle's channels, scaled, at 8 bits. What is smaller than a tile is mirrored."""
    height, width = prepared_size(image.shape[0], image.shape[1], scale, manifest.tile_px)
    if manifest.channels == 1:
        image = convert_channels(image, np.empty((*image.shape[:2], 1), image.dtype))
    if (height, width) != image.shape[:2]:
        image = resize(image, np.empty((height, width, image.shape[2]), image.dtype))
    if image.dtype == np.uint16:
        image = to_8bit(image, manifest.window.low, manifest.window.high, np.empty(image.shape, np.uint8))
    image = convert_channels(image, np.empty((height, width, manifest.channels), np.uint8))
    return pad_mirrored(image, manifest.tile_px, manifest.tile_px)[0]


def _crops(images: Sequence[Pixels], side: int, count: int, rng: np.random.Generator) -> Pixels:
    crops = []
    for _ in range(count):
        image = images[int(rng.integers(len(images)))]
        y, x = (int(rng.integers(n - side + 1)) for n in image.shape[:2])
        crops.append(image[y : y + side, x : x + side])
    return np.stack(crops)


def _as_cut(images: Sequence[Pixels], tile_px: int) -> torch.Tensor:
    """Tiles of images [H, W, C] as the line cuts them, in their order: uint8 [N, tile, tile, C], about MEASURED_TILES
    from images all over the folder."""
    height, width, channels = images[0].shape
    wanted = max(1, MEASURED_TILES // grid(height, width, tile_px).count)
    tiles: list[Pixels] = []
    for image in images[:: max(1, len(images) // wanted)]:
        tiling = grid(image.shape[0], image.shape[1], tile_px)
        tiles.extend(cut(image, tiling, np.empty((tiling.count, tile_px, tile_px, channels), np.uint8)))
    return torch.from_numpy(np.stack(tiles[: 2 * MEASURED_TILES]))


def _identity(start: Start, fitting: Fitting, scale: Scale) -> dict[str, Any]:
    """What a run that is resumed must have in common with the one before."""
    start_of = f"{start.base} {start.manifest.sha256}".strip()
    return {"fitting": fitting.model_dump(), "start": start_of, "scale": scale}


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
