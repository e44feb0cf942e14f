"""Our own engine: repaints hidden blocks of pixels and of features, and knows how unusual what it missed is.

Conservators retouch what is lost in a painting from what surrounds it. The pixels are repainted by a masked autoencoder
with local context (`engines.mae`) that starts from `texture-s`, which knows procedural textures; fitting shows it the
surface, with structured corruption in the surroundings, so that a defect which reaches beyond the hidden block is not
continued into it. The features are those of a small ImageNet network (`engines.lite0`), a block of which is repainted
from the rest of the tile. `engines.unusual` judges both differences by those of good parts, at their place and light.

What is left, at several scales, is added up, each in spreads of the largest value of good tiles that were held out
(Gumbel's extreme-value distribution, as block maxima have it): what has the same largest value on every good part
counts for more. No weight was chosen by looking at defects.

Statistics are measured with one plan, MEASURED_PLAN; the line's thresholds are calibrated for the plan that it runs, so
that they serve the others as well.

Letters in shapes: N tiles, C channels, h and w pixels, E kinds of evidence.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.architecture import RetouchArchitecture
from engines.architecture.retouch import WIDER
from engines.corruption import corrupt_tiles
from engines.lite0 import CHANNELS, STRIDE_PX, Lite0, load_lite0
from engines.mae import MaskedAutoencoder, plan_tensors
from engines.plans import named_plan
from engines.unusual import AT_ONCE, ErrorDistance, FeatureDistance, Gaussian

__all__ = ["Retouch", "retouch_from"]

MEASURED_PLAN = "x16"
"""What is usual is learnt under this plan, whichever a line takes: near what `x1` says, for a fraction of the time."""
CORRUPTED_SHARE = 0.5
"""Of the steps of a fit, in which the surroundings are corrupted."""
FOLDS = 3
"""The good tiles are judged fold by fold, by what was learnt from the others: one after the other in the folder, not
drawn at random, for neighbours in time are alike, and parts of next week are not."""
SHARPEST = 0.02
"""The smallest spread of largest values, as a share of their mean: few held-out tiles may be alike by chance."""


class Retouch(nn.Module):
    """See the module's docstring; what it is made of says `architecture`."""

    weight: Tensor

    def __init__(self, architecture: RetouchArchitecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.repainter = MaskedAutoencoder(a.pixels)
        self.error = ErrorDistance(a.channels, a.tile_px, a.pixels.patch_px, a.sigmas_px)
        self.lite0 = Lite0() if a.features == "lite0" else None
        side = a.tile_px // STRIDE_PX
        self.feature = FeatureDistance(CHANNELS, side, a.context) if self.lite0 else None
        self.wider = nn.ModuleList(Gaussian(sigma, side, 1) for sigma in WIDER if self.lite0)
        evidence = 2 + len(WIDER) if self.lite0 else 1
        self.register_buffer("weight", torch.full((evidence, 1, 1), math.nan))

    def forward(self, tiles: Tensor, visible: Tensor, hidden: Tensor, place: Tensor) -> Tensor:
        """Tiles uint8 [N, h, w, C] and a mask plan -> float32 [N, h, w, C + 1]: the repainted tile, and the map, above
        0: the worst place of a good tile has about 1."""
        repainted, x = self.repaint(tiles, visible, hidden, place), _unit(tiles)
        features = None if self.lite0 is None else self.lite0(x)
        evidence = self.evidence(repainted.permute(0, 3, 1, 2) - x, x, features)
        together = (evidence * self.weight).sum(1)
        return torch.cat([repainted, together[..., None]], 3)

    def repaint(self, tiles: Tensor, *plan: Tensor) -> Tensor:
        """Tiles uint8 [N, h, w, C] -> float32 [N, h, w, C], each channel by itself."""
        n, height, width, channels = tiles.shape
        repainted: Tensor = self.repainter(_planes(tiles), *plan)
        return repainted.reshape(n, channels, height, width).permute(0, 2, 3, 1)

    def evidence(self, error: Tensor, x: Tensor, features: Tensor | None) -> Tensor:
        """The error of a repainting [N, C, h, w], the tiles [N, C, h, w] in [0, 1] and their features, if any -> [N, E,
        h, w]: the error's distance, that of the features, and the latter over wider and wider neighbourhoods."""
        found: Tensor = self.error(error, x)[:, None]
        if features is None or self.feature is None:
            return found
        near = self.feature(features)[:, None]
        wider = torch.cat([near, *(wider(near) for wider in self.wider)], 1)
        wider = F.interpolate(wider, scale_factor=float(STRIDE_PX), mode="bilinear", align_corners=False)
        return torch.cat([found, wider], 1)

    def loss(self, tiles: Tensor, rng: np.random.Generator, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        """That of `MaskedAutoencoder.loss` on tiles uint8 [N, h, w, C], which are shown corrupted now and then."""
        shown = tiles
        if rng.random() < CORRUPTED_SHARE:
            shown = torch.from_numpy(corrupt_tiles(tiles.cpu().numpy(), rng)[0]).to(tiles.device)
        return self.repainter.loss(_planes(tiles), rng, progress, shown=_planes(shown))

    @torch.no_grad()
    def measure(self, good: Tensor) -> None:
        """Learns what is usual from good tiles uint8 [N, h, w, C], cut as the line cuts them: what lies along their
        sides is learnt as such. Their order should be that in which they were taken: neighbours are held out together.
        """
        plan = plan_tensors(named_plan(MEASURED_PLAN, self.architecture.pixels))
        x = _unit(good)
        parts = zip(torch.split(good, AT_ONCE), torch.split(x, AT_ONCE), strict=True)
        error = torch.cat([self.repaint(tiles, *plan).permute(0, 3, 1, 2) - part for tiles, part in parts])
        features = None if self.lite0 is None else torch.cat([self.lite0(part) for part in torch.split(x, AT_ONCE)])
        largest = []
        for fold in torch.arange(len(good)).chunk(FOLDS):
            others = torch.ones(len(good), dtype=torch.bool).index_fill(0, fold, False)
            self._learn(error[others], x[others], None if features is None else features[others])
            for part in torch.split(fold, AT_ONCE):
                found = self.evidence(error[part], x[part], None if features is None else features[part])
                largest.append(found.amax((2, 3)))
        self._learn(error, x, features)
        self._put_on_one_scale(torch.cat(largest))

    def _learn(self, error: Tensor, x: Tensor, features: Tensor | None) -> None:
        self.error.measure(error, x)
        if features is not None and self.feature is not None:
            self.feature.measure(features)

    def _put_on_one_scale(self, largest: Tensor) -> None:
        """Takes the largest values of good tiles that were held out, [N, E]; weights are such that the usual ones sum
        to one. Gumbel's distribution by its moments."""
        mean = largest.mean(0)
        spread = torch.maximum(largest.std(0, correction=0), SHARPEST * mean) * math.sqrt(6) / math.pi
        usual = mean - np.euler_gamma * spread
        self.weight.copy_((1 / spread / (usual / spread).sum())[:, None, None])


def _unit(tiles: Tensor) -> Tensor:
    """uint8 [N, h, w, C] -> [N, C, h, w] in [0, 1]."""
    return tiles.permute(0, 3, 1, 2).float() / 255


def _planes(tiles: Tensor) -> Tensor:
    """[N, h, w, C] -> [N C, h, w, 1]."""
    return tiles.permute(0, 3, 1, 2).reshape(-1, *tiles.shape[1:3], 1)


def retouch_from(architecture: RetouchArchitecture, texture: MaskedAutoencoder) -> Retouch:
    """A network that repaints as `texture` does, with ImageNet's features; to be fitted and measured.

    Raises MasklineError where the features' weights are missing.
    """
    network = Retouch(architecture)
    network.repainter.load_state_dict(texture.state_dict())
    if network.lite0 is not None:
        network.lite0.load_state_dict(load_lite0().state_dict())
    return network
