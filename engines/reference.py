"""The same network the plain way: one masked copy of the tile per variant, the whole decoder, hidden tokens picked at
the end. Slow on purpose; tests and benches compare the exported graph with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.mae import NORMALISED_EPS, SMALLEST_SCALE, MaskedAutoencoder, patchify, plan_tensors, unpatchify
from engines.plans import Plan

__all__ = ["PlainNetwork", "masked_copies", "pick_hidden", "repaint_plainly"]


class PlainNetwork(nn.Module):
    """Repaints every token of every masked copy, the visible ones too."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, copies: Tensor, visible: Tensor) -> Tensor:
        """Masked copies uint8 [V, h, w, C] and what each of them shows, [V, K] -> answers [V, T, P] in [0, 1]."""
        model, a = self.model, self.model.architecture
        patches = patchify(copies.float() / 255, a.patch_px)  # [V, T, P]
        seen = patches.gather(1, visible[..., None].expand(-1, -1, a.patch_values))  # [V, K, P]
        if a.normalise == "fixed":
            mean, scale = model.colour_mean[0], model.colour_std[0]
        else:
            mean = seen.double().mean((1, 2), keepdim=True)
            scale = ((seen.double() - mean) ** 2).mean((1, 2), keepdim=True).sqrt().clamp(min=SMALLEST_SCALE)
            mean, scale = mean.float(), scale.float()
        tokens = model.embed((patches - mean) / scale)  # [V, T, D]
        tokens = tokens.gather(1, visible[..., None].expand(-1, -1, a.width))
        answers = self._decode_everything(model.encode(tokens[None], visible), visible)[0]
        if a.target == "normalised":
            answers = self._denormalise(answers, (patches - mean) / scale, visible)
        return (answers * scale + mean).clamp(0, 1)

    def _denormalise(self, answers: Tensor, x: Tensor, visible: Tensor) -> Tensor:
        """Gives patches [V, T, P] the mean and deviation of the visible ones of x [V, T, P], most of the nearest."""
        rows, columns = self.model.architecture.grid
        at = torch.tensor([(r, c) for r in range(rows) for c in range(columns)], dtype=torch.float64)
        near = torch.cdist(at, at) ** -4  # [T, T]; a patch itself counts for nothing
        near.fill_diagonal_(0)
        shown = torch.zeros(len(visible), rows * columns, dtype=torch.float64).scatter_(1, visible, 1.0)
        weight = near * shown[:, None]
        weight /= weight.sum(2, keepdim=True)
        mean = weight @ x.double().mean(2, keepdim=True)
        variance = weight @ (x.double().var(2, keepdim=True) + NORMALISED_EPS)
        return (answers * variance.sqrt() + mean).float()

    def _decode_everything(self, encoded: Tensor, visible: Tensor) -> Tensor:
        """[1, V, K, D] -> answers for every token in its own place, [1, V, T, P]."""
        model, a = self.model, self.model.architecture
        x = model.to_decoder(encoded)
        every = torch.arange(a.tokens).expand(visible.shape[0], -1)
        q = model.mask_token.expand(1, visible.shape[0], a.tokens, -1)
        extra = x.shape[2] - visible.shape[1]  # the class token
        if a.decoder == "self":
            q = q.scatter(2, visible[None, ..., None].expand(-1, -1, -1, a.decoder_width), x[:, :, extra:])
        if a.positions == "sine":
            q = q + model.decoder_where
        if a.decoder == "cross":
            for block in model.decoder:
                q = block(q, x, every, visible)
        else:
            q = torch.cat([x[:, :, :extra], q], 2)
            for block in model.decoder:
                q = block(q, q, every, every)
            q = q[:, :, extra:]
        answers: Tensor = model.head(model.decoder_norm(q))
        return answers


def masked_copies(tile: Tensor, plan: Plan, patch: int) -> Tensor:
    """Copies of a tile uint8 [h, w, C], black where the plan does not show it: uint8 [V, h, w, C]."""
    visible, _, _ = plan_tensors(plan)
    shown = torch.zeros(plan.variants, plan.grid[0] * plan.grid[1], dtype=torch.uint8).scatter_(1, visible, 1)
    patches = patchify(tile[None], patch) * shown[..., None]
    return unpatchify(patches, patch, plan.grid)


def pick_hidden(answers: Tensor, plan: Plan, patch: int) -> Tensor:
    """From answers for every token [V, T, P], those that the plan asked for: float32 [h, w, C]."""
    _, hidden, place = plan_tensors(plan)
    picked = answers.gather(1, hidden[..., None].expand(-1, -1, answers.shape[2]))  # [V, H, P]
    return unpatchify(picked.flatten(0, 1)[place][None], patch, plan.grid)[0]


@torch.no_grad()
def repaint_plainly(model: MaskedAutoencoder, tiles: Tensor, plan: Plan) -> Tensor:
    """Tiles uint8 [N, h, w, C] -> float32 [N, h, w, C] in [0, 1]."""
    network, patch = PlainNetwork(model), model.architecture.patch_px
    visible, _, _ = plan_tensors(plan)
    return torch.stack([pick_hidden(network(masked_copies(t, plan, patch), visible), plan, patch) for t in tiles])
