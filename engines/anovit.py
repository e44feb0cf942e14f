"""A vision transformer and a painting decoder as an autoencoder (Lee & Kang, AnoViT, arXiv 2203.10808; IEEE Access 10).

It is fitted to give back good tiles, and nothing else: nothing is hidden from it and nothing corrupted. The encoder is
a plain vision transformer; its tokens, less the class token, are laid out as a map of the tile in the places of their
patches, and transposed convolutions paint the tile from that map. What it cannot paint is called defective: the squared
difference, averaged over the channels and smoothed, whose maximum is the score.

From the paper: ViT-B/16 at 384 x 384 pixels, six transposed convolutions and a resizing, L2. Its text says 8 heads,
where the ImageNet weights that it may start from have 12 (`engines.vit_weights`). Only its abstract was at hand when
this was written. What the blocks of the decoder are is taken from copies of the authors' code in others' repositories:
3x3, three without padding that keep the stride (24 -> 26 -> 28 -> 30 rows) and three with stride 2 and padding 1
(59, 117, 233), instance normalisation and ReLU after each, bilinear resizing with the corners in place, tanh. There the
last block is normalised and rectified as well: no channel has a level of its own then, and the tanh is never below 0.
Here the last one is bare. Ours too: the `edge` size.

Nothing that it is taught keeps it from copying a defect. What is left is the narrow way through 64 filters on 30 x 30
places (an eighth of the numbers of a colour tile), normalisation that ties them to the whole tile, and that fitting
ends. At the `edge` size, on a woven fabric, a spot of 10 % contrast was painted to 0.2 % when 3 pixels wide, 0.4 % at
6, 1.5 % at 12 and 23 % at 48 after 300 steps (with 32 filters on that way), and to 6, 17, 36 and 64 % after 800; half
the filters changed little (6, 16, 37 and 57 %). So small defects stand out, and large faint ones fade.

Letters in shapes: N tiles, C channels, h and w pixels, T patches, P values of a patch, D width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.architecture import AnovitArchitecture
from engines.differences import in_contrasts
from engines.mae import patchify

__all__ = ["AnoVit"]


class AnoVit(nn.Module):
    """See the module's docstring; how wide and deep it is says `architecture`.

    The encoder's parameters have the names that `engines.checkpoint_keys` gives those of published checkpoints.
    """

    def __init__(self, architecture: AnovitArchitecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.embed = nn.Linear(a.patch_values, a.width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, a.width))
        self.where = nn.Parameter(torch.zeros(1, 1 + a.side**2, a.width))
        self.encoder = nn.ModuleList(Block(a) for _ in range(a.depth))
        self.norm = nn.LayerNorm(a.width, eps=a.norm_eps)
        self.decoder = _decoder(a)
        self._initialise()

    def forward(self, tiles: Tensor) -> Tensor:
        """Tiles uint8 [N, h, w, C] -> float32 [N, h, w, C] in [0, 1]."""
        patches = patchify(tiles.float() / 127.5 - 1, self.architecture.patch_px)
        repainted = self.decode(self.encode(patches))
        return ((repainted + 1) / 2).permute(0, 2, 3, 1).contiguous()

    def encode(self, patches: Tensor) -> Tensor:
        """patches: [N, T, P] in [-1, 1] -> tokens [N, 1 + T, D], the class token first."""
        x = self.embed(patches)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.where
        for block in self.encoder:
            x = block(x)
        encoded: Tensor = self.norm(x)
        return encoded

    def decode(self, tokens: Tensor) -> Tensor:
        """tokens: [N, 1 + T, D] -> the tile in [-1, 1], [N, C, h, w]."""
        a = self.architecture
        x = tokens[:, 1:].transpose(1, 2).reshape(-1, a.width, a.side, a.side)  # a map of the tile
        x = self.decoder(x)
        return torch.tanh(F.interpolate(x, (a.tile_px, a.tile_px), mode="bilinear", align_corners=True))

    def loss(self, tiles: Tensor, rng: np.random.Generator, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        """The mean squared difference from tiles uint8 [N, h, w, C] to what is painted, grey levels in [0, 1]; nothing
        is drawn from `rng`. And the mean absolute one in units of the tiles' own contrast (detached).
        """
        x = tiles.float() / 255
        error = self(tiles) - x
        return error.square().mean(), in_contrasts(error, x)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.where, std=0.02)


def _decoder(a: AnovitArchitecture) -> nn.Sequential:
    """[N, D, side, side] -> [N, C, 8 side + 41, 8 side + 41]: six blocks, the last one bare (see the module's text)."""
    layers: list[nn.Module] = []
    wide = a.width
    for number, to in enumerate((*a.decoder_widths, a.channels)):
        stride = 1 if number < 3 else 2
        layers.append(nn.ConvTranspose2d(wide, to, 3, stride=stride, padding=stride - 1))
        layers += [nn.InstanceNorm2d(to), nn.ReLU(True)]
        wide = to
    return nn.Sequential(*layers[:-2])


class Block(nn.Module):
    """Pre-norm transformer block (Dosovitskiy et al., 2021): [N, 1 + T, D] -> [N, 1 + T, D]."""

    def __init__(self, a: AnovitArchitecture) -> None:
        super().__init__()
        self.heads, hidden = a.heads, int(a.width * a.mlp_ratio)
        self.norm = nn.LayerNorm(a.width, eps=a.norm_eps)
        self.q, self.kv = nn.Linear(a.width, a.width), nn.Linear(a.width, 2 * a.width)
        self.out = nn.Linear(a.width, a.width)
        self.mlp_norm = nn.LayerNorm(a.width, eps=a.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(a.width, hidden), nn.GELU(), nn.Linear(hidden, a.width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (self._split(part) for part in (self.q(y), *self.kv(y).chunk(2, 2)))
        y = F.scaled_dot_product_attention(q, k, v)  # [N, heads, 1 + T, D / heads]
        x = x + self.out(y.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """[N, 1 + T, D] -> [N, heads, 1 + T, D / heads]."""
        return x.reshape(x.shape[0], -1, self.heads, x.shape[2] // self.heads).transpose(1, 2)
