"""The same network the plain way: one masked copy of the tile per variant, the whole decoder, hidden tokens picked at
the end. Slow on purpose; tests and benches compare the exported graph with it."""

from __future__ import annotations

import torch
from torch import Tensor

from engines.mae import SMALLEST_SCALE, MaskedAutoencoder, patchify, plan_tensors, unpatchify
from engines.plans import Plan

__all__ = ["repaint_plainly"]


@torch.no_grad()
def repaint_plainly(model: MaskedAutoencoder, tiles: Tensor, plan: Plan) -> Tensor:
    """Tiles uint8 [N, h, w, C] -> float32 [N, h, w, C] in [0, 1]. Hidden pixels are blanked first."""
    patch = model.architecture.patch_px
    visible, hidden, place = plan_tensors(plan)
    mask = torch.zeros(plan.variants, model.architecture.tokens, dtype=torch.bool).scatter_(1, hidden, True)
    repainted = []
    for tile in tiles:
        patches = patchify(tile[None].float() / 255, patch)
        copies = patches.expand(plan.variants, -1, -1).masked_fill(mask[..., None], 0.0)  # [V, T, P]
        mean, scale = _level(model, copies, mask)
        tokens = model.embed((copies - mean) / scale)  # [V, T, D]
        seen = tokens.gather(1, visible[..., None].expand(-1, -1, tokens.shape[2]))
        answers = _decode_everything(model, model.encode(seen[None], visible), visible)[0] * scale + mean  # [V, T, P]
        picked = answers.gather(1, hidden[..., None].expand(-1, -1, answers.shape[2]))  # [V, H, P]
        repainted.append(picked.flatten(0, 1)[place].clamp(0, 1))
    return unpatchify(torch.stack(repainted), patch, model.architecture.grid)


def _level(model: MaskedAutoencoder, copies: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale of the visible pixels of each copy [V, T, P], as [V, 1, 1]."""
    a = model.architecture
    if a.normalise == "fixed":
        return torch.full((1, 1, 1), a.mean), torch.full((1, 1, 1), a.std)
    seen = [copy[~hidden].double() for copy, hidden in zip(copies, mask, strict=True)]
    mean = torch.stack([x.mean() for x in seen])[:, None, None]
    scale = torch.stack([x.std(correction=0).clamp(min=SMALLEST_SCALE) for x in seen])[:, None, None]
    return mean.float(), scale.float()


def _decode_everything(model: MaskedAutoencoder, encoded: Tensor, visible: Tensor) -> Tensor:
    """[1, V, K, D] -> answers for every token in its own place, [1, V, T, P]."""
    a = model.architecture
    x = model.to_decoder(encoded)
    every = torch.arange(a.tokens).expand(len(visible), -1)
    q = model.mask_token.expand(1, len(visible), a.tokens, -1)
    extra = x.shape[2] - visible.shape[1]  # the class token
    if a.decoder == "self":
        q = q.scatter(2, visible[None, ..., None].expand(-1, -1, -1, q.shape[3]), x[:, :, extra:])
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
