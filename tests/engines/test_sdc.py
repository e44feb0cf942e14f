"""The filtering autoencoder: its sizes, what fitting does to it, and that its export says the same."""

from __future__ import annotations

import io
import warnings
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from network_helpers import Pixels, answer, random_tiles
from sklearn.metrics import roc_auc_score
from texture_helpers import beside_the_mean_image, crops, photograph, real_images, stripes, with_defect
from torch import Tensor, nn
from torch.nn import functional as F

from engines.architecture import SDC_EDGE, SDC_PAPER, SdcArchitecture
from engines.corruption import Corruption, corrupt_tiles
from engines.differences import ssim
from engines.registry import ENGINES
from engines.sdc import SdcAutoencoder, folded, local_light

TINY = SdcArchitecture(
    tile_px=64,
    width=8,
    levels=2,
    encoder_convolutions=1,
    decoder_convolutions=1,
    dilations=(1, 2, 4),
    branch_width=8,
    stacks=1,
    mix_px=0,
)
VARIANTS = {
    "tiny": TINY,
    "local": TINY.model_copy(update={"normalise": "local", "window_px": 32}),
    "colour": TINY.model_copy(update={"channels": 3, "mix_px": 3, "levels": 3, "stacks": 2, "tile_px": 32}),
    "colour_local": TINY.model_copy(update={"channels": 3, "mix_px": 1, "normalise": "local", "window_px": 32}),
}


def scrambled(architecture: SdcArchitecture, seed: int = 0) -> SdcAutoencoder:
    """A network whose answers vary, with batch statistics that matter."""
    torch.manual_seed(seed)
    network = SdcAutoencoder(architecture).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.05, 0.2)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return network


def fitted(a: SdcArchitecture, images: list[Pixels], steps: int) -> tuple[SdcAutoencoder, list[float]]:
    """The network after some steps on crops of images, and its losses."""
    torch.manual_seed(0)
    rng, network, losses = np.random.default_rng(0), SdcAutoencoder(a), []
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps, pct_start=0.15)
    for _ in range(steps):
        loss, _ = network.loss(torch.from_numpy(crops(images, 6, rng, a.tile_px)), rng)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return network.eval(), losses


@cache
def fitted_on_stripes() -> SdcAutoencoder:
    return fitted(TINY, [stripes()[:, :256]], 60)[0]


def sizes(a: SdcArchitecture, px: int) -> list[tuple[int, int, int]]:
    """Height, width and filters after each layer."""
    rows, x = [], torch.zeros(1, a.channels, px, px)
    with torch.no_grad():
        for layer in SdcAutoencoder(a).eval().layers:
            x = layer(x)
            rows.append((x.shape[2], x.shape[3], x.shape[1]))
    return rows


@pytest.mark.parametrize("px", [256, 512])
def test_output_sizes_are_what_we_take_table_1_to_say(px: int) -> None:
    """Which was not at hand: see `engines.sdc`."""
    w = 2  # a thirty-second of the paper's filters: as many layers of as many pixels, a thousandth of the work
    assert SDC_PAPER.width == SDC_PAPER.branch_width == 32 * w
    half, quarter, eighth = px // 2, px // 4, px // 8
    assert sizes(SDC_PAPER.model_copy(update={"width": w, "branch_width": w}), px) == [
        *[(px, px, w)] * 2,
        (half, half, w),
        *[(half, half, 2 * w)] * 2,
        (quarter, quarter, 2 * w),
        *[(quarter, quarter, 4 * w)] * 2,
        (eighth, eighth, 4 * w),
        *[(eighth, eighth, 6 * w)] * 8,  # four stacks, each with the convolution that follows it
        *[(quarter, quarter, 4 * w)] * 3,  # a transposed convolution and two others
        *[(half, half, 2 * w)] * 3,
        *[(px, px, w)] * 3,
        (px, px, 3),
    ]


def test_the_edge_size_is_small() -> None:
    count = {name: sum(p.numel() for p in SdcAutoencoder(a).parameters()) for name, a in SIZES.items()}
    assert count["edge"] < 0.5e6
    assert 13e6 < count["paper"] < 15e6


SIZES = {"paper": SDC_PAPER, "edge": SDC_EDGE}


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 80), (64, 32)])
def test_any_multiple_of_the_stride_will_do(kind: str, height: int, width: int) -> None:
    a = VARIANTS[kind]
    tiles = np.random.default_rng(0).integers(0, 256, (3, height, width, a.channels), np.uint8)
    repainted = answer(scrambled(a), tiles)
    assert repainted.shape == tiles.shape
    assert repainted.dtype == np.float32
    assert 0 <= repainted.min() < repainted.max() <= 1


def test_tiles_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="tiles are 62 x 64, expected multiples of the network's stride of 4"):
        answer(scrambled(TINY), np.zeros((1, 62, 64, 1), np.uint8))
    with pytest.raises(ValueError, match="tiles have 3 channels, expected 1"):
        answer(scrambled(TINY), np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_export_says_what_torch_says(kind: str) -> None:
    network = scrambled(VARIANTS[kind])
    graph = exported(folded(network))
    assert not [n for n in onnx.load_model_from_string(graph).graph.node if n.op_type == "BatchNormalization"]
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        tiles = random_tiles(VARIANTS[kind], count)
        tiles[0, :20, :20] = 255
        wanted = answer(network, tiles)
        assert wanted.std() > 0.02  # answers that do not vary would be equal for no reason
        np.testing.assert_allclose(session.run(None, {"tiles": tiles})[0], wanted, atol=1e-4, rtol=0)


def exported(network: SdcAutoencoder) -> bytes:
    a, file = network.architecture, io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter is deprecated, not wrong
        torch.onnx.export(
            network,
            (torch.zeros(2, a.tile_px, a.tile_px, a.channels, dtype=torch.uint8),),
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=17,
            input_names=["tiles"],
            output_names=["repainted"],
            dynamic_axes={"tiles": {0: "N"}, "repainted": {0: "N"}},
        )
    return file.getvalue()


def test_folding_leaves_the_network_itself_alone() -> None:
    network = scrambled(TINY)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tiles = random_tiles(TINY)
    np.testing.assert_allclose(answer(folded(network), tiles), answer(network, tiles), atol=1e-5, rtol=0)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("kind", ["local", "colour_local"])
def test_light_and_contrast_do_not_matter_with_local_normalisation(kind: str) -> None:
    network, rng = scrambled(VARIANTS[kind]), np.random.default_rng(0)
    tiles = rng.integers(100, 140, (2, 64, 64, VARIANTS[kind].channels), np.uint8)
    dark, bright = answer(network, tiles - 60), answer(network, tiles)
    inside = (dark > 0.01) & (bright < 0.99)
    assert inside.mean() > 0.8
    np.testing.assert_allclose((dark + np.float32(60 / 255))[inside], bright[inside], atol=1e-4, rtol=0)
    strong = answer(network, ((tiles.astype(int) - 100) * 2 + 60).astype(np.uint8))
    inside = (strong > 0.01) & (strong < 0.99)
    expected = (bright - np.float32(100 / 255)) * 2 + np.float32(60 / 255)
    np.testing.assert_allclose(expected[inside], strong[inside], atol=1e-3, rtol=0)
    plain = scrambled(TINY)
    grey = tiles[..., :1]
    assert np.abs(answer(plain, grey - 60) + np.float32(60 / 255) - answer(plain, grey)).max() > 0.05


def test_local_light_is_the_mean_and_deviation_around_each_place() -> None:
    a = SDC_EDGE.model_copy(update={"normalise": "local", "window_px": 36})
    x = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 1, 128)
    mean, contrast = local_light(x, a)
    near = x[..., 46:82, 46:82]  # 36 x 36 around pixel 64, 64
    assert mean[0, 0, 64, 64] == pytest.approx(float(near.mean()), abs=0.01)
    assert contrast[0, 0, 64, 64] == pytest.approx(float(near.std()), abs=0.01)
    assert mean.shape == x.shape


def test_black_white_and_flat_tiles_are_finite() -> None:
    for a in VARIANTS.values():
        network = scrambled(a)
        for level in (0, 128, 255):
            assert np.isfinite(answer(network, np.full((1, 64, 64, a.channels), level, np.uint8))).all()


@pytest.mark.parametrize(("objective", "normalise"), [(1, "none"), (1, "local"), (3, "none")])
def test_the_loss_falls_on_a_real_texture(objective: int, normalise: str) -> None:
    a = TINY.model_copy(update={"normalise": normalise, "objective": objective})
    _, losses = fitted(a, [photograph("brick")], 30)
    assert np.mean(losses[-8:]) < 0.6 * np.mean(losses[:4])


def test_small_faint_defects_rank_above_good_tiles() -> None:
    rng, network, image = np.random.default_rng(3), fitted_on_stripes(), [stripes()[:, 256:]]
    good = crops(image, 50, rng, TINY.tile_px)
    bad = np.stack([with_defect(tile, rng) for tile in crops(image, 50, rng, TINY.tile_px)])
    mean = crops(image, 50, rng, TINY.tile_px).mean(0) / 255
    truth = [0] * len(good) + [1] * len(bad)
    ours = roc_auc_score(
        truth, [peak(t / 255 - r) for x in (good, bad) for t, r in zip(x, answer(network, x), strict=True)]
    )
    trivial = roc_auc_score(truth, [peak(t / 255 - mean) for x in (good, bad) for t in x])
    assert ours > 0.9
    assert ours > trivial + 0.15


def peak(error: npt.NDArray[np.floating]) -> float:
    return float(cv2.GaussianBlur(np.abs(error[..., 0]).astype(np.float32), (0, 0), 1.5).max())


@pytest.mark.timeout(1200)
def test_a_real_fabric_is_told_from_its_defects_better_than_by_the_mean_good_image() -> None:
    images, a = real_images("aitex/fabric02"), TINY.model_copy(update={"normalise": "local"})
    network, _ = fitted(a, images.fit, 400)
    found = beside_the_mean_image(images, a.tile_px, lambda tiles: answer(network, tiles), ENGINES["sdc"].error_map)
    assert found.ours > found.alike + 0.05
    assert found.ours > found.signed


def test_a_fitted_network_filters_and_otherwise_copies() -> None:
    tiles = crops([stripes()[:, 256:]], 20, np.random.default_rng(5), TINY.tile_px)
    corrupted, masks = corrupt_tiles(tiles, np.random.default_rng(6))
    network = fitted_on_stripes()
    inside = masks > 0.9
    before = np.abs(corrupted / 255 - tiles / 255)[..., 0][inside].mean()
    after = np.abs(answer(network, corrupted) - tiles / 255)[..., 0][inside].mean()
    assert after < 0.4 * before
    assert np.abs(answer(network, tiles) - tiles / 255).mean() < 0.3 * tiles.std() / 255


@pytest.mark.parametrize("options", [{}, {"objective": 3, "corrupted_weight": 0.9}])
def test_objectives_depend_on_weights_tiles_and_seed_only(options: dict[str, object]) -> None:
    network, tiles = scrambled(TINY.model_copy(update=options)), torch.from_numpy(random_tiles(TINY))
    loss, error = network.loss(tiles, np.random.default_rng(1))
    again, _ = network.loss(tiles, np.random.default_rng(1))
    other, _ = network.loss(tiles, np.random.default_rng(2))
    assert float(loss.detach()) == float(again.detach()) != float(other.detach())
    assert loss.requires_grad
    assert not error.requires_grad


def test_objective_1_weighs_the_means_over_both_parts() -> None:
    specks = Corruption(size_px=(5, 9), kinds=("flat",))
    network = scrambled(TINY.model_copy(update={"corrupted_weight": 0.8, "corruption": specks}))
    tiles = random_tiles(TINY, 3)
    loss, _ = network.loss(torch.from_numpy(tiles), np.random.default_rng(4))
    corrupted, masks = corrupt_tiles(tiles, np.random.default_rng(4), specks)
    squared = ((answer(network, corrupted).astype(np.float64) - tiles / 255) ** 2)[..., 0]
    expected = [
        0.8 * (m * e).sum() / m.sum() + 0.2 * ((1 - m) * e).sum() / (1 - m).sum()
        for m, e in zip(masks.astype(np.float64), squared, strict=True)
    ]
    assert float(loss.detach()) == pytest.approx(np.mean(expected), rel=1e-4)


def test_ssim_is_scikit_images() -> None:
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    a = cv2.GaussianBlur(rng.uniform(0, 1, (48, 64)), (0, 0), 2)
    b = np.clip(a + rng.normal(0, 0.05, a.shape), 0, 1)
    expected = structural_similarity(a, b, win_size=7, data_range=1, use_sample_covariance=False, full=True)[1]
    ours = ssim(*(torch.from_numpy(x).float()[None, None] for x in (a, b)))[0, 0].numpy()
    np.testing.assert_allclose(ours[3:-3, 3:-3], expected[3:-3, 3:-3], atol=1e-4)
    assert float(ssim(torch.ones(1, 1, 16, 16), torch.ones(1, 1, 16, 16)).min()) == pytest.approx(1)


def test_crops_grow_to_whole_tiles() -> None:
    for a in (SDC_EDGE, SDC_PAPER, TINY, SDC_EDGE.model_copy(update={"tile_px": 500})):
        sides = [a.crop_px(p) for p in np.linspace(0, 1, 50)]
        assert sides == sorted(sides)
        assert sides[-1] == a.tile_px
        assert sides[0] < a.tile_px
        assert all(side % a.stride_px == 0 and side >= 32 for side in sides)
    assert TINY.model_copy(update={"tile_px": 16}).crop_px(0.0) == 16
    with pytest.raises(ValueError, match=r"progress is 1\.5"):
        SDC_EDGE.crop_px(1.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tile_px": 250}, "tile_px 250 is no multiple of 8, the stride of 3 levels; take 248"),
        ({"dilations": ()}, "dilations is empty"),
        ({"dilations": (1, 1)}, "expected different rates"),
        ({"dilations": (0, 1)}, "of at least 1"),
        ({"dilations": (1, 64)}, "a rate of 64, but a tile of 256 px is only 32 wide"),
        (
            {"normalise": "local", "levels": 4, "window_px": 16, "dilations": (1,)},
            "window_px 16 is less than twice the stride of 16",
        ),
        ({"channels": 2}, "channels"),
        ({"kind": "mae"}, "kind"),
        ({"depth": 4}, "depth"),
        ({"objective": 2}, "1 or 3"),
        ({"corrupted_weight": 1.0}, "less than 1"),
        ({"corruption": {"kinds": ("rust",)}}, "corruption.kinds"),
    ],
)
def test_architectures_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SdcArchitecture.model_validate(wrong)


def test_architectures_survive_a_manifest() -> None:
    for a in (SDC_EDGE, SDC_PAPER):
        assert SdcArchitecture.model_validate_json(a.model_dump_json()) == a


def test_a_stack_is_normalised_and_rectified_as_one() -> None:
    torch.manual_seed(0)
    stack = SdcAutoencoder(TINY).layers.get_submodule("stack0").eval()
    x = torch.randn(1, 16, 16, 16)
    wanted: list[Tensor] = []
    for branch, rate in zip(stack.branches, TINY.dilations, strict=True):  # type: ignore[arg-type, union-attr]
        weight = branch[0].weight
        wanted.append(F.conv2d(x, weight, padding=rate, dilation=rate) / (1 + 1e-5) ** 0.5)
    with torch.no_grad():
        torch.testing.assert_close(stack(x), F.relu(torch.cat(wanted, 1)), atol=1e-5, rtol=0)
