"""What the masked autoencoder starts from and never learns: waves over the token grid, the cosines of a patch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.architecture import MaeArchitecture

__all__ = ["cosine_basis", "first_offset", "plane_waves", "sine_positions"]


def first_offset(heads: int, head: int) -> tuple[float, float, float]:
    """Where head number `head` looks at first: rows down, columns right, how strongly; drawn with torch's seed."""
    if head >= heads - 1:
        return 0.0, 0.0, 0.1
    dy, dx = (torch.randn(2) * 1.5).round().tolist()
    return dy, dx, 0.6


def plane_waves(grid: tuple[int, int], count: int) -> tuple[Tensor, _Turn]:
    """Waves [T, count] over the token grid, and the function that makes the matrix which moves them by an offset.

    Half of the waves run along the rows and half along the columns, wavelengths 2.5 to 40 tokens. With a(p) and b(p)
    the waves at p moved by d and not moved, a(p).b(p') is largest where p' = p + d, for every p: rotary embeddings'
    idea, but added, so that a head may also ignore it.
    """
    half = count // 4
    omega = 2 * math.pi / torch.logspace(math.log10(2.5), math.log10(40), half)
    y, x = torch.meshgrid(torch.arange(grid[0]).float(), torch.arange(grid[1]).float(), indexing="ij")
    angle = torch.cat([y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega], 1)  # [T, 2 half]
    waves = torch.cat([angle.cos(), angle.sin()], 1)  # [T, 4 half]
    if waves.shape[1] < count:
        waves = F.pad(waves, (0, count - waves.shape[1]))
    return waves, _Turn(omega, count)


class _Turn:
    def __init__(self, omega: Tensor, count: int) -> None:
        self.omega, self.count = omega, count

    def __call__(self, dy: float, dx: float, gain: float) -> Tensor:
        """[count, count]: `waves @ turn` are the waves moved by (dy, dx), times the gain that sharpens the softmax."""
        angle = torch.cat([self.omega * dy, self.omega * dx])
        cos, sin = torch.diag(angle.cos()), torch.diag(angle.sin())
        m = torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], 0) * gain * math.sqrt(self.count)
        return F.pad(m, (0, self.count - m.shape[1], 0, self.count - m.shape[0]))


def sine_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Sine-cosine embeddings [T, width], columns in the first half, as in He et al."""
    omega = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    y, x = torch.meshgrid(torch.arange(grid[0]).double(), torch.arange(grid[1]).double(), indexing="ij")
    halves = [z.reshape(-1, 1) * omega for z in (x, y)]
    return torch.cat([f(z) for z in halves for f in (torch.sin, torch.cos)], 1).float()


def cosine_basis(a: MaeArchitecture) -> tuple[Tensor, Tensor]:
    """The cosine transform of a patch, [P, P] orthonormal, low frequencies first, and each coefficient's usual size
    [P].

    The sizes follow from textures of unit variance, whose amplitude falls about as 1 / frequency.
    """

    def cosines(n: int) -> Tensor:
        k, i = torch.arange(n).float()[:, None], torch.arange(n).float()[None]
        return torch.cos(math.pi * k * (i + 0.5) / n) * torch.where(k == 0, math.sqrt(1 / n), math.sqrt(2 / n))

    p, c = a.patch_px, a.channels
    basis = torch.einsum("ai,bj,ck->abcijk", cosines(p), cosines(p), cosines(c)).reshape(a.patch_values, -1)
    k = torch.arange(p).float()
    frequency = (k[:, None, None] ** 2 + k[None, :, None] ** 2 + 4 * torch.arange(c).float() ** 2).sqrt().reshape(-1)
    spread = 1 / (1 + frequency) ** 1.2
    spread = spread * math.sqrt(a.patch_values) / spread.square().sum().sqrt()
    order = frequency.argsort(stable=True)
    return basis[order], spread[order]
