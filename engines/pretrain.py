"""Pretrains the network that ships, on procedural textures and the left halves of two free photographs.

    nice -n 10 env LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libjemalloc.so.2 \\
        python -m engines.pretrain --out RUN --seed 1 --rate 7e-3 --steps 5750 --cooldown 1500

makes the weights in `engines/zoo/texture-s`; what the options are by default is not that. Stopped at any time, the same
command goes on from the last checkpoint in RUN. `--cooldown-from STEP` ends a run early: it starts the decay of the
learning rate at that step, so that steps, seed and that number describe the weights completely. RUN/log.jsonl has the
losses, RUN/pictures the repainted tiles. The photograph `brick` is never trained on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from edge.errors import MasklineError
from engines.architecture import TEXTURE_S
from engines.mae import MaskedAutoencoder
from engines.textures import canvas
from engines.training import Schedule, Trainer, montage, write_picture

__all__ = ["TextureStream", "main", "photographs", "pretrain"]

PHOTOS = Path(__file__).parent.parent / "edge" / "demo" / "photos"
TRAINING_COLUMNS = 256
"""Photographs are used from the left up to this column; what is right of it is for tests."""
POOL = 192
HELD_OUT_SERIES = 1_000_003
"""Textures of this seed are for watching only."""

Pixels = npt.NDArray[np.uint8]


def photograph(name: str) -> Pixels:
    """A photograph that ships, uint8 [512, 512]. Raises MasklineError if it is not there."""
    image = cv2.imread(str(PHOTOS / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise MasklineError(f"photograph {PHOTOS / name}.png cannot be read: pretraining needs a complete checkout")
    return np.asarray(image, np.uint8)


def photographs() -> list[Pixels]:
    """What may be trained on: the left halves of `grass` and `gravel`, uint8 [512, 256]."""
    return [photograph(name)[:, :TRAINING_COLUMNS] for name in ("grass", "gravel")]


class TextureStream:
    """Batches of tiles, the same for the same seed and step.

    Tiles are cut from a pool of canvases; with every step one of them is replaced by the next of the series, so that
    each is seen about a batch's worth of times. Photographs are one tile in seven.
    """

    def __init__(self, seed: int, tile_px: int, photos: list[Pixels], pool: int = POOL) -> None:
        self.seed, self.tile_px, self.photos = seed, tile_px, photos
        self.pool: list[Pixels | None] = [None] * pool
        self._drawn = [-1] * pool

    def batch(self, step: int, count: int) -> Pixels:
        """Tiles of step number `step`: uint8 [count, h, w, 1]."""
        rng = np.random.default_rng([self.seed, 7, step])
        return np.stack([self._tile(step, rng) for _ in range(count)])[..., None]

    def _tile(self, step: int, rng: np.random.Generator) -> Pixels:
        if self.photos and rng.random() < 1 / 7:
            source = self.photos[rng.integers(len(self.photos))]
            side = int(rng.integers(self.tile_px // 2, min(source.shape) + 1))
        else:
            source = self._canvas(step, int(rng.integers(len(self.pool))))
            side = self.tile_px if rng.random() < 0.7 else int(rng.integers(self.tile_px // 2, min(source.shape) + 1))
        top, left = (int(rng.integers(n - side + 1)) for n in source.shape)
        tile = source[top : top + side, left : left + side]
        if side != self.tile_px:
            how = cv2.INTER_AREA if side > self.tile_px else cv2.INTER_LINEAR
            tile = np.asarray(cv2.resize(tile, (self.tile_px, self.tile_px), interpolation=how), np.uint8)
        tile = np.rot90(tile, int(rng.integers(4)))
        return tile[:, ::-1] if rng.random() < 0.5 else tile

    def _canvas(self, step: int, slot: int) -> Pixels:
        """The newest canvas that slot has at that step: number slot, slot + pool, slot + 2 pool, ..."""
        number = slot + max(0, step - slot + len(self.pool) - 1) // len(self.pool) * len(self.pool)
        if self._drawn[slot] != number:
            self.pool[slot], self._drawn[slot] = canvas(self.seed, number), number
        image = self.pool[slot]
        assert image is not None
        return image


def watched(tile_px: int) -> torch.Tensor:
    """Tiles for watching: held-out textures, brick, right halves of the other photographs: uint8 [N, h, w, 1]."""
    tiles = [canvas(HELD_OUT_SERIES, k, tile_px) for k in range(12)]
    for name, left in (("brick", 0), ("brick", 256), ("grass", 256), ("gravel", 256)):
        tiles.append(photograph(name)[100 : 100 + tile_px, left : left + tile_px])
    return torch.from_numpy(np.stack(tiles)[..., None])


def pretrain(
    out: Path, schedule: Schedule, seed: int, batch: int, every: int = 250, stop_at: int | None = None
) -> Trainer:
    """Trains (or goes on) until the schedule ends or step `stop_at`; checkpoints and pictures every `every` steps."""
    torch.manual_seed(seed)
    trainer = Trainer(MaskedAutoencoder(TEXTURE_S), schedule)
    trainer.resume(out)
    stream = TextureStream(seed, TEXTURE_S.tile_px, photographs())
    shown = watched(TEXTURE_S.tile_px)
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    errors, began = [], time.monotonic()
    last = min(schedule.steps, stop_at or schedule.steps)
    while trainer.step < last:
        step = trainer.step
        tiles = torch.from_numpy(stream.batch(step, batch))
        errors.append(trainer.train_step(tiles, np.random.default_rng([seed, 8, step])))
        if trainer.step % 50 == 0 or trainer.step == last:
            line = {"step": trainer.step, "l1": float(np.mean(errors)), "rate": schedule.rate(step)}
            line["s_per_step"] = (time.monotonic() - began) / len(errors)
            if trainer.step % every == 0 or trainer.step == last:
                picture, line["watched"] = montage(trainer.averaged, shown)
                line["brick"] = montage(trainer.averaged, shown[12:14])[1]
                write_picture(out / "pictures" / f"{trainer.step:06d}.png", _two_rows(picture, len(shown)))
                trainer.save(out)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            errors.clear()
            began = time.monotonic()
    return trainer


def _two_rows(picture: Pixels, tiles: int) -> Pixels:
    """Folds a long montage once."""
    middle = picture.shape[1] // tiles * ((tiles + 1) // 2)
    left, right = picture[:, :middle], picture[:, middle:]
    return np.concatenate([left, np.pad(right, ((0, 0), (0, left.shape[1] - right.shape[1]), (0, 0)))])


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--cooldown", type=int, default=1000)
    parser.add_argument("--cooldown-from", type=int, help="end early: decay from this step on, over --cooldown steps")
    parser.add_argument("--stop-at", type=int, help="stop there, without decay; the run can go on later")
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    schedule = Schedule(args.steps, args.rate, cooldown=args.cooldown)
    if args.cooldown_from is not None:
        schedule = dataclasses.replace(schedule, steps=args.cooldown_from + args.cooldown)
    pretrain(args.out, schedule, args.seed, args.batch, args.every, args.stop_at)


if __name__ == "__main__":
    main()
