"""The masked transformer: that no patch knows itself, what fitting does to it, and that its export says the same."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
import torch.nn.functional as F
from export_helpers import assert_tensorrt_builds, by_onnxruntime, in_every_precision
from network_helpers import Numbers, Pixels, answer, random_tiles, stir
from skimage.metrics import structural_similarity
from sklearn.metrics import roc_auc_score
from texture_helpers import beside_the_mean_image, crops, photograph, real_images, stripes, with_defect
from torch import Tensor

from edge.anomaly import error_map
from engines.architecture import METAL_EDGE, METAL_PAPER, METAL_PAPER_PRODUCT, MetalArchitecture
from engines.export import to_onnx
from engines.mae import patchify, unpatchify
from engines.metal import CONTRAST, SSIM_WINDOW_PX, MaskedTransformer
from engines.networks import build, count_work
from engines.precision import PRECISIONS
from engines.registry import ENGINES
from engines.training import Schedule, Trainer

TINY = MetalArchitecture(tile_px=32, patch_px=8, width=16, heads=2)
VARIANTS = {
    f"{stripes}{depth}": TINY.model_copy(update={"stripes": stripes, "depth": depth})
    for stripes, depth in itertools.product(("rows", "columns", "none"), (1, 2))
} | {"colour": TINY.model_copy(update={"channels": 3, "tile_px": 40, "depth": 3})}


def literal(a: MetalArchitecture) -> MetalArchitecture:
    return a.model_copy(update={"attention": "literal"})


def scrambled(architecture: MetalArchitecture, seed: int = 0) -> MaskedTransformer:
    """A network whose answers vary with the tile and with the place."""
    torch.manual_seed(seed)
    network = MaskedTransformer(architecture).eval()
    stir(network, by=1)
    return network


def changed_in_turn(a: MetalArchitecture) -> tuple[Tensor, Tensor]:
    """Of one random tile [T, h, w, C] copies as it is, and copies of which number k differs in patch k."""
    patches = patchify(torch.from_numpy(random_tiles(a, 1)), a.patch_px).repeat(a.side**2, 1, 1)
    changed = patches.clone()
    for k in range(a.side**2):
        changed[k, k] = 255 - patches[k, k]
    grid = (a.side, a.side)
    return unpatchify(patches, a.patch_px, grid), unpatchify(changed, a.patch_px, grid)


def differences(network: MaskedTransformer) -> Tensor:
    """How far patch t of the answer moves when patch k of the tile is changed: [k, t], largest absolute values."""
    a = network.architecture
    with torch.no_grad():
        before, after = (patchify(network(x), a.patch_px) for x in changed_in_turn(a))
    return (after - before).abs().amax(2)


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_patch_changes_its_own_reconstruction_by_exactly_nothing(kind: str) -> None:
    moved = differences(scrambled(VARIANTS[kind]))
    own = torch.eye(len(moved), dtype=torch.bool)
    assert moved[own].max() == 0
    assert moved[~own].min() > 1e-4  # and every other one by something


@pytest.mark.parametrize("kind", VARIANTS)
def test_no_gradient_leads_from_a_patch_to_its_own_reconstruction(kind: str) -> None:
    a, network = VARIANTS[kind], scrambled(VARIANTS[kind])
    tile = (torch.from_numpy(random_tiles(a, 1)).float() / 255).requires_grad_()
    answers = patchify(network.repaint(tile), a.patch_px)
    for k in (0, a.side + 1, a.side**2 - 1):
        (slope,) = torch.autograd.grad(answers[:, k].square().sum(), tile, retain_graph=True)
        per_patch = patchify(slope, a.patch_px).abs().amax(2)[0]
        assert per_patch[k] == 0
        assert per_patch[torch.arange(a.side**2) != k].min() > 0


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_paper_s_literal_attention_lets_a_patch_know_itself(kind: str) -> None:
    assert differences(scrambled(literal(VARIANTS[kind]))).diagonal().min() > 1e-3


def split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def plain_tokens(network: MaskedTransformer, patches: Tensor) -> Tensor:
    """patches [B, T, P] -> tokens [B, T, D], each stripe embedded in one piece."""
    a = network.architecture
    x = patches.unflatten(1, (a.side, a.side))
    tokens = network.square(x)
    if network.stripe is not None:
        stripes = x.flatten(2) @ network.stripe.weight.flatten(0, 1) + network.stripe.bias
        tokens = torch.cat([tokens, stripes.unflatten(2, (a.side, -1))], 3)
    return (tokens + network.where).flatten(1, 2)


def plain_answers(network: MaskedTransformer, patches: Tensor) -> Tensor:
    """patches [T, P] -> [T, P] in the paper's way: whole attention matrices without their diagonal. With "strict" by a
    copy of the tile per patch, in which it is mid grey and of whose answers only its own is kept."""
    a = network.architecture
    every = torch.arange(a.side**2)
    apart = every[:, None] != every
    strict = network.asked is not None
    copies = patches * apart[..., None] if strict else patches[None]
    tokens = plain_tokens(network, copies)
    x = network.asked.flatten(0, 1).expand_as(tokens) if network.asked is not None else tokens
    for block in network.encoder:
        k, v = block.kv(block.context_norm(tokens if strict else x)).chunk(2, 2)
        q = block.q(block.norm(x))
        y = F.scaled_dot_product_attention(*(split(z, block.heads) for z in (q, k, v)), attn_mask=apart)
        x = x + block.out(y.transpose(1, 2).flatten(2))
        x = x + block.mlp(x)
    answers: Tensor = network.head(network.decoder(x))
    return answers[every, every] if strict else answers[0]


@pytest.mark.parametrize("attention", ["strict", "literal"])
@pytest.mark.parametrize("kind", VARIANTS)
def test_it_answers_as_the_plain_way_does(kind: str, attention: str) -> None:
    a = VARIANTS[kind].model_copy(update={"attention": attention})
    network, grid = scrambled(a), (a.side, a.side)
    tile = torch.from_numpy(random_tiles(a, 1)).float() / 255
    with torch.no_grad():
        patches = patchify((tile - 0.5) / CONTRAST, a.patch_px)[0]
        if a.stripes == "columns":
            patches = patches.unflatten(0, grid).transpose(0, 1).flatten(0, 1)
        answers = plain_answers(network, patches)
        if a.stripes == "columns":
            answers = answers.unflatten(0, grid).transpose(0, 1).flatten(0, 1)
        expected = unpatchify(answers[None], a.patch_px, grid) * CONTRAST + 0.5
        found = network.repaint(tile)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_columns_are_rows_of_a_tile_whose_patches_are_exchanged() -> None:
    rows, columns = (scrambled(TINY.model_copy(update={"stripes": stripes})) for stripes in ("rows", "columns"))
    tiles = torch.from_numpy(random_tiles(TINY))
    grid = (TINY.side, TINY.side)

    def exchanged(x: Tensor) -> Tensor:
        patches = patchify(x, TINY.patch_px).unflatten(1, grid).transpose(1, 2).flatten(1, 2)
        return unpatchify(patches, TINY.patch_px, grid)

    with torch.no_grad():
        torch.testing.assert_close(columns(tiles), exchanged(rows(exchanged(tiles))), atol=0, rtol=0)


def test_a_stripe_reaches_across_the_tile() -> None:
    network = scrambled(TINY.model_copy(update={"depth": 1}))
    patches = torch.randn(1, TINY.side, TINY.side, TINY.patch_values, generator=torch.Generator().manual_seed(0))
    changed = patches.clone()
    changed[:, 1, 3] *= -1
    with torch.no_grad():
        (tokens, near), (other_tokens, other_near) = network.embed(patches), network.embed(changed)
    moved = (other_tokens - tokens)[0].abs()  # [L, M, D]
    assert (moved[1, :, TINY.width :].amax(1) > 0).all()
    assert (moved[..., : TINY.width].amax(2) > 0).nonzero().tolist() == [[1, 3]]
    assert moved[[0, 2, 3]].max() == 0
    seen_by = (other_near - near)[0, 1].abs().amax((1, 2))  # [M]
    assert (seen_by > 0).tolist() == [True, True, True, False]


def test_sizes() -> None:
    sizes = {"edge": METAL_EDGE, "paper": METAL_PAPER, "paper-product": METAL_PAPER_PRODUCT}
    assert dict(ENGINES["metal"].sizes) == sizes
    with torch.device("meta"):
        million = {name: sum(p.numel() for p in build(a).parameters()) / 1e6 for name, a in sizes.items()}
    assert million["paper"] == pytest.approx(9.1, abs=0.05)  # 26.3 in the paper: see the docstring of engines.metal
    assert million["paper-product"] == pytest.approx(8.3, abs=0.05)  # 17.8
    assert million["edge"] < 1
    assert (METAL_PAPER.tile_px, METAL_PAPER.patch_px, METAL_PAPER.width, METAL_PAPER.heads) == (128, 16, 128, 4)
    assert count_work(build(METAL_EDGE), "x1") < 0.2


def test_the_map_orders_pixels_as_squares_summed_over_channels_do() -> None:
    kind, rng = ENGINES["metal"], np.random.default_rng(0)
    assert (kind.error_map.kind, kind.score.kind) == ("smoothed", "max")
    assert kind.error_map.norm == "l2"  # type: ignore[union-attr]
    sharp = kind.error_map.model_copy(update={"sigma_px": 0.5})
    tiles, repainted = random_tiles(METAL_PAPER, 1), rng.random((1, 128, 128, 3)).astype(np.float32)
    squared = error_map(tiles, repainted, sharp).astype(np.float64) ** 2 * 3
    summed = ((tiles / 255 - repainted) ** 2).sum(3)[0].astype(np.float32)
    np.testing.assert_allclose(
        squared[0], cv2.GaussianBlur(summed, (0, 0), 0.5, borderType=cv2.BORDER_REFLECT), rtol=1e-4
    )


@pytest.mark.parametrize("attention", ["strict", "literal"])
@pytest.mark.parametrize("kind", ["rows2", "columns1", "none2", "colour"])
def test_the_export_says_what_torch_says(kind: str, attention: str) -> None:
    network = scrambled(VARIANTS[kind].model_copy(update={"attention": attention}))
    graph = to_onnx(network)
    assert not {"If", "Loop", "Einsum"} & {node.op_type for node in onnx.load_model_from_string(graph).graph.node}
    for count in (1, 3):
        tiles = random_tiles(VARIANTS[kind], count)
        tiles[0, :20, :20] = 255
        wanted = answer(network, tiles)
        assert wanted.std() > 0.05  # answers that do not vary would be equal for no reason
        np.testing.assert_allclose(by_onnxruntime(graph, tiles), wanted, atol=1e-4, rtol=0)


def test_in_the_export_a_patch_changes_its_own_reconstruction_by_exactly_nothing() -> None:
    graph = to_onnx(scrambled(TINY))
    before, after = (
        patchify(torch.from_numpy(by_onnxruntime(graph, x.numpy())), TINY.patch_px) for x in changed_in_turn(TINY)
    )
    moved = (after - before).abs().amax(2)
    assert moved.diagonal().max() == 0
    assert moved.mean() > 1e-3


@pytest.fixture(scope="module")
def typed() -> dict[str, bytes]:
    return in_every_precision(scrambled(TINY), random_tiles(TINY, 4, seed=9))


def test_half_precision_says_nearly_the_same(typed: dict[str, bytes]) -> None:
    tiles = random_tiles(TINY, 1)
    apart = np.abs(by_onnxruntime(typed["f16"], tiles) - by_onnxruntime(typed["f32"], tiles))
    assert 0 < apart.mean() < 2e-3
    assert apart.max() < 3e-2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_builds_it(precision: str, typed: dict[str, bytes]) -> None:
    assert_tensorrt_builds(typed[precision])


def fitted(a: MetalArchitecture, images: list[Pixels], steps: int, batch: int) -> MaskedTransformer:
    """A network after some steps on crops of images."""
    torch.manual_seed(0)
    trainer = Trainer(MaskedTransformer(a), Schedule(steps, 4e-3, max(1, steps // 10), steps // 2), average=0.9)
    for step in range(steps):
        rng = np.random.default_rng([0, step])
        trainer.train_step(torch.from_numpy(crops(images, batch, rng, a.tile_px)), rng)
    network = trainer.averaged.eval()
    assert isinstance(network, MaskedTransformer)
    return network


SMALL = TINY.model_copy(update={"tile_px": 48, "width": 32})


@cache
def fitted_on_stripes() -> MaskedTransformer:
    return fitted(SMALL, [stripes()[:, :256]], 45, 8)


@pytest.mark.parametrize("attention", ["strict", "literal"])
def test_the_loss_falls_on_a_real_texture(attention: str) -> None:
    a, brick = SMALL.model_copy(update={"attention": attention}), photograph("brick")
    unseen = torch.from_numpy(crops([brick[:, 256:]], 20, np.random.default_rng(9), a.tile_px))
    networks = MaskedTransformer(a), fitted(a, [brick[:, :256]], 25, 8)
    with torch.no_grad():
        (before, worse), (after, better) = (n.loss(unseen, np.random.default_rng(0)) for n in networks)
    assert after < before - 0.1
    assert better < 0.8 * worse


def test_small_faint_defects_rank_above_good_tiles() -> None:
    rng, network, image, px = np.random.default_rng(3), fitted_on_stripes(), stripes()[:, 256:], SMALL.tile_px
    good = crops([image], 50, rng, px)
    bad = np.stack([with_defect(tile, rng) for tile in crops([image], 50, rng, px)])
    mean = np.broadcast_to(crops([image], 50, rng, px).mean(0) / np.float32(255), good.shape).astype(np.float32)
    truth = [0] * len(good) + [1] * len(bad)
    ours = roc_auc_score(truth, np.concatenate([scores(x, answer(network, x)) for x in (good, bad)]))
    trivial = roc_auc_score(truth, np.concatenate([scores(x, mean) for x in (good, bad)]))
    assert ours > 0.9
    assert ours > trivial + 0.15


def scores(tiles: Pixels, repainted: Numbers) -> Numbers:
    """As the line has them: the maximum of the smoothed map."""
    return error_map(tiles, repainted, ENGINES["metal"].error_map).max((1, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_loss_is_l1_less_ssim_and_draws_nothing(channels: Literal[1, 3]) -> None:
    network = scrambled(TINY.model_copy(update={"channels": channels}))
    tiles, rng = random_tiles(network.architecture, 3), np.random.default_rng(1)
    tiles = tiles // 2 + 60  # where nothing is clamped
    state = rng.bit_generator.state
    loss, error = network.loss(torch.from_numpy(tiles), rng, 0.5)
    seen, repainted = tiles / 255, network.repaint(torch.from_numpy(tiles).float() / 255).detach().double().numpy()
    l1 = np.abs(repainted - seen).mean((1, 2, 3))
    alike = [ssim(x, y) for x, y in zip(seen, repainted, strict=True)]
    assert float(loss.detach()) == pytest.approx(l1.mean() - np.mean(alike), abs=1e-4)
    assert float(error) == pytest.approx((l1 / seen.std((1, 2, 3), ddof=1)).mean(), rel=1e-4)
    assert rng.bit_generator.state == state
    assert loss.requires_grad
    assert not error.requires_grad


def ssim(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """scikit-image's, with the sides mirrored as they are in the loss."""
    half = SSIM_WINDOW_PX // 2
    x, y = (np.pad(z, ((half, half), (half, half), (0, 0)), mode="reflect") for z in (x, y))
    options = {"win_size": SSIM_WINDOW_PX, "data_range": 1, "use_sample_covariance": False, "channel_axis": 2}
    return float(structural_similarity(x, y, **options))  # over what needs no more padding: the tile


def test_tiles_of_one_grey_come_back_as_pictures() -> None:
    for a in VARIANTS.values():
        network = scrambled(a)
        for level in (0, 128, 255):
            repainted = answer(network, np.full((1, a.tile_px, a.tile_px, a.channels), level, np.uint8))
            assert repainted.shape == (1, a.tile_px, a.tile_px, a.channels)
            assert repainted.dtype == np.float32
            assert 0 <= repainted.min() <= repainted.max() <= 1


def test_crops_are_whole_tiles() -> None:
    assert {METAL_PAPER.crop_px(p) for p in (0.0, 0.5, 1.0)} == {128}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tile_px": 100}, "tile_px 100 is no multiple of patch_px 16"),
        ({"tile_px": 16}, "patch_px 16 is the whole tile"),
        ({"heads": 3}, "tokens of 256 values cannot be shared by 3 heads"),
        ({"width": 6, "stripes": "none"}, "tokens of 6 values cannot be shared by 4 heads"),
        ({"stripes": "diagonals"}, "stripes"),
        ({"attention": "masked"}, "attention"),
        ({"channels": 2}, "channels"),
        ({"kind": "mae"}, "kind"),
    ],
)
def test_architectures_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetalArchitecture.model_validate(wrong)


def test_architectures_survive_a_manifest() -> None:
    for a in (*VARIANTS.values(), METAL_EDGE, METAL_PAPER, METAL_PAPER_PRODUCT):
        assert MetalArchitecture.model_validate_json(a.model_dump_json()) == a


@pytest.mark.timeout(1200)
def test_a_real_fabric_is_told_from_its_defects_better_than_by_the_mean_good_image() -> None:
    images = real_images("aitex/fabric02")
    network = fitted(METAL_EDGE, images.fit, 200, 16)
    px, spec = METAL_EDGE.tile_px, ENGINES["metal"].error_map
    found = beside_the_mean_image(images, px, lambda tiles: answer(network, tiles), spec)
    assert found.ours > found.alike + 0.05
    assert found.ours > found.signed
