"""An autoencoder that filters defects out of a texture (Bauer et al., arXiv 2206.11723; Mathematics 2024, 12, 3988).

It is fitted to give back good tiles of which a part was corrupted (`engines.corruption`) as they were before. What it
changes in a tile that it did not see while fitting is what does not belong there. One pass per tile; no skip
connections and no narrow bottleneck: stacked dilated convolutions look far around every place at once, and the
objective alone keeps them from copying.

From the paper (Table 1): 3x3 convolutions with batch normalisation and ReLU, 2x2 max pooling, stacks of convolutions
with dilation rates 1, 2, 4, 8, 16, 32 side by side, each stack followed by a 3x3 convolution as wide as the stack,
transposed 3x3 convolutions of stride 2, a sigmoid without normalisation at the end. PyTorch's transposed convolutions
need `output_padding` 1 for Table 1's sizes: 64 -> 128, not 127. From the paper also: the two-part objective (1) with a
real-valued mask, and image sizes that grow while fitting.

Only the paper's abstract was at hand when this was written; the rest was written from knowledge of it. Not certain, and
possibly not what is printed there: numbers of filters, layers and stacks (64 to 256 filters, three poolings, four
stacks), objective (3), taken to be (1) with SSIM in place of squared differences, and the weights of the two parts. In
a short check (3) was no better at ranking small faint defects, and a sixth dearer to fit. Ours: the `edge` size,
`normalise`, when the image size grows by how much.

Also ours: the score that ships, the map's maximum. The paper, as far as it is known here, takes the largest connected
component above a threshold, and the limit from those of good images: `--set score.kind=area`. docs/engines.md says how
the two compare.

Letters in shapes: N tiles, C channels, h and w pixels.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engines.architecture import SdcArchitecture
from engines.corruption import corrupt_tiles
from engines.differences import in_contrasts, ssim

__all__ = ["SdcAutoencoder", "folded"]

SMALLEST_CONTRAST = 4 / 255
"""Surfaces flatter than this (standard deviation within the window) are not amplified further."""


class SdcAutoencoder(nn.Module):
    """See the module's docstring; how wide and deep it is says `architecture`."""

    def __init__(self, architecture: SdcArchitecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.layers = nn.Sequential(_layers(a))

    def forward(self, tiles: Tensor) -> Tensor:
        """Tiles uint8 [N, h, w, C], h and w multiples of the stride -> float32 [N, h, w, C] in [0, 1]."""
        repainted = self.repaint(tiles.permute(0, 3, 1, 2).float() / 255)
        return repainted.clamp(0, 1).permute(0, 2, 3, 1).contiguous()

    def repaint(self, x: Tensor) -> Tensor:
        """x: [N, C, h, w] in [0, 1] -> the same, as the network would have it; with "local" not clamped to [0, 1].

        Raises ValueError if h or w is no multiple of the stride, or C not what the architecture says.
        """
        a = self.architecture
        _check(x, a)
        if a.normalise == "none":
            return torch.sigmoid(self.layers((x - 0.5) * 4).float())  # float: grey levels need it, under autocast too
        mean, contrast = local_light(x, a)
        repainted: Tensor = mean + contrast * self.layers((x - mean) / contrast).float()
        return repainted

    def loss(self, tiles: Tensor, rng: np.random.Generator, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        """Corrupts tiles uint8 [N, h, w, C], repaints them, and compares with what they were, by the architecture's
        objective.

        Each part, corrupted or not, is a mean over its own area, so that small corruptions count as much as large ones.
        Returns the loss to minimise, and the mean absolute error in units of the tiles' own contrast (detached). Equal
        weights, tiles and states of `rng` give equal losses.
        """
        a = self.architecture
        corrupted, masks = corrupt_tiles(tiles.cpu().numpy(), rng, a.corruption)
        x, seen = (t.to(tiles.device).permute(0, 3, 1, 2).float() / 255 for t in (tiles, torch.from_numpy(corrupted)))
        mask = torch.from_numpy(masks).to(tiles.device)  # [N, h, w]
        repainted = self.repaint(seen)
        different = 1 - ssim(repainted, x) if a.objective == 3 else (repainted - x) ** 2
        different = different.mean(1)  # [N, h, w]
        share = a.corrupted_weight
        loss = share * _mean_over(different, mask) + (1 - share) * _mean_over(different, 1 - mask)
        return loss, in_contrasts(repainted - x, x)


def _check(x: Tensor, a: SdcArchitecture) -> None:
    if torch.onnx.is_in_onnx_export():  # sizes are symbols of the graph there, and nothing to compare
        return
    channels, height, width = x.shape[1:]
    if height % a.stride_px or width % a.stride_px or min(height, width) < a.stride_px:
        raise ValueError(f"tiles are {height} x {width}, expected multiples of the network's stride of {a.stride_px}")
    if channels != a.channels:
        raise ValueError(f"tiles have {channels} channels, expected {a.channels} as in the architecture")


def _layers(a: SdcArchitecture) -> OrderedDict[str, nn.Module]:
    """The rows of Table 1 by name, from the normalised tile to what is repainted."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    wide: int = a.channels
    for level in range(a.levels):
        for k in range(a.encoder_convolutions):
            layers[f"encode{level}_{k}"] = _convolution(wide, a.width << level)
            wide = a.width << level
        layers[f"pool{level}"] = nn.MaxPool2d(2)
    for k in range(a.stacks):
        layers[f"stack{k}"] = Stacked(wide, a.branch_width, a.dilations)
        wide = a.branch_width * len(a.dilations)
        if a.mix_px:
            layers[f"mix{k}"] = _convolution(wide, wide, a.mix_px)
    for level in reversed(range(a.levels)):
        layers[f"up{level}"] = _upsampling(wide, a.width << level)
        wide = a.width << level
        for k in range(a.decoder_convolutions):
            layers[f"decode{level}_{k}"] = _convolution(wide, wide)
    layers["out"] = nn.Conv2d(wide, a.channels, 1)
    return layers


def _convolution(wide: int, to: int, px: int = 3) -> nn.Sequential:
    """[N, wide, h, w] -> [N, to, h, w]."""
    return nn.Sequential(nn.Conv2d(wide, to, px, padding=px // 2, bias=False), nn.BatchNorm2d(to), nn.ReLU(True))


def _upsampling(wide: int, to: int) -> nn.Sequential:
    """[N, wide, h, w] -> [N, to, 2 h, 2 w]."""
    up = nn.ConvTranspose2d(wide, to, 3, stride=2, padding=1, output_padding=1, bias=False)
    return nn.Sequential(up, nn.BatchNorm2d(to), nn.ReLU(True))


class Stacked(nn.Module):
    """Dilated 3x3 convolutions side by side: [N, wide, h, w] -> [N, rates * width, h, w].

    Each is normalised by itself, which is the same as normalising their concatenation, and folds into them.
    """

    def __init__(self, wide: int, width: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, width, 3, padding=d, dilation=d, bias=False), nn.BatchNorm2d(width))
            for d in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([branch(x) for branch in self.branches], 1))


def local_light(x: Tensor, a: SdcArchitecture) -> tuple[Tensor, Tensor]:
    """Mean [N, C, h, w] and contrast [N, 1, h, w] of x [N, C, h, w] around each place, both smooth.

    Everything is average pooling, over squares of the stride, then of `window_px` over those, then back with the steps
    smoothed, so the cost does not grow with the window: 3 ms for a tile of 256 x 256 in OpenVINO, where `SDC_EDGE`
    takes 100 (one core, fp32). The contrast is the standard deviation from the local mean, at least SMALLEST_CONTRAST;
    differences are squared, not squares subtracted, so that half precision does. A defect moves mean and contrast
    around it too, by its share of the window; the network is fitted with that.
    """
    mean = _spread(_pooled(x, a), a)
    variance = _pooled(((x - mean) ** 2).mean(1, keepdim=True), a)
    return mean, _spread(variance.clamp(min=SMALLEST_CONTRAST**2).sqrt(), a)


def _pooled(x: Tensor, a: SdcArchitecture) -> Tensor:
    """[N, C, h, w] -> [N, C, h / stride, w / stride], the mean of about `window_px` around."""
    return _box(F.avg_pool2d(x, a.stride_px), a.window_px // a.stride_px // 2 * 2 + 1)


def _spread(x: Tensor, a: SdcArchitecture) -> Tensor:
    """[N, C, h / stride, w / stride] -> [N, C, h, w] without steps; half the cost of linear interpolation."""
    return _box(F.interpolate(x, scale_factor=float(a.stride_px), mode="nearest"), a.stride_px + 1)


def _box(x: Tensor, px: int) -> Tensor:
    """Means over squares of odd `px`, of the same size as x; at the sides over what is there."""
    rows = F.avg_pool2d(x, (px, 1), stride=1, padding=(px // 2, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, px), stride=1, padding=(0, px // 2), count_include_pad=False)


def _mean_over(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values [N, h, w] with weights [N, h, w] per tile, and of that over tiles."""
    return ((values * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1)).mean()


def folded(network: SdcAutoencoder) -> SdcAutoencoder:
    """A copy for inference with every batch normalisation folded into its convolution; the same answers to 1e-5.

    ONNX exporters fold the normalisation of plain convolutions by themselves, that of transposed ones not all of them.
    """
    copied = copy.deepcopy(network).eval()
    for sequence in [m for m in copied.modules() if isinstance(m, nn.Sequential)]:
        for k in range(len(sequence) - 1):
            convolution, norm = sequence[k], sequence[k + 1]
            if isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, (nn.Conv2d, nn.ConvTranspose2d)):
                transposed = isinstance(convolution, nn.ConvTranspose2d)
                sequence[k] = fuse_conv_bn_eval(convolution, norm, transposed)
                sequence[k + 1] = nn.Identity()
    return copied
