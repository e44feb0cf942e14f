"""How pictures differ, for the losses of the networks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["in_contrasts", "ssim"]

SMALLEST_CONTRAST = 2 / 255
"""Tiles flatter than this (standard deviation) have their error reported in units of this."""


def ssim(a: Tensor, b: Tensor, window: int = 7) -> Tensor:
    """SSIM per pixel of a, b [N, C, h, w] in [0, 1]: the same shape, in [-1, 1]. Square windows, mirrored sides."""
    a, b = a - 0.5, b - 0.5  # E[x^2] - E[x]^2 in float32 is useless on bright flat pictures without it

    def mean(x: Tensor) -> Tensor:
        rows = F.avg_pool2d(F.pad(x, (window // 2,) * 4, mode="reflect"), (window, 1), stride=1)
        return F.avg_pool2d(rows, (1, window), stride=1)

    ua, ub = mean(a), mean(b)
    va, vb, covariance = mean(a * a) - ua * ua, mean(b * b) - ub * ub, mean(a * b) - ua * ub
    light = (2 * (ua + 0.5) * (ub + 0.5) + 1e-4) / ((ua + 0.5) ** 2 + (ub + 0.5) ** 2 + 1e-4)
    return light * (2 * covariance + 9e-4) / (va + vb + 9e-4)


def in_contrasts(error: Tensor, x: Tensor) -> Tensor:
    """The mean absolute `error` [N, ...] of tiles x [N, ...] in [0, 1], each in units of its contrast; detached."""
    contrast = x.std(tuple(range(1, x.dim()))).clamp(min=SMALLEST_CONTRAST)
    return (error.detach().abs().reshape(len(x), -1).mean(1) / contrast).mean()
