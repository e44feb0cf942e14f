"""A masked autoencoder (He et al., 2021) that repaints every block of a tile in one pass.

The graph takes a tile once. It embeds its patches once, gathers the visible tokens of every variant of the mask plan
(Dini & Rahtu, section 3), encodes only those, decodes only the hidden ones, and puts the repainted patches back.

Letters in shapes: N tiles, V variants, T tokens, K visible and H hidden tokens of a variant, D width, P values of a
patch.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.architecture import MaeArchitecture
from engines.bases import cosine_basis, first_offset, plane_waves, sine_positions
from engines.plans import Index, Plan, blocks, window

__all__ = ["MaskedAutoencoder", "draw_mask", "draw_windows", "patchify", "plan_tensors", "unpatchify"]

SMALLEST_SCALE = 2 / 255
"""Tiles flatter than this (standard deviation of the visible pixels) are not amplified further."""
WINDOWS_SHARE = 0.25
"""Of the steps of training, where plan x1 shows windows only."""
NORMALISED_EPS = 1e-6
"""What He et al. add to a patch's variance before they divide by its root."""


def patchify(tiles: Tensor, patch: int) -> Tensor:
    """[N, H, W, C] -> [N, T, P], tokens row by row, values of a patch in (row, column, channel) order."""
    n, height, width, channels = tiles.shape
    x = tiles.reshape(n, height // patch, patch, width // patch, patch, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, -1, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """[N, T, P] -> [N, H, W, C]; the inverse of `patchify`."""
    rows, columns = grid
    x = patches.reshape(-1, rows, columns, patch, patch, patches.shape[-1] // patch**2)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * patch, columns * patch, x.shape[-1])


def plan_tensors(plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """`visible` [V, K], `hidden` [V, H], `place` [T] of a plan, int64."""
    return tuple(torch.from_numpy(a.astype(np.int64)) for a in (plan.visible, plan.hidden, plan.place))  # type: ignore[return-value]


class MaskedAutoencoder(nn.Module):
    """See the module's docstring; which blocks it is made of is in `architecture`."""

    where: Tensor
    decoder_where: Tensor
    colour_mean: Tensor
    colour_std: Tensor
    token_at: Tensor

    def __init__(self, architecture: MaeArchitecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        offset = a.positions == "offset"
        self.embed = nn.Linear(a.patch_values, a.width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 1, a.width)) if a.class_token else None
        self.encoder = nn.ModuleList(Block(a.width, a.heads, a.mlp_ratio, a, offset) for _ in range(a.depth))
        self.norm = nn.LayerNorm(a.width, eps=a.norm_eps)
        self.to_decoder = nn.Linear(a.width, a.decoder_width) if a.decoder == "self" else nn.Identity()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 1, a.decoder_width))
        self.decoder = nn.ModuleList(
            Block(
                a.decoder_width, a.decoder_heads, a.decoder_mlp_ratio, a, offset, a.width if a.decoder == "cross" else 0
            )
            for _ in range(a.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(a.decoder_width, eps=a.norm_eps)
        self.head = nn.Linear(a.decoder_width, a.patch_values)
        if not offset:
            self.register_buffer("where", sine_positions(a.grid, a.width), persistent=False)
            self.register_buffer("decoder_where", sine_positions(a.grid, a.decoder_width), persistent=False)
        if a.normalise == "fixed":
            self.register_buffer("colour_mean", _per_value(a.mean, a), persistent=False)
            self.register_buffer("colour_std", _per_value(a.std, a), persistent=False)
        if a.target == "normalised":
            self.register_buffer("token_at", torch.cartesian_prod(*(torch.arange(n).float() for n in a.grid)), False)
        self._initialise()

    def forward(self, tiles: Tensor, visible: Tensor, hidden: Tensor, place: Tensor) -> Tensor:
        """Tiles uint8 [N, h, w, C], a plan: [V, K], [V, H], [T] -> float32 [N, h, w, C] in [0, 1]."""
        a = self.architecture
        x, mean, scale = self.repaint(patchify(tiles.float() / 255, a.patch_px), visible, hidden)
        x = (x * scale + mean).flatten(1, 2)[:, place]  # [N, T, P]
        return unpatchify(x.clamp(0, 1), a.patch_px, a.grid)

    def repaint(self, patches: Tensor, visible: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """patches: [N, T, P] in [0, 1] -> normalised answers [N, V, H, P], and the mean and scale that make pixels of
        them again: [N, V, 1, 1], [1, 1, 1, P] with fixed ones, [N, V, H, P] where every patch has its own.
        """
        tokens, mean, scale = self.visible_tokens(patches, visible)
        if self.architecture.target == "normalised":
            own_mean, own_scale = self.guess_own((patches - mean[0]) / scale[0], visible, hidden)
            mean, scale = own_mean * scale + mean, own_scale * scale
        return self.decode(self.encode(tokens, visible), visible, hidden), mean, scale

    def visible_tokens(self, patches: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeds each patch once: [N, T, P] -> tokens [N, V, K, D], mean and scale of each variant [N, V, 1, 1] (fixed
        ones: [1, 1, 1, P]).

        Embedding is linear, so normalising with a variant's own mean m and scale s can follow it:
        E((x - m) / s) = (E x - m E 1) / s.
        """
        a = self.architecture
        if a.normalise == "fixed":
            mean, scale = self.colour_mean, self.colour_std
            return self.embed((patches - mean[0]) / scale[0])[:, visible], mean, scale
        x = patches - 0.5  # keeps the two sums below small, and their difference exact on bright flat tiles
        first, second = x.mean(2)[:, visible], (x * x).mean(2)[:, visible]  # [N, V, K]
        mean = first.mean(2)[..., None, None]  # [N, V, 1, 1]
        variance = second.mean(2)[..., None, None] - mean * mean
        scale = variance.clamp(min=SMALLEST_SCALE**2).sqrt()
        e = F.linear(x, self.embed.weight)[:, visible]  # [N, V, K, D]
        return (e - mean * self.embed.weight.sum(1)) / scale + self.embed.bias, mean + 0.5, scale

    def guess_own(self, x: Tensor, visible: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What mean and deviation the hidden patches of x [N, T, P] may have: [N, V, H, 1] each.

        Both are averages over the variant's visible patches with weights 1 / distance^4, so that nothing of what is
        hidden shows. On good parts of five materials that guess was nearer than those by the next ring or two of
        patches, by other powers of the distance, or by the whole tile.
        """
        mean = x.mean(2, keepdim=True)
        variance = (x - mean).square().sum(2, keepdim=True) / (x.shape[2] - 1) + NORMALISED_EPS  # as when trained
        apart = self.token_at[hidden][:, :, None] - self.token_at[visible][:, None]  # [V, H, K, 2]
        weight = apart.square().sum(3) ** -2  # [V, H, K]
        own = torch.matmul(weight / weight.sum(2, keepdim=True), torch.cat([mean, variance], 2)[:, visible])
        return own[..., :1], own[..., 1:].sqrt()

    def encode(self, x: Tensor, visible: Tensor) -> Tensor:
        """Visible tokens [N, V, K, D] -> [N, V, K, D]; a class token, if any, comes first."""
        if self.architecture.positions == "sine":
            x = x + self.where[visible]
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], x.shape[1], -1, -1), x], 2)
        for block in self.encoder:
            x = block(x, x, visible, visible)
        encoded: Tensor = self.norm(x)
        return encoded

    def decode(self, x: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Encoded tokens [N, V, K, D] -> answers for the hidden ones [N, V, H, P]."""
        a = self.architecture
        x = self.to_decoder(x)
        q = self.mask_token.expand(x.shape[0], x.shape[1], hidden.shape[1], -1)
        if a.positions == "sine":
            q = q + self.decoder_where[hidden]
            x = self._add_positions(x, visible) if a.decoder == "self" else x
        if a.decoder == "cross":
            for block in self.decoder:
                q = block(q, x, hidden, visible)
        else:
            q = self._decode_together(x, q, visible, hidden)
        answers: Tensor = self.head(self.decoder_norm(q))
        return answers

    def _add_positions(self, x: Tensor, visible: Tensor) -> Tensor:
        where = self.decoder_where[visible]  # [V, K, D]
        return x + (F.pad(where, (0, 0, 1, 0)) if self.class_token is not None else where)

    def _decode_together(self, x: Tensor, q: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """He et al.: all tokens in every block; in the last one only the hidden tokens ask, for only they are read."""
        count, every = q.shape[2], torch.cat([visible, hidden], 1)
        x = torch.cat([x, q], 2)  # [N, V, K + H, D]; attention does not mind the order
        for block in self.decoder[:-1]:
            x = block(x, x, every, every)
        asked: Tensor = self.decoder[-1](x[:, :, -count:], x, hidden, every)
        return asked

    def loss(
        self, tiles: Tensor, rng: np.random.Generator, progress: float = 0.0, shown: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hides a part of tiles uint8 [N, h, w, C]. -> (loss, mean absolute error), in units of the tile's contrast.

        The loss is L1 plus half the L1 of the differences between neighbouring pixels, which punishes blur. `shown`:
        what the network sees of the tiles where that is something else, of the same shape.
        """
        a = self.architecture
        local = a.context is not None and rng.random() < WINDOWS_SHARE
        visible, hidden = draw_windows(a, rng) if local else draw_mask(a, rng)
        patches = patchify(tiles.float() / 255, a.patch_px)
        seen = patches if shown is None else patchify(shown.float() / 255, a.patch_px)
        answer, mean, scale = self.repaint(seen, visible, hidden)
        error = answer - (patches[:, hidden] - mean) / scale  # [N, V, H, P]
        l1 = error.abs().mean()
        picture = error.reshape(*error.shape[:3], a.patch_px, a.patch_px, a.channels)
        slope = (picture.diff(dim=3).abs().mean() + picture.diff(dim=4).abs().mean()) / 2
        return l1 + 0.5 * slope, l1.detach()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)
        if self.class_token is not None:
            nn.init.normal_(self.class_token, std=0.02)
        basis, spread = cosine_basis(self.architecture)  # [P, P], [P]
        with torch.no_grad():
            # Textures are mostly low frequencies, and a network that is shown pixels learns those first, for hours.
            # Cosine coefficients of about equal size show it all of them at once, and answers are built likewise.
            rows = min(len(basis), self.architecture.width)
            self.embed.weight[:rows] = basis[:rows] / spread[:rows, None]
            rows = min(len(basis), self.architecture.decoder_width)
            self.head.weight[:, :rows] = 0.2 * (basis[:rows] * spread[:rows, None]).T
        for block in (*self.encoder, *self.decoder):
            for last in (block.out, block.mlp[2]):
                last.weight.data.mul_(0.5)


def draw_mask(a: MaeArchitecture, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One variant to train on, `visible` [1, K] and `hidden` [1, H].

    Mostly a whole lattice of far-apart blocks, as plan x16 hides (a quarter of the tile: many answers for little cost);
    sometimes a part of it, as x1 and x4 do; sometimes blocks anywhere, from 2 % to 35 %.
    """
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


def draw_windows(a: MaeArchitecture, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Two windows to train on, as plan x1 shows them, each with one to five of its blocks hidden: [2, K], [2, H]."""
    cells, count = [cell for row in blocks(a.grid, a.block) for cell in row], int(rng.integers(1, 6))
    visible: list[Index] = []
    hidden: list[Index] = []
    while len(visible) < 2:
        seen = window(a.grid, cells[int(rng.integers(len(cells)))][0], a.block, a.context)
        inside = [cell for cell in cells if len(cell) == a.block**2 and np.isin(cell, seen).all()]
        chosen = rng.permutation(len(inside))[:count]
        hidden.append(np.sort(np.concatenate([np.asarray(inside[k]) for k in chosen])))
        visible.append(np.setdiff1d(seen, hidden[-1]))
    return torch.from_numpy(np.stack(visible)).long(), torch.from_numpy(np.stack(hidden)).long()


class Block(nn.Module):
    """Pre-norm transformer block; queries and context may be the same tokens."""

    waves: Tensor

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, a: MaeArchitecture, offset: bool, context_width: int = 0
    ) -> None:
        super().__init__()
        self.heads, hidden = heads, int(width * mlp_ratio)
        self.norm = nn.LayerNorm(width, eps=a.norm_eps)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(context_width or width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=a.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.offset_q: nn.Parameter | None = None
        if offset:
            waves, turn = plane_waves(a.grid, width // heads)
            self.register_buffer("waves", waves, persistent=False)  # [T, D / heads]
            self.offset_q = nn.Parameter(torch.stack([turn(*first_offset(heads, h)) for h in range(heads)]))
            self.offset_k = nn.Parameter(torch.eye(waves.shape[1]).repeat(heads, 1, 1))
        # A context that is not the block's own input arrives normalised (the encoder's last norm).
        self.own_context = context_width == 0

    def forward(self, x: Tensor, context: Tensor, at: Tensor, context_at: Tensor) -> Tensor:
        """x [N, V, H, D] asks context [N, V, K, D]; at [V, H] and context_at [V, K] are their token numbers."""
        y = self.norm(x)
        c = (y if context is x else self.norm(context)) if self.own_context else context
        x = x + self.out(self._attend(y, c, at, context_at))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out

    def _attend(self, y: Tensor, c: Tensor, at: Tensor, context_at: Tensor) -> Tensor:
        q = self.q(y)
        k, v = self.kv(c).chunk(2, 3)
        if self.offset_q is not None:
            q = q + torch.matmul(self.waves, self.offset_q).transpose(0, 1).flatten(1)[at]
            k = k + torch.matmul(self.waves, self.offset_k).transpose(0, 1).flatten(1)[context_at]
        y = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(v))  # [N V, heads, H, D / heads]
        together: Tensor = y.transpose(1, 2).reshape(q.shape)
        return together

    def _split(self, x: Tensor) -> Tensor:
        """[N, V, K, D] -> [N V, heads, K, D / heads]."""
        return x.reshape(-1, x.shape[2], self.heads, x.shape[3] // self.heads).transpose(1, 2)


def _per_value(number: float | tuple[float, float, float], a: MaeArchitecture) -> Tensor:
    """One number, or one per channel, for each value of a patch: [1, 1, 1, P]."""
    channels = number if isinstance(number, tuple) else (number,) * a.channels
    return torch.tensor(channels).repeat(a.patch_px**2).reshape(1, 1, 1, -1)
