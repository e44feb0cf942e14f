"""The network: what is hidden stays hidden, and the fast way gives what the plain way gives."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from engine_helpers import TINY, VARIANTS, scrambled, tiles
from texture_helpers import beside_the_mean_image, real_images

from edge.anomaly import error_map
from engines.architecture import TEXTURE_S, MaeArchitecture
from engines.bases import cosine_basis, plane_waves
from engines.bundle import SmoothedMap, find_bundle, load_bundle
from engines.export import load_model
from engines.mae import MaskedAutoencoder, patchify, plan_tensors, unpatchify
from engines.plans import PLANS, named_plan
from engines.reference import repaint_plainly


def repaint(model: MaskedAutoencoder, pixels: torch.Tensor, plan: str) -> torch.Tensor:
    a = model.architecture
    with torch.no_grad():
        return model(pixels, *plan_tensors(named_plan(plan, a)))


def test_patches_come_back_in_place() -> None:
    x = torch.arange(2 * 12 * 12 * 3).reshape(2, 12, 12, 3)
    assert torch.equal(unpatchify(patchify(x, 3), 3, (4, 4)), x)
    assert torch.equal(patchify(x, 3)[0, 1].reshape(3, 3, 3), x[0, 0:3, 3:6])


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("plan", ["x1", "x4"])
def test_equal_to_masked_copies_and_the_whole_decoder(kind: str, plan: str) -> None:
    model, pixels = scrambled(VARIANTS[kind]), tiles(VARIANTS[kind], 3)
    fast = repaint(model, pixels, plan)
    assert fast.std() > 0.05  # answers that do not vary would be equal for no reason
    a = VARIANTS[kind]
    torch.testing.assert_close(fast, repaint_plainly(model, pixels, named_plan(plan, a)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("plan", PLANS)
def test_nothing_of_a_block_reaches_its_own_repainting(kind: str, plan: str) -> None:
    model, pixels = scrambled(VARIANTS[kind]), tiles(VARIANTS[kind], 1)
    before = repaint(model, pixels, plan)
    changed = pixels.clone()
    changed[:, 12:24, 24:36] = 255 - changed[:, 12:24, 24:36]
    after = repaint(model, changed, plan)
    assert torch.equal(before[:, 12:24, 24:36], after[:, 12:24, 24:36])
    assert not torch.equal(before, after)


def test_light_and_contrast_do_not_matter() -> None:
    model, pixels = scrambled(TINY), tiles(TINY, 1) // 2
    dark, bright = repaint(model, pixels, "x1"), repaint(model, pixels + 60, "x1")
    inside = (dark > 0.01) & (bright < 0.99)
    torch.testing.assert_close((dark + 60 / 255)[inside], bright[inside], atol=1e-4, rtol=0)


def test_flat_and_black_tiles_are_finite() -> None:
    model = scrambled(TINY)
    for level in (0, 128, 255):
        flat = torch.full((1, 48, 48, 1), level, dtype=torch.uint8)
        assert torch.isfinite(repaint(model, flat, "x4")).all()


def test_a_fresh_network_is_close_to_the_mean() -> None:
    torch.manual_seed(0)
    pixels = tiles(TINY, 1)
    repainted = repaint(MaskedAutoencoder(TINY).eval(), pixels, "x4")
    assert (repainted - pixels.float().mean() / 255).abs().mean() < 0.15


def test_the_cosine_basis_is_orthonormal() -> None:
    for channels in (1, 3):
        a = MaeArchitecture(channels=channels, tile_px=48, patch_px=6, width=32, heads=2)
        basis, spread = cosine_basis(a)
        torch.testing.assert_close(basis @ basis.T, torch.eye(a.patch_values), atol=1e-5, rtol=0)
        assert bool((spread[1:] <= spread[:-1] + 1e-6).all())


def test_waves_moved_by_an_offset_match_there() -> None:
    waves, turn = plane_waves((16, 16), 32)
    match = (waves @ turn(2, -3, 1.0)) @ waves.T
    assert match[5 * 16 + 8].argmax() == 7 * 16 + 5


def test_the_network_that_ships_is_small_and_its_decoder_cheap() -> None:
    model = MaskedAutoencoder(TEXTURE_S)
    count = sum(p.numel() for p in model.parameters())
    assert 2_000_000 <= count <= 5_000_000


@pytest.mark.parametrize(
    "wrong", [{"tile_px": 225}, {"heads": 5}, {"class_token": True}, {"channels": 2}, {"unknown": 1}]
)
def test_architectures_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        MaeArchitecture.model_validate(wrong)


@pytest.mark.timeout(1200)
def test_a_real_fabric_is_told_from_its_defects_better_than_by_the_mean_good_image() -> None:
    images, model = real_images("aitex/fabric02"), load_model(load_bundle(find_bundle("texture-s")))
    assert isinstance(model, MaskedAutoencoder)

    def judge(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.floating]:
        repainted = repaint(model, torch.from_numpy(pixels), "x16").numpy()
        return error_map(pixels, repainted, SmoothedMap(norm="signed", sigma_px=2.0)).max((1, 2))

    ours, trivial = beside_the_mean_image(images, model.architecture.tile_px, judge)
    assert ours > trivial + 0.05
