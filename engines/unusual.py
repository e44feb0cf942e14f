"""How unusual something is for good parts, at its place and on their kind of surface; learnt in closed form.

Two kinds of evidence. `ErrorDistance`: a few Gaussians of a repainting's signed error, their Mahalanobis distance.
`FeatureDistance`: a network's activations less what a linear repainter makes of the rest of the tile, their Mahalanobis
distance; PaDiM (Defard et al., 2021) with a mean that is told what surface it looks at.

Both distances are divided by what good tiles show at that place, for along a tile's sides there is less to repaint
from, and by what the tile's own light, contrast and kind of surface let expect. Without these two a good part at
another exposure outranks a bad one.

Letters in shapes: N tiles, C channels, h and w pixels, D features, t and s rows and columns of them, K numbers per
place, R rings, Q numbers that describe a tile, P of them that are kept. What was not measured yet is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.architecture.retouch import RINGS

__all__ = ["Context", "ErrorDistance", "FeatureDistance", "Gaussian", "light"]

RIDGE = 0.01
"""Of the mean variance, added to all variances, so that what never varied is not infinitely unusual."""
FARTHEST = 3.0
"""Standard deviations from the mean tile beyond which a tile counts as no stranger still."""
BEYOND_DOUBT = 100.0
"""Standard deviations; what is farther is not told apart, so that squares fit into half precision."""
AT_ONCE = 16
"""Tiles that are measured together, to bound the memory."""


class Context(nn.Module):
    """What kind of surface a tile shows, in few numbers: principal components of many, of unit variance, and a one."""

    mean: Tensor
    basis: Tensor

    def __init__(self, described: int, kept: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((described,), math.nan))
        self.register_buffer("basis", torch.full((described, kept), math.nan))

    def forward(self, x: Tensor) -> Tensor:
        """[..., Q] -> [..., P + 1]."""
        kept = ((x - self.mean) @ self.basis).clamp(-FARTHEST, FARTHEST)
        return F.pad(kept, (0, 1), value=1.0)

    def measure(self, x: Tensor) -> None:
        """x: [N, Q], of good tiles. Components that their number does not support stay zero."""
        self.mean.copy_(x.mean(0))
        spread = x.std(0, correction=0) + 1e-6
        _, size, axes = torch.linalg.svd((x - self.mean) / spread, full_matrices=False)
        size = size / math.sqrt(len(x))
        kept = min(self.basis.shape[1], int((size > 1e-3).sum()))
        self.basis.zero_()
        self.basis[:, :kept] = (axes[:kept] / size[:kept, None]).T / spread[:, None]


class ErrorDistance(nn.Module):
    """How unusual a repainting's error is: about 1 on good tiles.

    `ring_px`: width of the outer rings.
    """

    white: Tensor
    usual: Tensor
    expected: Tensor
    ring: Tensor

    def __init__(self, channels: int, side_px: int, ring_px: int, sigmas_px: Sequence[float]) -> None:
        super().__init__()
        count = channels * len(sigmas_px)
        self.blurs = nn.ModuleList(Gaussian(sigma, side_px, channels) for sigma in sigmas_px)
        self.context = Context(3, 3)
        self.register_buffer("ring", _rings(side_px, ring_px), persistent=False)
        self.register_buffer("white", torch.full((len(self.ring), count, count), math.nan))
        self.register_buffer("usual", torch.full((1, side_px, side_px), math.nan))
        self.register_buffer("expected", torch.full((4,), math.nan))

    def forward(self, error: Tensor, tiles: Tensor) -> Tensor:
        """error [N, C, h, w], signed, and the tiles [N, C, h, w] in [0, 1] that were repainted -> [N, h, w]."""
        level: Tensor = (self.context(light(tiles)) @ self.expected).exp()
        return self.distance(error) / self.usual / level[:, None, None]

    def distance(self, error: Tensor) -> Tensor:
        """Mahalanobis distance of the blurred errors, over the root of how many they are: [N, h, w]."""
        white = self.white.flatten(0, 1)[..., None, None]  # [R K, K, 1, 1]
        squared = F.conv2d(self.blurred(error), white).clamp(-BEYOND_DOUBT, BEYOND_DOUBT).square()
        distance: Tensor = _at_ring(squared, self.ring).mean(1).sqrt()
        return distance

    def blurred(self, error: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, K, h, w]."""
        return torch.cat([blur(error) for blur in self.blurs], 1)

    @torch.no_grad()
    def measure(self, error: Tensor, tiles: Tensor) -> None:
        """Learns from good tiles [N, C, h, w] in [0, 1] and the error of their repainting."""
        moments = torch.zeros_like(self.white, dtype=torch.float64)
        for part in torch.split(error, AT_ONCE):
            blurred = self.blurred(part)
            for k, ring in enumerate(self.ring):
                x = blurred[:, :, ring > 0].transpose(0, 1).flatten(1).double()  # [K, n]
                moments[k] += x @ x.T / (ring.sum() * len(error))
        self.white.copy_(_whitening(moments))
        distance = torch.cat([self.distance(part) for part in torch.split(error, AT_ONCE)])
        self.usual.copy_(Gaussian(2.0, self.usual.shape[1], 1)(distance.mean(0)[None, None])[0])
        described = light(tiles)
        self.context.measure(described)
        level = (distance / self.usual).square().mean((1, 2)).sqrt().log()
        self.expected.copy_(_regression(self.context(described), level[:, None])[:, 0])


class FeatureDistance(nn.Module):
    """How unusual features are, given those of the rest of the tile: about 1 on good tiles.

    Blocks of 2 x 2 positions are hidden one by one. Each is repainted from mean and deviation of all the others, by a
    linear map per ring that knows good tiles. (A transformer that sees the other blocks one by one, 800 seconds of
    fitting, ranked no better on magnetic tiles; these are learnt in two.)
    """

    repaint: Tensor
    white: Tensor
    usual: Tensor
    expected: Tensor
    ring: Tensor

    def __init__(self, features: int, side: int, context: int) -> None:
        super().__init__()
        self.context = Context(2 * features, context)
        self.register_buffer("ring", _rings(side, 1), persistent=False)
        self.register_buffer("repaint", torch.full((len(self.ring), features, context + 1), math.nan))
        self.register_buffer("white", torch.full((features, features), math.nan))
        self.register_buffer("usual", torch.full((1, side, side), math.nan))
        self.register_buffer("expected", torch.full((context + 1,), math.nan))

    def forward(self, features: Tensor) -> Tensor:
        """[N, D, t, s] -> [N, t, s]."""
        context = self.context(rest(features))  # [N, t / 2, s / 2, P + 1]
        level = _twice((context @ self.expected)[:, None].exp())[:, 0]
        return self.distance(features, context) / self.usual / level

    def distance(self, features: Tensor, context: Tensor) -> Tensor:
        """Mahalanobis distance of features from their repainting, over the root of D: [N, t, s]."""
        repaint = self.repaint.flatten(0, 1)[..., None, None]  # [R D, P + 1, 1, 1]
        repainted = _at_ring(F.conv2d(_twice(context.permute(0, 3, 1, 2)), repaint), self.ring)
        unlike: Tensor = F.conv2d(features - repainted, self.white[..., None, None]).clamp(-BEYOND_DOUBT, BEYOND_DOUBT)
        return unlike.square().mean(1).sqrt()

    @torch.no_grad()
    def measure(self, features: Tensor) -> None:
        """Learns from those of good tiles, [N, D, t, s]."""
        described = rest(features)  # [N, t / 2, s / 2, 2 D]
        self.context.measure(described.flatten(0, 2)[:: max(1, described[..., 0].numel() // 4096)])
        context = self.context(described)
        places = _twice(context.permute(0, 3, 1, 2))  # [N, P + 1, t, s]
        moments = torch.zeros_like(self.white, dtype=torch.float64)
        for k, ring in enumerate(self.ring > 0):
            x, y = (z[:, :, ring].transpose(0, 1).flatten(1).T for z in (places, features))  # [n, P + 1], [n, D]
            self.repaint[k] = _regression(x, y).T
            unlike = (y - x @ self.repaint[k].T).double()
            moments += unlike.T @ unlike / (self.ring.sum() * len(features))
        self.white.copy_(_whitening(moments))
        parts = zip(torch.split(features, AT_ONCE), torch.split(context, AT_ONCE), strict=True)
        distance = torch.cat([self.distance(*part) for part in parts])
        self.usual.copy_(distance.mean(0)[None])
        level = F.avg_pool2d((distance / self.usual)[:, None].square(), distance.shape[1:])[:, 0, 0].sqrt().log()
        self.expected.copy_(_regression(context.mean((1, 2)), level)[:, 0])


class Gaussian(nn.Module):
    """A blur of [N, C, side, side] by `sigma`; what lies outside counts for nothing, not as zero."""

    kernel: Tensor
    inside: Tensor

    def __init__(self, sigma: float, side: int, channels: int) -> None:
        super().__init__()
        self.channels, reach = channels, round(3 * sigma)
        at = torch.arange(-reach, reach + 1).float()
        kernel = torch.exp(-0.5 * (at / sigma) ** 2)
        self.register_buffer("kernel", (kernel / kernel.sum()).repeat(channels, 1, 1, 1), persistent=False)
        ones = torch.ones(1, channels, side, side)
        self.register_buffer("inside", self._along_both(ones), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, side, side] -> the same."""
        return self._along_both(x) / self.inside

    def _along_both(self, x: Tensor) -> Tensor:
        reach = self.kernel.shape[3] // 2
        x = F.conv2d(x, self.kernel, padding=(0, reach), groups=self.channels)
        return F.conv2d(x, self.kernel.transpose(2, 3), padding=(reach, 0), groups=self.channels)


def light(tiles: Tensor) -> Tensor:
    """Mean, logarithm of contrast and of fine contrast of tiles [N, C, h, w] in [0, 1]: [N, 3]."""
    grey = tiles.mean(1, keepdim=True)
    fine = grey - F.interpolate(F.avg_pool2d(grey, 4), scale_factor=4.0, mode="nearest")
    contrast = [(x - x.mean((1, 2, 3), keepdim=True)).square().mean((1, 2, 3)) for x in (grey, fine)]
    return torch.stack([grey.mean((1, 2, 3)), *(0.5 * (x + 1e-4).log() for x in contrast)], 1)


def rest(features: Tensor) -> Tensor:
    """Mean and deviation of each feature over all of a tile but one block of 2 x 2: [N, D, t, s] -> [N, t / 2, s / 2,
    2 D]."""
    mean = features.mean((2, 3), keepdim=True)
    apart = features - mean  # what is squared stays small: half precision overflows at 65,504
    share = 4 / (features.shape[2] * features.shape[3] - 4)
    first = -share * F.avg_pool2d(apart, 2)
    square = apart.square()
    second = (1 + share) * square.mean((2, 3), keepdim=True) - share * F.avg_pool2d(square, 2)
    deviation = (second - first.square()).clamp(min=1e-6).sqrt()
    return torch.cat([mean + first, deviation], 1).permute(0, 2, 3, 1)


def _twice(x: Tensor) -> Tensor:
    """Each of [N, P, t, s] as a block of 2 x 2."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _rings(side: int, width: int) -> Tensor:
    """[R, side, side], 1 where a place belongs to a ring and 0 elsewhere; the last ring is the inside."""
    along = torch.minimum(torch.arange(side), torch.arange(side).flip(0))
    ring = (torch.minimum(along[:, None], along[None]) // width).clamp(max=RINGS - 1)
    return (ring[None] == torch.arange(int(ring.max()) + 1)[:, None, None]).float()


def _at_ring(x: Tensor, ring: Tensor) -> Tensor:
    """Of answers for every ring [N, R K, h, w], those of each place's own: [N, K, h, w]."""
    own = [part * where for part, where in zip(x.chunk(len(ring), 1), ring, strict=True)]
    return torch.stack(own).sum(0)


def _whitening(moments: Tensor) -> Tensor:
    """[..., K, K] second moments -> what makes unit variances of them, with a ridge."""
    mean = moments.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    ridge = RIDGE * mean.clamp(min=1e-12) * torch.eye(moments.shape[-1], dtype=moments.dtype)
    white: Tensor = torch.linalg.inv(torch.linalg.cholesky(moments + ridge)).float()
    return white


def _regression(x: Tensor, y: Tensor) -> Tensor:
    """Least squares of y [n, m] on x [n, p], whose last column is one and is not shrunk: [p, m]."""
    x, y = x.double(), y.double()
    ridge = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    ridge[-1, -1] = 0
    weights: Tensor = torch.linalg.solve(x.T @ x + ridge, x.T @ y).float()
    return weights
