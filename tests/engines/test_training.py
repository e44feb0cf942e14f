"""Training at a tiny size: the loss falls, and a run that was cut in two ends where a whole one does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_helpers import TINY, scrambled
from engine_helpers import tiles as some_tiles

from engines.architecture import SDC_EDGE
from engines.mae import MaskedAutoencoder, draw_mask
from engines.networks import plan_arguments
from engines.optim import orthogonal
from engines.plans import blocks
from engines.pretrain import TextureStream
from engines.sdc import SdcAutoencoder
from engines.training import Schedule, Trainer, montage


def run(trainer: Trainer, steps: int) -> list[float]:
    """Trains on one canvas' worth of tiles up to that step."""
    stream = TextureStream(0, TINY.tile_px, [], pool=1)
    errors = []
    while trainer.step < steps:
        tiles = torch.from_numpy(stream.batch(0, 8))
        errors.append(trainer.train_step(tiles, np.random.default_rng(trainer.step)))
    return errors


def fresh(steps: int = 60) -> Trainer:
    torch.manual_seed(0)
    return Trainer(MaskedAutoencoder(TINY), Schedule(steps, 1e-2, warmup=5, cooldown=10))


def test_the_error_falls_in_a_few_steps() -> None:
    trainer = fresh()
    errors = run(trainer, 60)
    assert np.mean(errors[-10:]) < 0.8 * np.mean(errors[:5])
    assert not any(
        torch.equal(a, b) for a, b in zip(trainer.averaged.parameters(), fresh().averaged.parameters(), strict=True)
    )


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, first, second = fresh(8), fresh(8), fresh(8)
    run(whole, 8)
    run(first, 4)
    first.save(tmp_path)
    assert second.resume(tmp_path)
    run(second, 8)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert not fresh(8).resume(tmp_path / "nothing")


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    schedule = Schedule(100, 1.0, warmup=10, cooldown=20)
    assert [schedule.rate(s) for s in (0, 9, 50, 80, 90, 100)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0])


def test_masks_hide_whole_blocks_and_leave_most_of_the_tile() -> None:
    owner = {t: k for k, cell in enumerate(c for row in blocks(TINY.grid, 2) for c in row) for t in cell}
    for seed in range(40):
        visible, hidden = (x[0].tolist() for x in draw_mask(TINY, np.random.default_rng(seed)))
        assert sorted(visible + hidden) == list(range(TINY.tokens))
        assert len(hidden) == 4 * len({owner[t] for t in hidden})
        assert 0 < len(hidden) <= 0.36 * TINY.tokens


@pytest.mark.parametrize("shape", [(2, 8, 24), (1, 24, 8), (3, 8, 8)])
def test_orthogonal_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert values.min() > 0.3
    assert values.max() < 1.4


def test_montage_is_a_picture() -> None:
    tiles = torch.zeros(3, 48, 48, 1, dtype=torch.uint8)
    picture, error = montage(scrambled(TINY), tiles)
    assert picture.shape == (96, 144, 1)
    assert picture.dtype == np.uint8
    assert np.isfinite(error)


def test_montage_shows_what_sixteen_hidden_blocks_do_and_one_pass_where_that_is_all() -> None:
    network, tiles = scrambled(TINY), some_tiles(TINY)
    shown = {}
    for plan in ("x16", "x32"):
        with torch.no_grad():
            repainted = network(tiles, *plan_arguments(TINY, plan))
        shown[plan] = (torch.cat(list(repainted), 1) * 255).round().byte().numpy()
    assert not np.array_equal(shown["x16"], shown["x32"])
    np.testing.assert_array_equal(montage(network, tiles)[0][TINY.tile_px :], shown["x16"])

    single = SdcAutoencoder(SDC_EDGE.model_copy(update={"tile_px": 48, "dilations": (1,)})).eval()
    assert montage(single, tiles)[0].shape == (96, 96, 1)


def test_montage_leaves_a_map_behind_the_picture_out() -> None:
    network = scrambled(TINY)
    tiles = some_tiles(TINY)
    plain = montage(network, tiles)
    network.register_forward_hook(lambda *answer: torch.cat([answer[-1], 9 * answer[-1]], 3))
    picture, error = montage(network, tiles)
    assert error == plain[1]
    np.testing.assert_array_equal(picture, plain[0])
