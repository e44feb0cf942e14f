"""Checkpoints in both published layouts give what `transformers`' ViTMAE gives with the same weights and masks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engines.checkpoints import load_checkpoint
from engines.mae import MaskedAutoencoder, patchify, plan_tensors
from engines.plans import Plan, named_plan
from tests.published import HEADS, TINY, State, original, positions, write_hugging_face

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import ViTMAEForPreTraining

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def oracle(folder: Path, state: State, **heads: int) -> nn.Module:
    """transformers' own network, loaded by transformers from a folder as on the hub."""
    model: nn.Module = ViTMAEForPreTraining.from_pretrained(
        write_hugging_face(folder, state, **heads), attn_implementation="eager"
    )
    return model.eval()


def answers(model: nn.Module, tiles: torch.Tensor, plan: Plan, variants: int) -> torch.Tensor:
    """For the hidden tokens of the first variants, [N, V, H, P]; `noise` decides what is hidden: the highest go."""
    tokens, found = plan.grid[0] * plan.grid[1], []
    values = ((tiles / 255 - MEAN) / STD).permute(0, 3, 1, 2)
    for hidden in plan.hidden[:variants].tolist():
        noise = torch.linspace(0, 0.1, tokens).repeat(len(tiles), 1)
        noise[:, hidden] += 1.0
        # Half a token less: they round down what they keep, and 196 * (1 - 4 / 196) is a little less than 192.
        model.config.mask_ratio = model.vit.embeddings.config.mask_ratio = (len(hidden) - 0.5) / tokens
        with torch.no_grad():
            found.append(model(values, noise=noise).logits[:, hidden])
    return torch.stack(found, 1)


def check(model: MaskedAutoencoder, theirs: nn.Module, name: str, variants: int = 4) -> None:
    a = model.architecture
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, a.tile_px, a.tile_px, 3), np.uint8))
    plan = named_plan(name, a)
    expected = answers(theirs, tiles, plan, variants)
    visible, hidden, _ = (x[:variants] for x in plan_tensors(plan))
    with torch.no_grad():
        found, _, _ = model.repaint(patchify(tiles / 255, a.patch_px), visible, hidden)
    scale = 1 / expected.std()  # unit output variance: the tolerance means something
    torch.testing.assert_close(found * scale, expected * scale, atol=1e-4, rtol=0)
    assert (expected - expected.mean((0, 1, 2))).std() > 0.1 * expected.std()  # answers differ between places


@pytest.mark.parametrize(("patch", "side"), [(14, 16), (16, 14)])
@pytest.mark.parametrize("layout", ["original", "hugging face"])
@pytest.mark.parametrize("plan", ["x1", "x16"])
def test_equal_to_vitmae(patch: int, side: int, layout: str, plan: str, tmp_path: Path) -> None:
    state = original(**TINY, patch=patch, side=side)
    theirs = oracle(tmp_path / "folder", state, **HEADS)
    if layout == "original":
        torch.save({"model": state}, tmp_path / "mae_visualize_tiny.pth")
        model = load_checkpoint(tmp_path / "mae_visualize_tiny.pth", **HEADS)
    else:
        model = load_checkpoint(tmp_path / "folder")
    assert model.architecture.grid == (side, side)
    check(model, theirs, plan)


@pytest.mark.parametrize("plan", ["x1", "x16"])
def test_at_256_pixels_positions_are_computed_again(plan: str, tmp_path: Path) -> None:
    state = original(**TINY)
    torch.save(state, tmp_path / "mae_visualize_tiny.pth")
    model = load_checkpoint(tmp_path / "mae_visualize_tiny.pth", 256, **HEADS)
    larger = state | {"pos_embed": positions(16, 32), "decoder_pos_embed": positions(16, 24)}
    check(model, oracle(tmp_path / "folder", larger, **HEADS), plan)


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    theirs = oracle(tmp_path / "folder", original(**TINY), **HEADS)
    theirs.save_pretrained(tmp_path / "saved")
    check(load_checkpoint(tmp_path / "saved"), theirs, "x16")


def test_equal_to_vitmae_at_the_real_width(tmp_path: Path) -> None:
    state = original(width=768, depth=12, decoder_width=512, decoder_depth=8)
    torch.save({"model": state}, tmp_path / "mae_visualize_vit_base.pth")
    model = load_checkpoint(tmp_path / "mae_visualize_vit_base.pth")
    check(model, oracle(tmp_path / "folder", state, heads=12, decoder_heads=16), "x16", variants=1)
