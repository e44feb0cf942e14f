"""What pretraining and fitting share: learning-rate schedule, resumable steps, pictures of progress."""

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

from engines.networks import Network, build, plan_arguments
from engines.optim import Average, Muon, parameter_groups

__all__ = ["Schedule", "Trainer", "montage"]

Pixels = npt.NDArray[np.uint8]

SHOWN_PLAN = "x16"
"""Of pictures and held-out errors, where a network has it: cheap, and near to what the networks were trained for. Half
of a tile hidden, as by `x32`, they were not."""


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


class Trainer:
    """Owns the weights, their average and the optimizers of one run; `save` and `resume` make it survive a restart."""

    def __init__(self, model: Network, schedule: Schedule, average: float = 0.995) -> None:
        self.model, self.schedule, self.step = model.train(), schedule, 0
        self.averaged = build(model.architecture)
        """The moving average of the weights: what is shown, saved and exported."""
        self.average = Average(model, self.averaged, average)
        matrices, rest = parameter_groups(model)
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            *([Muon(matrices, schedule.learning_rate, weight_decay=0.01)] if matrices else []),
            torch.optim.AdamW(rest, schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, foreach=True),
        )

    def train_step(self, tiles: Tensor, rng: np.random.Generator) -> float:
        """One optimizer step on uint8 tiles [N, h, w, C]; returns the error that the network reports of it."""
        loss, error = self.model.loss(tiles, rng, self.step / self.schedule.steps)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.rate(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.average.update(self.step)
        self.step += 1
        return float(error)

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
def montage(model: Network, tiles: Tensor) -> tuple[Pixels, float]:
    """Tile above what the network makes of it by SHOWN_PLAN, or by its only plan, side by side, uint8 [2 h, N w, C];
    and the mean absolute error over the tile's contrast."""
    a = model.architecture
    answer = model(tiles, *plan_arguments(a, SHOWN_PLAN if SHOWN_PLAN in a.plans else a.plans[0]))
    repainted = answer[..., : tiles.shape[3]]  # a map may lie behind it
    seen = tiles.float() / 255
    error = (repainted - seen).abs().mean((1, 2, 3)) / seen.std((1, 2, 3)).clamp(min=2 / 255)
    rows = [torch.cat(list(x), 1) for x in (seen, repainted)]
    return (torch.cat(rows) * 255).round().byte().numpy(), float(error.mean())


def write_picture(path: Path, picture: Pixels) -> None:
    """RGB or grey uint8 [H, W, C] as PNG."""
    cv2.imwrite(str(path), picture[..., ::-1] if picture.shape[2] == 3 else picture)
