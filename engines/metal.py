"""A transformer that repaints every patch of a tile from the others (De Nardin et al., arXiv 2210.15540; IJNS 2022).

A tile is cut into squares, and again into stripes as wide as the tile; both are embedded linearly. A stripe's embedding
is cut into as many segments as it crosses squares, and each segment is put behind the embedding of its square: so a
token also tells of what lies farther away. Attention in which no token sees itself, a perceptron that makes a patch of
each token, loss L1 - SSIM (equations 2 to 4). What cannot be repainted from its surroundings does not belong there.

The idea is that a patch must not know itself. Leaving out the diagonal of the attention matrix, as the paper has it,
does not achieve that: the query is made of the patch, the residual carries it to the end, its row's stripe holds it
and is in every token of the row, and in a second block it comes back from its neighbours. That is `attention`
"literal". With "strict", the default, nothing of a patch reaches its own reconstruction:

* Queries and the residual start from a learned embedding of the place alone.
* Keys and values of every block are made of the embedded patches, not of what the block before answered, so that
  nothing takes a detour.
* A patch asks the other rows' tokens as they are, and its own row's as they would be without it: the same squares, but
  segments of the stripe in which that patch contributes nothing (it is mid grey). A stripe without one patch still
  tells of all others, where leaving all segments of the row out would lose them; and since the embedding is linear, all
  of these stripes together cost one product and one sum more. Its own token, square and segment, it does not ask.

So the answer to a patch is that to a tile in which the patch was painted grey, for all patches in one pass.

`stripes` "columns" is the same with rows and columns exchanged, "none" leaves the stripes out.

Only the paper's abstract and an outline were at hand. Its parameter counts, 26.3 million with two blocks and 17.8 with
one, are not ours: METAL_PAPER has 9.1 million, METAL_PAPER_PRODUCT 8.3. So a block there has 8.5 million, where tokens
of 2 x 128 values and a perceptron four times as wide make 0.8: tokens must be much wider there, some 840 values in a
block of that form. What is left without blocks differs less, 9.3 million there and 7.5 here, of which 6.3 embed
stripes. These are therefore ours, and possibly not what is printed: that squares and segments have 128 values each, the
perceptrons' widths, learned embeddings of places and what they start from, normalisation before every part, SSIM over
windows of 11 x 11 pixels, and equal weights for both terms of the loss. Ours for certain: the `edge` size.

The error map is the paper's in its order: squares are averaged over the channels instead of summed, smoothed by a
Gaussian, and their root is taken (`edge.anomaly`, kind "smoothed"). That is a constant factor and a root of what is
printed, which change no order of pixels or tiles. How wide the Gaussian is, is ours too.

Letters in shapes: N tiles, L lines (rows; columns with "columns") of M patches, T = L M, P values of a patch, E width
of an embedding, D of a token.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from engines.architecture import MetalArchitecture
from engines.bases import plane_waves
from engines.differences import in_contrasts, ssim
from engines.mae import patchify, unpatchify

__all__ = ["MaskedTransformer"]

SSIM_WINDOW_PX = 11
CONTRAST = 0.25
"""What a standard deviation of 1 inside the network is in pixels; their middle is mid grey."""


class MaskedTransformer(nn.Module):
    """See the module's docstring; how wide and deep it is says `architecture`."""

    stripe: Stripes | None
    others: Tensor
    other_pairs: Tensor
    elsewhere: Tensor

    def __init__(self, architecture: MetalArchitecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        wide, hidden = a.token_width, int(a.token_width * a.mlp_ratio)
        self.square = nn.Linear(a.patch_values, a.width)
        self.stripe = Stripes(a.side, a.patch_values, a.width) if a.stripes != "none" else None
        self.where = nn.Parameter(torch.empty(a.side, a.side, wide))
        self.asked = nn.Parameter(torch.empty(a.side, a.side, wide)) if a.attention == "strict" else None
        self.encoder = nn.ModuleList(Block(wide, a.heads, hidden) for _ in range(a.depth))
        self.decoder = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, hidden), nn.GELU())
        self.head = nn.Linear(hidden, a.patch_values)
        every = torch.arange(a.side)
        others = every[:-1] + (every[:-1] >= every[:, None])  # [M, M - 1]: all but m, for every m
        elsewhere = (others[:, :, None] * a.side + every).flatten(1)  # [L, T - M]: tokens that are not in the line
        self.register_buffer("others", others, persistent=False)
        self.register_buffer("other_pairs", every[:, None] * a.side + others, persistent=False)  # in M x M
        self.register_buffer("elsewhere", elsewhere, persistent=False)
        self._initialise()

    def forward(self, tiles: Tensor) -> Tensor:
        """Tiles uint8 [N, h, w, C] -> float32 [N, h, w, C] in [0, 1]."""
        return self.repaint(tiles.float() / 255).clamp(0, 1)

    def repaint(self, x: Tensor) -> Tensor:
        """x: [N, h, w, C] in [0, 1] -> the same, every patch as the others would have it; not clamped to [0, 1]."""
        a = self.architecture
        patches = patchify((x - 0.5) / CONTRAST, a.patch_px).reshape(-1, a.side, a.side, a.patch_values)
        if a.stripes == "columns":
            patches = patches.transpose(1, 2)
        answers = self.head(self.decoder(self.attend(*self.embed(patches))))
        if a.stripes == "columns":
            answers = answers.transpose(1, 2)
        return unpatchify(answers.flatten(1, 2), a.patch_px, (a.side, a.side)) * CONTRAST + 0.5

    def embed(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """patches: [N, L, M, P] -> tokens [N, L, M, D], and near [N, L, M, M - 1, D]: of every patch the others of its
        line, as they would be without it.
        """
        squares = self.square(patches)  # [N, L, M, E]
        if self.stripe is None:
            tokens = squares + self.where
            return tokens, tokens[:, :, self.others]
        segments, without = self.stripe(patches)  # [N, L, M, E], [N, L, M, M, E]
        tokens = torch.cat([squares, segments], 3) + self.where
        near = torch.cat([squares[:, :, self.others], without.flatten(2, 3)[:, :, self.other_pairs]], 4)
        return tokens, near + self.where[:, self.others]

    def attend(self, tokens: Tensor, near: Tensor) -> Tensor:
        """tokens [N, L, M, D] and near [N, L, M, M - 1, D], as `embed` makes them -> answers [N, L, M, D]."""
        x = tokens if self.asked is None else self.asked.expand_as(tokens)
        for block in self.encoder:
            if self.asked is None:
                tokens, near = x, x[:, :, self.others]
            x = block(x, tokens, near, self.elsewhere)
        return x

    def loss(self, tiles: Tensor, rng: np.random.Generator, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        """Repaints tiles uint8 [N, h, w, C] and compares: L1 - SSIM, means over all pixels, -1 at best.

        Returns that, and the mean absolute error in units of the tiles' own contrast (detached). Draws nothing from
        `rng`: every patch of every tile is hidden every time.
        """
        x = tiles.float() / 255
        repainted = self.repaint(x)
        alike = ssim(repainted.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), SSIM_WINDOW_PX)
        return (repainted - x).abs().mean() - alike.mean(), in_contrasts(repainted - x, x)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        waves, _ = plane_waves((self.architecture.side,) * 2, self.architecture.token_width)
        with torch.no_grad():
            # Places that are near are alike, and queries and keys turn them alike: so every place first looks at what
            # is around it. On a fabric the error after 100 steps was 0.41 so, and 0.59 from small random places.
            for places in (self.where, self.asked):
                if places is not None:
                    places.copy_(waves.reshape(places.shape))
            for module in self.modules():
                if isinstance(module, Block):
                    module.q.weight.copy_(module.kv.weight.chunk(2)[0])


class Stripes(nn.Module):
    """Embeds stripes of M patches linearly, and cuts each embedding into M segments.

    weight[m] [P, M E] is what patch m contributes to the embedding of its stripe.
    """

    all_but_one: Tensor

    def __init__(self, side: int, patch_values: int, width: int) -> None:
        super().__init__()
        self.side, self.width = side, width
        self.weight = nn.Parameter(torch.empty(side, patch_values, side * width))
        self.bias = nn.Parameter(torch.zeros(side * width))
        self.register_buffer("all_but_one", 1 - torch.eye(side), persistent=False)
        bound = (6 / (side * (patch_values + width))) ** 0.5  # Glorot & Bengio's, for the whole stripe
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """patches: [N, L, M, P] -> segments [N, L, M, E], and the same without patch m, for every m: [N, L, M, M, E].

        That is a sum over the other patches, not the whole less the patch: in floating point that would leave a trace
        of it.
        """
        each = patches.permute(2, 0, 1, 3).flatten(1, 2)  # [M, N L, P]
        parts = torch.matmul(each, self.weight).transpose(0, 1)  # [N L, M, M E]
        whole, without = parts.sum(1) + self.bias, torch.matmul(self.all_but_one, parts) + self.bias
        square = (self.side, self.side)
        return whole.reshape(-1, *square, self.width), without.reshape(-1, *square, self.side, self.width)


class Block(nn.Module):
    """A transformer's block whose queries each have some keys and values of their own."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.context_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, tokens: Tensor, near: Tensor, elsewhere: Tensor) -> Tensor:
        """x [N, L, M, D] asks those of tokens [N, L, M, D] that `elsewhere` [L, F] names for its line, out of all
        T = L M, and each its own near [N, L, M, K, D].
        """
        far = self.kv(self.context_norm(tokens)).flatten(1, 2)[:, elsewhere]  # [N, L, F, 2 D]
        q, near = self.q(self.norm(x)), self.kv(self.context_norm(near))
        seen = self._attend(q.flatten(0, 1), far.flatten(0, 1), near.flatten(0, 1))
        x = x + self.out(seen).reshape(x.shape)
        out: Tensor = x + self.mlp(x)
        return out

    def _attend(self, q: Tensor, far: Tensor, near: Tensor) -> Tensor:
        """Of B lines: q [B, M, D] asks far [B, F, 2 D], and each its own near [B, M, K, 2 D] -> [B, M, D]."""
        q = self._split(q)  # [B, heads, M, D / heads]
        k, v = (self._split(x) for x in far.chunk(2, 2))  # [B, heads, F, D / heads]
        near_k, near_v = (self._split(x) for x in near.chunk(2, 3))  # [B, heads, M, K, D / heads]
        like_far = torch.matmul(q, k.transpose(2, 3))
        like_near = torch.matmul(q[..., None, :], near_k.transpose(3, 4)).squeeze(3)
        weights = (torch.cat([like_far, like_near], 3) * q.shape[3] ** -0.5).softmax(3)  # [B, heads, M, F + K]
        of_far, of_near = weights.split([k.shape[2], near_k.shape[3]], 3)
        seen = torch.matmul(of_far, v) + torch.matmul(of_near[..., None, :], near_v).squeeze(3)
        return seen.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """[B, ..., D] -> [B, heads, ..., D / heads]."""
        return x.reshape(*x.shape[:-1], self.heads, -1).movedim(x.dim() - 1, 1)
