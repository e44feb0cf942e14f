"""Our own engine: what it learns from good tiles, that it ranks faint defects, and that its export says the same."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score
from texture_helpers import beside_the_mean_image, real_images
from torch import Tensor

from edge.demo.defects import paint
from edge.demo.web import Web
from edge.settings import Frame
from engines.architecture import RETOUCH, MaeArchitecture, RetouchArchitecture
from engines.bundle import find_bundle, load_bundle
from engines.export import load_model, to_onnx
from engines.lite0 import CHANNELS, Lite0, load_lite0, weights_file
from engines.mae import MaskedAutoencoder
from engines.networks import plan_arguments
from engines.registry import ENGINES
from engines.retouch import Retouch, retouch_from
from engines.training import Schedule, Trainer
from engines.unusual import Context, ErrorDistance, FeatureDistance, Gaussian, light, rest

Pixels = npt.NDArray[np.uint8]

TINY = RetouchArchitecture(
    pixels=MaeArchitecture(
        tile_px=64,
        patch_px=8,
        width=32,
        depth=1,
        heads=2,
        decoder_width=32,
        decoder_depth=1,
        decoder_heads=2,
        context=2,
    ),
    features="none",
    sigmas_px=(1.0, 2.0),
    context=3,
)
VARIANTS = {
    "pixels": TINY,
    "features": TINY.model_copy(update={"features": "lite0"}),
    "colour": TINY.model_copy(update={"features": "lite0", "channels": 3}),
}


def surface(count: int, channels: int = 1, seed: int = 0, side: int = 64) -> Tensor:
    """Tiles of a noisy weave, each with its own light and contrast, uint8 [count, side, side, channels]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    tiles = []
    for _ in range(count):
        weave = np.sin(2 * np.pi * (x + rng.integers(9)) / 9) * np.sin(2 * np.pi * (y + rng.integers(7)) / 7)
        contrast = rng.uniform(20, 50)
        tile = rng.uniform(90, 150) + contrast * weave + rng.normal(0, 0.1 * contrast, x.shape)
        tiles.append(np.repeat(np.clip(tile, 0, 255)[..., None], channels, 2))
    return torch.from_numpy(np.stack(tiles).astype(np.uint8))


def measured(a: RetouchArchitecture) -> Retouch:
    torch.manual_seed(0)
    network = Retouch(a).eval()
    network.measure(surface(30, a.channels))
    return network


def answers(network: Retouch, tiles: Tensor, plan: str = "x16") -> Tensor:
    with torch.no_grad():
        answer: Tensor = network(tiles, *plan_arguments(network.architecture, plan))
    return answer


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_export_says_what_torch_says(kind: str) -> None:
    network = measured(VARIANTS[kind])
    tiles = surface(2, network.architecture.channels, seed=2)
    session = onnxruntime.InferenceSession(io.BytesIO(to_onnx(network)).getvalue())
    for plan in network.architecture.plans:
        expected = answers(network, tiles, plan).numpy()
        indices = [x.numpy().astype(np.int32) for x in plan_arguments(network.architecture, plan)]
        inputs = dict(zip(["tiles", "visible", "hidden", "place"], [tiles.numpy(), *indices], strict=True))
        (found,) = session.run(None, inputs)
        assert found.shape == (*tiles.shape[:3], network.architecture.channels + 1)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_defect_stands_out_of_the_map(kind: str) -> None:
    network = measured(VARIANTS[kind])
    tiles = surface(6, network.architecture.channels, seed=3)
    before = answers(network, tiles)[..., -1]
    tiles[:, 24:34, 30:40] = (tiles[:, 24:34, 30:40].float() * 0.4).byte()
    after = answers(network, tiles)[..., -1]
    assert (after.amax((1, 2)) > 1.5 * before.amax((1, 2))).all()
    peak = after.flatten(1).argmax(1)
    assert ((peak // 64 - 29).abs() <= 10).all()
    assert ((peak % 64 - 35).abs() <= 10).all()


def test_the_loss_falls_on_a_real_texture() -> None:
    torch.manual_seed(0)
    trainer = Trainer(Retouch(TINY), Schedule(90, 5e-3, warmup=5, cooldown=20), average=0.9)
    web = Web(
        "brick", Frame(width_px=64, height_px=64), seed=0, half="left", scale=1, defect_share=0, contrast=(0.1, 0.1)
    )
    tiles = torch.from_numpy(np.stack([web.shot(i).image for i in range(24)]))
    losses = [trainer.train_step(tiles[8 * (k % 3) : 8 * (k % 3) + 8], np.random.default_rng(k)) for k in range(90)]
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:5])


@cache
def texture() -> MaskedAutoencoder:
    network = load_model(load_bundle(find_bundle("texture-s")))
    assert isinstance(network, MaskedAutoencoder)
    return network


def bricks(count: int, *, bad: bool, half: str, seed: int) -> Tensor:
    """Photographs of brick, whole tiles; the bad ones have a painted defect of 6 to 12 px and at most 10 % contrast."""
    frame = Frame(width_px=224, height_px=224)
    web = Web("brick", frame, seed=seed, half=half, scale=2, defect_share=0.5 if bad else 0, contrast=(0.08, 0.1))
    found, i = [], 0
    while len(found) < count:
        if web.is_bad(i) == bad:
            found.append(web.shot(i).image)
        i += 1
    return torch.from_numpy(np.stack(found))


def weave(count: int, *, bad: bool, seed: int) -> Tensor:
    """A noisy weave; the bad ones have a painted defect of 6 to 12 px and at most 10 % contrast."""
    rng = np.random.default_rng(seed)
    tiles = surface(count, seed=seed, side=224).numpy()
    for tile in tiles if bad else ():
        kind = ("hole", "stain")[int(rng.integers(2))]
        luma, _ = paint(tile[..., 0].astype(np.float32) / 255, kind, rng, float(rng.uniform(6, 12)), 0.095)
        tile[..., 0] = np.rint(luma * 255)
    return torch.from_numpy(tiles)


def ranking(network: Retouch, known: Tensor, good: Tensor, bad: Tensor) -> tuple[float, float]:
    """Image AUROC of the network, and of the distance to the mean of the good tiles that it knows."""
    tiles, truth = torch.cat([good, bad]), [0] * len(good) + [1] * len(bad)
    mean = known.float().mean(0)
    ours = [float(answers(network, tile[None])[..., -1].max()) for tile in tiles]
    trivial = [float((tile.float() - mean).abs().max()) for tile in tiles]
    return float(roc_auc_score(truth, ours)), float(roc_auc_score(truth, trivial))


def test_small_faint_defects_of_a_weave_rank_above_good_tiles_without_any_fitting() -> None:
    network = retouch_from(RETOUCH.model_copy(update={"features": "none"}), texture()).eval()
    good = weave(24, bad=False, seed=1)
    network.measure(good)
    ours, trivial = ranking(network, good, weave(14, bad=False, seed=3), weave(14, bad=True, seed=4))
    assert ours > 0.9
    assert ours > trivial + 0.15


@pytest.mark.skipif(weights_file() is None, reason="the extra `features` is not installed")
def test_small_faint_defects_of_bricks_rank_above_good_tiles_by_their_features() -> None:
    network = retouch_from(RETOUCH, texture()).eval()
    good = bricks(36, bad=False, half="left", seed=1)
    network.measure(good)
    ours, trivial = ranking(network, good, *(bricks(14, bad=bad, half="right", seed=2) for bad in (False, True)))
    assert ours > 0.8
    assert ours > trivial + 0.05


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "features",
    ["none", pytest.param("lite0", marks=pytest.mark.skipif(weights_file() is None, reason="no extra `features`"))],
)
def test_a_real_fabric_is_told_from_its_defects_better_than_by_the_mean_good_image(features: str) -> None:
    images, px = real_images("aitex/fabric01"), RETOUCH.tile_px
    network = retouch_from(RETOUCH.model_copy(update={"features": features}), texture()).eval()
    network.measure(torch.from_numpy(np.stack([image[:px, :px, None] for image in images.fit])))
    found = beside_the_mean_image(
        images, px, lambda tiles: answers(network, torch.from_numpy(tiles)).numpy(), ENGINES["retouch"].error_map
    )
    assert found.ours > found.alike + 0.05
    assert found.ours > found.signed + 0.05  # on fabric02 that is not so: see docs/quality.md


def test_the_worst_place_of_a_good_tile_has_about_one() -> None:
    network = measured(VARIANTS["features"])
    largest = answers(network, surface(12, seed=5))[..., -1].amax((1, 2))
    assert 0.8 < float(largest.mean()) < 1.3


def test_what_was_not_measured_has_no_map() -> None:
    assert torch.isnan(answers(Retouch(TINY).eval(), surface(1))[..., -1]).all()


def test_light_and_contrast_of_a_good_tile_are_not_unusual() -> None:
    """The error of a repainting grows with a tile's contrast; its distance from the usual must not."""
    rng = torch.Generator().manual_seed(0)
    contrast = torch.linspace(0.02, 0.3, 64)[:, None, None, None]
    tiles = 0.5 + contrast * torch.randn(64, 1, 64, 64, generator=rng)
    error = contrast * torch.randn(64, 1, 64, 64, generator=rng)
    distance = ErrorDistance(1, 64, 8, (1.0, 2.0))
    distance.measure(error, tiles)
    levels = distance(error, tiles).square().mean((1, 2)).sqrt()
    assert 0.9 < float(levels.mean()) < 1.1
    assert float(levels[-16:].mean() / levels[:16].mean()) < 1.1


def test_places_with_larger_errors_are_not_more_unusual() -> None:
    rng = torch.Generator().manual_seed(0)
    error = torch.randn(64, 1, 64, 64, generator=rng)
    error[:, :, :8] *= 5
    distance = ErrorDistance(1, 64, 8, (1.0,))
    distance.measure(error, torch.rand(64, 1, 64, 64, generator=rng))
    usual = distance(error, torch.full((64, 1, 64, 64), 0.5)).mean(0)
    assert 0.8 < float(usual[:6].mean() / usual[30:34].mean()) < 1.25


def test_features_of_a_block_say_nothing_of_its_own_repainting() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 5, 8, 8)
    other = features.clone()
    other[:, :, 2:4, 4:6] += 3
    before, after = rest(features), rest(other)
    torch.testing.assert_close(before[0, 1, 2], after[0, 1, 2])
    assert not torch.allclose(before[0, 0, 0], after[0, 0, 0])


def test_the_rest_is_mean_and_deviation_of_all_other_places() -> None:
    features = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0)) + 5
    found = rest(features)
    outside = torch.ones(6, 8, dtype=torch.bool)
    outside[2:4, 6:8] = False
    others = features[1, :, outside]
    torch.testing.assert_close(found[1, 1, 3], torch.cat([others.mean(1), others.std(1, correction=0)]))


def test_a_defect_beyond_doubt_stays_finite_in_half_precision() -> None:
    network = measured(VARIANTS["features"])
    tiles = surface(1)
    tiles[:, :32] = 255
    largest = answers(network, tiles)[..., -1].max()
    assert torch.isfinite(largest.half())
    assert float(largest) > 5


def test_features_are_repainted_by_what_surface_the_tile_shows() -> None:
    """Two surfaces, each of which has its own features: neither is unusual, a patch of one in the other is."""
    rng = torch.Generator().manual_seed(0)
    kinds = torch.randint(0, 2, (48,), generator=rng)
    centres = torch.tensor([[3.0, -3.0], [-3.0, 3.0]])
    features = centres[kinds][:, :, None, None] + 0.5 * torch.randn(48, 2, 8, 8, generator=rng)
    distance = FeatureDistance(2, 8, 1)
    distance.measure(features)
    assert 0.8 < float(distance(features).mean()) < 1.2
    features[:, :, 2:4, 2:4] *= -1
    assert float(distance(features)[:, 2:4, 2:4].min()) > 5


def test_a_context_has_unit_variance_and_an_end() -> None:
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3, 4, 5, 6]) + 10
    context = Context(6, 4)
    context.measure(x)
    kept = context(x)
    assert kept.shape == (500, 5)
    torch.testing.assert_close(kept[:, 4], torch.ones(500))
    torch.testing.assert_close(kept[:, :4].std(0), torch.ones(4), rtol=0.05, atol=0)
    assert float(context(x + 1000).abs().max()) <= 3


def test_a_context_of_equal_tiles_is_zero_and_finite() -> None:
    context = Context(6, 4)
    context.measure(torch.ones(3, 6))
    torch.testing.assert_close(context(torch.ones(1, 6)), torch.tensor([[0.0, 0, 0, 0, 1]]))


def test_what_lies_outside_counts_for_nothing_in_a_blur() -> None:
    torch.testing.assert_close(Gaussian(3.0, 32, 2)(torch.ones(1, 2, 32, 32)), torch.ones(1, 2, 32, 32))


def test_light_is_mean_and_contrasts() -> None:
    tiles = torch.full((2, 1, 16, 16), 0.25)
    tiles[1, :, :, ::2] = 0.75
    flat, striped = light(tiles)
    torch.testing.assert_close(flat, torch.tensor([0.25, np.log(0.01), np.log(0.01)], dtype=torch.float32))
    torch.testing.assert_close(striped, torch.tensor([0.5, np.log(0.25), np.log(0.25)]).float(), rtol=0, atol=2e-3)


@pytest.mark.skipif(weights_file() is None, reason="the extra `features` is not installed")
def test_lite0_says_what_its_published_code_says() -> None:
    """The expected values come from efficientnet-lite-pytorch 0.1.0 with the same weights."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    with torch.no_grad():
        found = load_lite0()(((x * 7 + y * 13) % 64 / 63)[None, None])
    assert found.shape == (1, CHANNELS, 4, 4)
    fine = torch.tensor([15.5532, 2.5133, -1.0240, 5.2981, -20.1335, 12.3869])
    coarse = torch.tensor([10.3797, 7.1020, 7.2398, -2.0690, 22.7487, 1.9331])
    torch.testing.assert_close(found[0, :6, 1, 2], fine, rtol=0, atol=1e-3)
    # Interpolated from 2 x 2: a corner is what it was.
    torch.testing.assert_close(found[0, 40:46, 3, 0], coarse, rtol=0, atol=1e-3)


def test_lite0_is_a_constant() -> None:
    network = Lite0().train()
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sigmas_px": (0.1,)}, "sigmas_px"),
        ({"sigmas_px": (90.0,)}, "sigmas_px"),
        ({"pixels": MaeArchitecture(channels=3)}, "one by one"),
        ({"pixels": MaeArchitecture(tile_px=210), "features": "lite0"}, "multiple of 16"),
    ],
)
def test_architectures_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RetouchArchitecture.model_validate(wrong)


def test_architectures_survive_a_manifest() -> None:
    for a in (RETOUCH, *VARIANTS.values()):
        assert RetouchArchitecture.model_validate_json(a.model_dump_json()) == a


def test_weights_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.lite0.weights_file", lambda: None)
    with pytest.raises(Exception, match=r"maskline\[features\]"):
        load_lite0()


def test_weights_of_something_else_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"_conv_stem.weight": torch.zeros(1)}, file)
    monkeypatch.setattr("engines.lite0.weights_file", lambda: file)
    with pytest.raises(Exception, match="not the weights"):
        load_lite0()
