"""Muon for the weight matrices, Adam for the rest, and a moving average of all weights.

Muon (Jordan et al., 2024) replaces a matrix's momentum by the nearest orthogonal matrix, so that rare directions (here
the high frequencies of a texture) move as fast as common ones.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Average", "Muon", "orthogonal", "parameter_groups"]


def orthogonal(m: Tensor) -> Tensor:
    """About the nearest (semi-)orthogonal matrices: [B, R, C] -> [B, R, C], singular values near 1; R <= C is fastest.

    Five steps of the quintic Newton-Schulz iteration with Jordan's coefficients.
    """
    tall = m.shape[1] > m.shape[2]
    x = m.mT if tall else m
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    nearest: Tensor = x.mT if tall else x
    return nearest


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; matrices of one shape are done together."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; `closure` is not supported."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"])
                for part, u in zip(_square_parts(p.data), _square_parts(update), strict=True):
                    shapes[(u.shape[0], u.shape[1])].append((part, u))
            for (rows, columns), pairs in shapes.items():
                updates = orthogonal(torch.stack([u for _, u in pairs]))
                scale = 0.2 * max(rows, columns) ** 0.5  # the size of an Adam step, so that both share a learning rate
                for (p, _), u in zip(pairs, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-group["lr"] * scale)


def _square_parts(p: Tensor) -> tuple[Tensor, ...]:
    """Keys and values are one matrix but two maps (a layer that doubles the width is halved too: no harm)."""
    return p.chunk(2) if p.shape[0] == 2 * p.shape[1] else (p,)


def parameter_groups(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices inside blocks (for Muon), and everything else (for Adam)."""
    blocks = {"encoder", "decoder", "balance"}
    inside = {id(p) for n, p in model.named_parameters() if p.ndim == 2 and not blocks.isdisjoint(n.split("."))}
    every = list(model.parameters())
    return [p for p in every if id(p) in inside], [p for p in every if id(p) not in inside]


class Average:
    """Exponential moving average of a model's weights, in a second model of the same kind."""

    def __init__(self, model: nn.Module, copy: nn.Module, decay: float) -> None:
        copy.load_state_dict(model.state_dict())
        self.model, self.copy, self.decay = model, copy.requires_grad_(False).eval(), decay
        self._pairs = list(zip(self.copy.parameters(), model.parameters(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Call after each optimizer step; the first steps weigh more, so that the start is forgotten. What is frozen
        (takes no gradient) is copied: the rest is trained on it as it is, not as it was on average."""
        weight = max(1 - self.decay, 1 / (step + 10))
        moving = [pair for pair in self._pairs if pair[1].requires_grad]
        if moving:
            torch._foreach_lerp_([mine for mine, _ in moving], [theirs for _, theirs in moving], weight)
        for kept, frozen in self._pairs:
            if not frozen.requires_grad:
                kept.copy_(frozen)
        for mine, theirs in zip(self.copy.buffers(), self.model.buffers(), strict=True):
            mine.copy_(theirs)  # running statistics are averages already
