"""An autoencoder that predicts the map of anomalies itself (Chen et al., A Novel MAE-Based Self-Supervised Anomaly
Detection and Localization Method, IEEE Access 11, 2023): MALA, mask-pretrained anomaly localization autoencoder.

One network for several products, fitted in two stages. In the first it is a masked autoencoder: three quarters of a
tile's patches are hidden and repainted from the rest, so that the encoder learns what products look like. In the second
the encoder is frozen, nothing is hidden, and the network learns to tell where anomalies are that were laid over good
tiles (`engines.perlin`). One pass per tile; the answer is a picture and, behind it, the map.

Stage 1, equation (3): L1 + SSIM + cross-entropy. As printed, SSIM compares an image with itself, and one term stands
for both labels. What is meant: 1 - SSIM of image and reconstruction, and a module that predicts pseudo labels: 0 for
patches of the image, 1 for repainted ones. The autoencoder plays against it, to have its patches taken for the image's.
Both moves are one step: the cross-entropy is minimised, and its gradient is reversed where it leaves the module for the
autoencoder (Ganin & Lempitsky, 2015), times ADVERSARIAL. Such a game has no floor: at five times that weight the
autoencoder once left the scale of grey levels for what the module had never seen, and was lost. So the module sees
repainted patches clamped to the scale.

Stage 2: the token balance module weighs tokens of three depths against each other, place by place: the encoder's first,
in which texture is, its last, in which meaning is, and the decoder's last, which know what a good product would look
like. Of the balanced tokens comes a map of two channels, normal and anomalous, trained by L1 + focal loss against where
the anomalies are. The score is the maximum of the map averaged over squares of k x k pixels; the average is taken here,
at the end of the graph, the maximum by `engines.bundle.Score`.

Only the paper's abstract and an outline were at hand when this was written. Not certain, and possibly not what is
printed there: how the token balance module weighs (a softmax over the three, of all three), what the module for pseudo
labels looks like (two layers that see one patch), whether stage 2 trains the decoder, sizes, k, and the weights of the
losses (1 each). Ours: the map's head gives every token its patch's pixels at once; a second L1, of the picture and the
tile without anomalies, keeps the picture a picture; when stage 2 begins; the `edge` size, whose positions and
normalisation are those of our masked autoencoder: in as many steps as took it to a quarter of a weave's contrast, sine
positions had not begun to learn.

Letters in shapes: N tiles, C channels, h and w pixels, T tokens, K visible and H hidden ones, P values of a patch, D
width.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.architecture import MalaArchitecture
from engines.differences import in_contrasts, ssim
from engines.mae import MaskedAutoencoder, patchify, unpatchify
from engines.perlin import with_anomalies

__all__ = ["Mala", "TokenBalance", "draw_hidden", "focal"]

STAGE_2_FROM = 0.4
"""Share of a fit after which the encoder is frozen and the map is learnt."""
HIDDEN_SHARE = 0.75
ADVERSARIAL = 0.02
"""How much of the reversed gradient reaches the autoencoder."""


class Mala(nn.Module):
    """See the module's docstring; how wide and deep it is says `architecture`."""

    every: Tensor

    def __init__(self, architecture: MalaArchitecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.autoencoder = MaskedAutoencoder(a.autoencoder)
        values = a.autoencoder.patch_values
        self.pseudo_label = nn.Sequential(nn.Linear(values, a.width), nn.GELU(), nn.Linear(a.width, 2))
        self.balance = TokenBalance((a.width, a.width, a.decoder_width), a.balance_width)
        self.map_head = nn.Sequential(
            nn.Linear(a.balance_width, 2 * a.balance_width),
            nn.GELU(),
            nn.Linear(2 * a.balance_width, 2 * a.patch_px**2),
        )
        self.register_buffer("every", torch.arange(a.autoencoder.tokens)[None], persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Tiles uint8 [N, h, w, C] -> float32 [N, h, w, C + 1]: the picture in [0, 1], and the map, averaged over
        squares of `pool_px`, in [0, 1].
        """
        a = self.architecture
        picture, logits = self.look(tiles.float() / 255)
        anomalous = logits.softmax(3)[..., 1][:, None]  # [N, 1, h, w]
        pooled = F.avg_pool2d(anomalous, a.pool_px, stride=1, padding=a.pool_px // 2, count_include_pad=False)
        answer = torch.cat([picture.clamp(0, 1), pooled.permute(0, 2, 3, 1)], 3)
        return answer.reshape(-1, a.tile_px, a.tile_px, a.channels + 1)  # sizes that the graph states

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [N, h, w, C] in [0, 1] -> the picture [N, h, w, C] and the map's two logits per pixel [N, h, w, 2], of
        which the second says anomalous. Nothing is hidden.
        """
        net, every, patch = self.autoencoder, self.every, self.architecture.patch_px
        tokens, mean, scale = net.visible_tokens(patchify(x, patch), every)
        where, decoder_where = (net.where, net.decoder_where) if self.architecture.positions == "sine" else (0, 0)
        encoded = _through(net.encoder, tokens + where, every)  # block by block [N, 1, T, D]
        last = net.norm(encoded[-1])
        decoded = net.decoder_norm(_through(net.decoder, net.to_decoder(last) + decoder_where, every)[-1])
        picture = (net.head(decoded) * scale + mean)[:, 0]  # [N, T, P]
        logits = self.map_head(self.balance(encoded[0][:, 0], last[:, 0], decoded[:, 0]))  # [N, T, 2 P / C]
        grid = net.architecture.grid
        return unpatchify(picture, patch, grid), unpatchify(logits, patch, grid)

    def loss(self, tiles: Tensor, rng: np.random.Generator, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        """What is minimised on good tiles uint8 [N, h, w, C], by `progress` (0 to 1) in stage 1 or 2, and the picture's
        mean absolute error in units of the tiles' own contrast (detached).

        Freezes the encoder in stage 2, and thaws it in stage 1: its parameters take no gradient and get none. Equal
        weights, tiles and states of `rng` give equal losses.
        """
        first = progress < STAGE_2_FROM
        for part in (self.autoencoder.embed, self.autoencoder.encoder, self.autoencoder.norm):
            part.requires_grad_(first)
        x = tiles.float() / 255
        loss, error = self.masking_loss(x, rng) if first else self.map_loss(x, tiles, rng)
        return loss, in_contrasts(error, x)

    def masking_loss(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Stage 1 on x [N, h, w, C] in [0, 1]: its loss, and the absolute error of the repainted patches [N]."""
        a = self.architecture
        patches = patchify(x, a.patch_px)  # [N, T, P]
        visible, hidden = (t.to(x.device) for t in draw_hidden(patches.shape[1], rng))
        answer, mean, scale = self.autoencoder.repaint(patches, visible, hidden)
        wanted = patches[:, hidden]  # [N, 1, H, P]
        repainted = answer * scale + mean
        error = (repainted - wanted).abs()
        whole = patches.scatter(1, hidden[0, :, None].expand_as(repainted[:, 0]), repainted[:, 0])
        picture = unpatchify(whole, a.patch_px, a.autoencoder.grid)
        unlike = 1 - ssim(picture.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)).mean()
        return error.mean() + unlike + self._pseudo_label_loss(wanted, repainted), error.mean((1, 2, 3))

    def map_loss(self, x: Tensor, tiles: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Stage 2 on `tiles` uint8 [N, h, w, C], x the same in [0, 1]: its loss, and the absolute error of the picture
        [N]."""
        strange, where = zip(*(with_anomalies(tile, rng) for tile in tiles.cpu().numpy()), strict=True)
        seen, anomalous = (torch.from_numpy(np.stack(part)).to(x.device) for part in (strange, where))
        picture, logits = self.look(seen.float() / 255)
        apart = (logits.softmax(3)[..., 1] - anomalous.float()).abs().mean()
        error = (picture - x).abs().mean((1, 2, 3))
        return apart + focal(logits, anomalous) + error.mean(), error

    def _pseudo_label_loss(self, image: Tensor, repainted: Tensor) -> Tensor:
        """Cross-entropy of patches [..., P]: 0 is the label of the image's, 1 of the repainted ones, whose gradient is
        reversed on its way back. What is no grey level counts as the nearest: nothing is won by leaving the scale."""
        reversed_ = (1 + ADVERSARIAL) * repainted.detach() - ADVERSARIAL * repainted  # its value is `repainted`
        logits = self.pseudo_label(torch.stack([image, reversed_.clamp(0, 1)]) - 0.5)  # [2, N, 1, H, 2]
        labels = torch.arange(2, device=image.device).repeat_interleave(logits[0, ..., 0].numel())
        return F.cross_entropy(logits.reshape(-1, 2), labels)


def _through(blocks: Iterable[nn.Module], x: Tensor, at: Tensor) -> list[Tensor]:
    """What comes out of each of some blocks in a row, from tokens x [N, 1, T, D] with numbers `at` [1, T]."""
    outputs = []
    for block in blocks:
        x = block(x, x, at, at)
        outputs.append(x)
    return outputs


class TokenBalance(nn.Module):
    """Tokens of several depths of a network, each of its own width, weighed against each other and added up."""

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.enter = nn.ModuleList(nn.Sequential(nn.LayerNorm(w), nn.Linear(w, width)) for w in widths)
        self.weigh = nn.Linear(len(widths) * width, len(widths))

    def forward(self, *tokens: Tensor) -> Tensor:
        """Depth by depth [N, T, its width] -> [N, T, width]: at every place the depths' shares add up to 1."""
        each = [enter(t) for enter, t in zip(self.enter, tokens, strict=True)]
        entered = torch.stack(each, 2)  # [N, T, depths, width]
        share = self.weigh(entered.flatten(2)).softmax(2)
        balanced: Tensor = (entered * share[..., None]).sum(2)
        return balanced


def draw_hidden(tokens: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Which of so many tokens are visible [1, K] and which hidden [1, H], int64: three quarters are, anywhere."""
    order = rng.permutation(tokens)
    count = min(tokens - 1, round(HIDDEN_SHARE * tokens))
    return torch.from_numpy(np.sort(order[count:]))[None], torch.from_numpy(np.sort(order[:count]))[None]


def focal(logits: Tensor, truth: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al., 2017) of logits [..., 2] against truth bool [...]: cross-entropy, in which what is surely
    right already counts for little; mean over all pixels."""
    log_probability = logits.log_softmax(-1).gather(-1, truth.long()[..., None])[..., 0]
    return -((1 - log_probability.exp()) ** gamma * log_probability).mean()
