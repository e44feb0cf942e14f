"""What fitting does to the network that predicts maps: its two stages, what is frozen, and what it can tell then."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mala_helpers import TINY
from network_helpers import Numbers, Pixels, answer
from sklearn.metrics import roc_auc_score
from texture_helpers import beside_the_mean_image, crops, photograph, real_images, stripes, with_defect
from torch import Tensor

from edge.anomaly import error_map
from engines.architecture import MALA_EDGE, MalaArchitecture
from engines.mala import STAGE_2_FROM, Mala
from engines.registry import ENGINES
from engines.training import Schedule, Trainer


def trainer(steps: int, a: MalaArchitecture = TINY, rate: float = 5e-3) -> Trainer:
    torch.manual_seed(0)
    return Trainer(Mala(a), Schedule(steps, rate, max(1, steps // 20), steps // 3), average=0.95)


def train(this: Trainer, images: list[Pixels], until: int, batch: int = 10) -> Mala:
    """Trains on crops of images [h, w] until that step is done; the moving average of the weights."""
    while this.step < until:
        rng = np.random.default_rng([0, this.step])
        this.train_step(torch.from_numpy(crops(images, batch, rng, this.model.architecture.tile_px)), rng)
    assert isinstance(this.averaged, Mala)
    return this.averaged


def encoder(network: Mala) -> dict[str, Tensor]:
    net = network.autoencoder
    parts = {"embed": net.embed, "encoder": net.encoder, "norm": net.norm}
    return {f"{k}.{name}": p.clone() for k, part in parts.items() for name, p in part.state_dict().items()}


def test_the_encoder_learns_in_stage_1_and_is_frozen_in_stage_2() -> None:
    this, images = trainer(10), [photograph("grass")]
    model = this.model
    assert isinstance(model, Mala)
    before = encoder(model)
    averaged = train(this, images, round(10 * STAGE_2_FROM))
    after = encoder(model)
    assert not any(torch.equal(before[k], after[k]) for k in before if k.endswith("weight"))
    assert any(not torch.equal(x, y) for x, y in zip(after.values(), encoder(averaged).values(), strict=True))

    head, decoder = model.map_head[-1].weight.clone(), model.autoencoder.decoder[0].q.weight.clone()
    train(this, images, 10)
    frozen = encoder(model)
    assert all(torch.equal(after[k], frozen[k]) for k in after)
    assert all(torch.equal(x, y) for x, y in zip(frozen.values(), encoder(averaged).values(), strict=True))
    assert not torch.equal(head, model.map_head[-1].weight)
    assert not torch.equal(decoder, model.autoencoder.decoder[0].q.weight)
    assert not torch.equal(averaged.map_head[-1].weight, model.map_head[-1].weight)
    assert not any(p.requires_grad for p in averaged.parameters())


@pytest.mark.parametrize("cut", [2, 6])
def test_a_fit_that_was_cut_in_two_ends_where_a_whole_one_does(cut: int, tmp_path: Path) -> None:
    images, first, second = [photograph("grass")], trainer(8), trainer(8)
    whole = train(trainer(8), images, 8, batch=4)
    train(first, images, cut, batch=4)
    first.save(tmp_path)
    assert second.resume(tmp_path)
    for x, y in zip(whole.state_dict().values(), train(second, images, 8, batch=4).state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_both_losses_fall_on_a_real_texture() -> None:
    this, brick = trainer(100), photograph("brick")
    unseen = torch.from_numpy(crops([brick[:, 256:]], 40, np.random.default_rng(9), TINY.tile_px))

    def losses(network: Trainer, progress: float) -> tuple[float, float]:
        with torch.no_grad():
            loss, error = network.model.loss(unseen, np.random.default_rng(0), progress)
        return float(loss), float(error)

    fresh = losses(this, 0.0)
    train(this, [brick[:, :256]], round(100 * STAGE_2_FROM))
    masked, before = losses(this, 0.0), losses(this, STAGE_2_FROM)
    train(this, [brick[:, :256]], 100)
    after = losses(this, STAGE_2_FROM)
    assert masked[0] < fresh[0] - 0.2
    assert masked[1] < 0.8 * fresh[1]
    assert after[0] < 0.6 * before[0]
    assert after[1] < 0.6 * before[1]


def dots() -> Pixels:
    """The second product: a dark plate with bright holes, 256 x 512."""
    y, x = np.mgrid[:256, :512]
    holes = 110 / (1 + np.exp(np.hypot((x % 16) - 8, (y % 16) - 8) - 4.5))
    return np.clip(60 + holes + np.random.default_rng(2).normal(0, 4, x.shape), 0, 255).astype(np.uint8)


PRODUCTS = {"weave": stripes, "plate": dots}


@cache
def fitted_on_two_products() -> Mala:
    a = TINY.model_copy(update={"depth": 1, "width": 48, "balance_width": 48})
    return train(trainer(500, a, 1.2e-2), [draw()[:, :256] for draw in PRODUCTS.values()], 500)


@pytest.mark.parametrize("product", PRODUCTS)
def test_one_model_ranks_small_faint_defects_of_two_products_above_good_tiles(product: str) -> None:
    rng, network, image, px = np.random.default_rng(3), fitted_on_two_products(), PRODUCTS[product]()[:, 256:], 32
    good = crops([image], 60, rng, px)
    bad = np.stack([with_defect(tile, rng) for tile in crops([image], 60, rng, px)])
    mean = crops([image], 60, rng, px).mean(0) / np.float32(255)
    truth = [0] * len(good) + [1] * len(bad)
    ours = roc_auc_score(truth, np.concatenate([answer(network, x)[..., 1].max((1, 2)) for x in (good, bad)]))
    trivial = roc_auc_score(truth, np.concatenate([distance(x, mean) for x in (good, bad)]))
    assert ours > 0.7
    assert ours > trivial + 0.1


def distance(tiles: Pixels, mean: Numbers) -> Numbers:
    """Of tiles [N, h, w, 1] from a mean image [h, w, 1], smoothed as other engines smooth: the maximum, [N]."""
    repainted = np.broadcast_to(mean, tiles.shape).astype(np.float32)
    return error_map(tiles, repainted, ENGINES["sdc"].error_map).max((1, 2))


def test_what_is_shown_is_the_product_and_not_its_defect() -> None:
    rng, network = np.random.default_rng(4), fitted_on_two_products()
    good = crops([stripes()[:, 256:]], 20, rng, 32)
    repainted = answer(network, good)[..., :1]
    assert np.abs(repainted - good / 255).mean() < 0.3 * good.std() / 255


@pytest.mark.timeout(2400)
def test_a_real_fabric_is_told_from_its_defects_better_than_by_the_mean_good_image() -> None:
    images, px = real_images("aitex/fabric02"), MALA_EDGE.tile_px
    network = train(trainer(400, MALA_EDGE, 8e-3), images.fit, 400, batch=16)
    found = beside_the_mean_image(images, px, lambda tiles: answer(network, tiles), ENGINES["mala"].error_map)
    assert found.ours > found.alike + 0.02
