"""What pretraining and fitting share: masks, loss, learning-rate schedule, resumable steps, pictures of progress."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engines.mae import MaskedAutoencoder, patchify, plan_tensors
from engines.optim import Average, Muon, parameter_groups
from engines.plans import blocks, named_plan

__all__ = ["Schedule", "Trainer", "draw_mask", "montage", "repaint_loss"]

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Schedule:
    """Warm-up, a plateau, and a linear decay to zero over the last `cooldown` steps (WSD)."""

    steps: int
    learning_rate: float = 2e-3
    warmup: int = 100
    cooldown: int = 500

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        up, down = (step + 1) / self.warmup, (self.steps - step) / max(1, self.cooldown)
        return self.learning_rate * max(0.0, min(1.0, up, down))


def draw_mask(model: MaskedAutoencoder, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One variant to train on, `visible` [1, K] and `hidden` [1, H].

    Mostly a whole lattice of far-apart blocks, as plan x16 hides (a quarter of the tile: many answers for little cost);
    sometimes a part of it, as x1 and x4 do; sometimes blocks anywhere, from 2 % to 35 %.
    """
    a = model.architecture
    table = blocks(a.grid, a.block)
    rows, columns, kind = len(table), len(table[0]), rng.random()
    if kind < 0.9:
        i, j = (int(rng.integers(min(2, n))) for n in (rows, columns))
        cells = [cell for row in table[i::2] for cell in row[j::2]]
        keep = len(cells) if kind < 0.75 else int(rng.integers(max(1, len(cells) // 4), len(cells) + 1))
    else:
        cells = [cell for row in table for cell in row]
        keep = max(1, int(len(cells) * rng.uniform(0.02, 0.35)))
    chosen = rng.permutation(len(cells))[:keep]
    hidden = np.sort(np.concatenate([np.asarray(cells[k]) for k in chosen]))
    visible = np.setdiff1d(np.arange(a.tokens), hidden)
    return torch.from_numpy(visible)[None], torch.from_numpy(hidden)[None]


def repaint_loss(model: MaskedAutoencoder, tiles: Tensor, visible: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """tiles: uint8 [N, h, w, C]. -> (loss to minimise, mean absolute error), both in units of the tile's own contrast.

    The loss is L1 plus half the L1 of the differences between neighbouring pixels, which punishes blur.
    """
    a = model.architecture
    patches = patchify(tiles.float() / 255, a.patch_px)
    answer, mean, scale = model.repaint(patches, visible, hidden)
    error = answer - (patches[:, hidden] - mean) / scale  # [N, V, H, P]
    l1 = error.abs().mean()
    picture = error.reshape(*error.shape[:3], a.patch_px, a.patch_px, a.channels)
    slope = (picture.diff(dim=3).abs().mean() + picture.diff(dim=4).abs().mean()) / 2
    return l1 + 0.5 * slope, l1.detach()


class Trainer:
    """Owns the weights, their average and the optimizers of one run; `save` and `resume` make it survive a restart."""

    def __init__(self, model: MaskedAutoencoder, schedule: Schedule, average: float = 0.995) -> None:
        self.model, self.schedule, self.step = model, schedule, 0
        self.averaged = MaskedAutoencoder(model.architecture)
        """The moving average of the weights: what is shown, saved and exported."""
        self.average = Average(model, self.averaged, average)
        matrices, rest = parameter_groups(model)
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices, schedule.learning_rate, weight_decay=0.01),
            torch.optim.AdamW(rest, schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, foreach=True),
        )

    def train_step(self, tiles: Tensor, visible: Tensor, hidden: Tensor) -> float:
        """One optimizer step on uint8 tiles [N, h, w, C]; returns the mean absolute error."""
        loss, l1 = repaint_loss(self.model, tiles, visible, hidden)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.rate(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.average.update(self.step)
        self.step += 1
        return float(l1)

    def save(self, folder: Path) -> None:
        """Weights and average as safetensors, optimizer state beside them; the step file last, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "weights.safetensors", lambda p: save_file(self.model.state_dict(), p))
        _replace(folder / "average.safetensors", lambda p: save_file(self.averaged.state_dict(), p))
        state = {"step": self.step, "optimizers": [o.state_dict() for o in self.optimizers]}
        _replace(folder / "optimizer.pt", lambda p: torch.save(state, p))
        text = json.dumps({"step": self.step, "schedule": asdict(self.schedule)})
        _replace(folder / "step.json", lambda p: p.write_text(text))

    def resume(self, folder: Path) -> bool:
        """Goes on from what `save` wrote; False if there is nothing. Loads no pickled code."""
        if not (folder / "step.json").exists():
            return False
        state: dict[str, Any] = torch.load(folder / "optimizer.pt", weights_only=True)
        self.model.load_state_dict(load_file(folder / "weights.safetensors"))
        self.averaged.load_state_dict(load_file(folder / "average.safetensors"))
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = int(state["step"])
        return True


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)


@torch.no_grad()
def montage(model: MaskedAutoencoder, tiles: Tensor, plan: str = "x16") -> tuple[Pixels, float]:
    """Tile above repainted tile, side by side, uint8 [2 h, N w, C]; and the mean absolute error over the contrast."""
    a = model.architecture
    repainted = model(tiles, *plan_tensors(named_plan(plan, a.grid, a.block)))
    seen = tiles.float() / 255
    error = (repainted - seen).abs().mean((1, 2, 3)) / seen.std((1, 2, 3)).clamp(min=2 / 255)
    rows = [torch.cat(list(x), 1) for x in (seen, repainted)]
    return (torch.cat(rows) * 255).round().byte().numpy(), float(error.mean())


def write_picture(path: Path, picture: Pixels) -> None:
    """RGB or grey uint8 [H, W, C] as PNG."""
    cv2.imwrite(str(path), picture[..., ::-1] if picture.shape[2] == 3 else picture)
