"""AnoViT: the paper's sizes, which patch is painted where, what fitting does to it, and that exports say the same."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from export_helpers import assert_tensorrt_builds, by_onnxruntime, in_every_precision
from network_helpers import Numbers, Pixels, answer, random_tiles, stir
from sklearn.metrics import roc_auc_score
from texture_helpers import beside_the_mean_image, crops, photograph, real_images, stripes, with_defect
from torch import nn

from edge.anomaly import error_map
from engines.anovit import AnoVit
from engines.architecture import ANOVIT_EDGE, ANOVIT_PAPER, AnovitArchitecture
from engines.export import to_onnx
from engines.networks import build, count_work
from engines.precision import PRECISIONS
from engines.registry import ENGINES
from engines.training import Schedule, Trainer

TINY = AnovitArchitecture(
    tile_px=64, patch_px=8, width=32, depth=2, heads=2, mlp_ratio=2.0, decoder_widths=(24, 16, 12, 12, 8)
)
VARIANTS = {
    "tiny": TINY,
    "colour": TINY.model_copy(update={"channels": 3}),
    "large patches": TINY.model_copy(update={"patch_px": 16, "heads": 4, "tile_px": 48}),
}


def scrambled(architecture: AnovitArchitecture, seed: int = 0) -> AnoVit:
    """A network whose answers vary about as much as tiles do."""
    torch.manual_seed(seed)
    network = AnoVit(architecture).eval()
    stir(network)
    return network


def fitted(a: AnovitArchitecture, images: list[Pixels], steps: int, batch: int, rate: float) -> tuple[AnoVit, Numbers]:
    """The network after some steps on crops of images, and the errors that it reported."""
    torch.manual_seed(0)
    trainer = Trainer(AnoVit(a), Schedule(steps, rate, max(1, steps // 10), steps // 2), average=0.9)
    errors = []
    for step in range(steps):
        rng = np.random.default_rng([0, step])
        errors.append(trainer.train_step(torch.from_numpy(crops(images, batch, rng, a.tile_px)), rng))
    network = trainer.averaged.eval()
    assert isinstance(network, AnoVit)
    return network, np.asarray(errors, np.float32)


@cache
def fitted_on_stripes() -> AnoVit:
    return fitted(TINY, [stripes()[:, :256]], 120, 6, 5e-3)[0]


def test_the_decoder_grows_the_map_as_the_papers_does() -> None:
    with torch.device("meta"):
        network = AnoVit(ANOVIT_PAPER)
        x = torch.zeros(1, 768, 24, 24)
    rows = []
    for layer in network.decoder:
        x = layer(x)
        if isinstance(layer, nn.ConvTranspose2d):
            rows.append((x.shape[2], x.shape[3], x.shape[1]))
    assert rows == [(26, 26, 256), (28, 28, 128), (30, 30, 64), (59, 59, 32), (117, 117, 16), (233, 233, 3)]
    assert [type(m) for m in network.decoder] == [nn.ConvTranspose2d, nn.InstanceNorm2d, nn.ReLU] * 5 + [
        nn.ConvTranspose2d
    ]
    assert network.decode(torch.zeros(1, 577, 768, device="meta")).shape == (1, 3, 384, 384)


def test_sizes() -> None:
    with torch.device("meta"):
        million = {name: sum(p.numel() for p in AnoVit(a).parameters()) / 1e6 for name, a in SIZES.items()}
    assert million["paper"] == pytest.approx(86.09 + 2.16, abs=0.01)  # ViT-B/16 without its head, and the decoder
    assert million["edge"] == pytest.approx(0.41, abs=0.01)
    assert ANOVIT_PAPER.heads == 8
    assert count_work(build(ANOVIT_EDGE), "x1") == pytest.approx(0.313, abs=0.001)


SIZES = {"paper": ANOVIT_PAPER, "edge": ANOVIT_EDGE}


def test_it_is_an_engine_with_the_papers_map_and_score() -> None:
    kind = ENGINES["anovit"]
    assert dict(kind.sizes) == SIZES
    assert (kind.error_map.kind, kind.score.kind) == ("smoothed", "max")
    assert kind.error_map.norm == "l2"  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", VARIANTS)
def test_tiles_of_any_kind_come_back_as_pictures(kind: str) -> None:
    network = scrambled(VARIANTS[kind])
    flat = [np.full((1, *random_tiles(VARIANTS[kind]).shape[1:]), level, np.uint8) for level in (0, 128, 255)]
    for tiles in (random_tiles(VARIANTS[kind]), *flat):
        repainted = answer(network, tiles)
        assert repainted.shape == tiles.shape
        assert repainted.dtype == np.float32
        assert 0 <= repainted.min() <= repainted.max() <= 1


@pytest.mark.parametrize(("row", "column"), [(1, 6), (6, 1), (4, 4)])
def test_tokens_are_laid_out_where_their_patches_are(row: int, column: int) -> None:
    network = scrambled(TINY)
    tokens = torch.randn(1, 1 + TINY.side**2, TINY.width, generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 1 + row * TINY.side + column] *= -1
    with torch.no_grad():
        before, after = network.decode(tokens), network.decode(changed)
    moved = (after - before)[0, 0].square().numpy()
    moved = moved * (moved > 0.1 * moved.max())  # normalisation moves all the rest a little
    y, x = np.mgrid[: TINY.tile_px, : TINY.tile_px]
    centre = [float((moved * at).sum() / moved.sum()) for at in (y, x)]
    # The map grows by three rows all around before it is resized to the tile.
    wanted = [(at + 3.5) / (TINY.side + 6) * TINY.tile_px for at in (row, column)]
    np.testing.assert_allclose(centre, wanted, atol=TINY.patch_px)


def test_the_class_token_is_not_painted() -> None:
    network = scrambled(TINY)
    tokens = torch.randn(1, 1 + TINY.side**2, TINY.width, generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 0] += 1
    with torch.no_grad():
        assert torch.equal(network.decode(tokens), network.decode(changed))


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_export_says_what_torch_says(kind: str) -> None:
    network = scrambled(VARIANTS[kind])
    graph = to_onnx(network)
    operators = Counter(node.op_type for node in onnx.load_model_from_string(graph).graph.node)
    assert operators["LayerNormalization"] == 2 * network.architecture.depth + 1
    assert operators["InstanceNormalization"] == 5
    for count in (1, 3):
        tiles = random_tiles(VARIANTS[kind], count)
        tiles[0, :20, :20] = 255
        wanted = answer(network, tiles)
        assert wanted.std() > 0.05  # answers that do not vary would be equal for no reason
        np.testing.assert_allclose(by_onnxruntime(graph, tiles), wanted, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def typed() -> dict[str, bytes]:
    return in_every_precision(scrambled(TINY), random_tiles(TINY, 4, seed=9))


def test_half_precision_says_nearly_the_same(typed: dict[str, bytes]) -> None:
    tiles = random_tiles(TINY, 1)
    apart = np.abs(by_onnxruntime(typed["f16"], tiles) - by_onnxruntime(typed["f32"], tiles))
    assert 0 < apart.mean() < 1e-3
    assert apart.max() < 2e-2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_builds_it(precision: str, typed: dict[str, bytes]) -> None:
    assert_tensorrt_builds(typed[precision])


def test_the_error_falls_on_a_real_texture() -> None:
    _, errors = fitted(TINY, [photograph("brick")], 30, 6, 5e-3)
    assert errors[-5:].mean() < 0.85 * errors[:3].mean()


def test_small_faint_defects_rank_above_good_tiles() -> None:
    rng, network, image = np.random.default_rng(3), fitted_on_stripes(), stripes()[:, 256:]
    good = crops([image], 50, rng, TINY.tile_px)
    bad = np.stack([with_defect(tile, rng) for tile in crops([image], 50, rng, TINY.tile_px)])
    mean = np.broadcast_to(crops([image], 50, rng, TINY.tile_px).mean(0) / np.float32(255), good.shape).astype(
        np.float32
    )
    truth = [0] * len(good) + [1] * len(bad)
    ours = roc_auc_score(truth, np.concatenate([scores(x, answer(network, x)) for x in (good, bad)]))
    trivial = roc_auc_score(truth, np.concatenate([scores(x, mean) for x in (good, bad)]))
    assert ours > 0.9
    assert ours > trivial + 0.15


def scores(tiles: Pixels, repainted: Numbers) -> Numbers:
    """As the line has them: the maximum of the smoothed map."""
    return np.asarray(error_map(tiles, repainted, ENGINES["anovit"].error_map).max((1, 2)))


def test_the_weave_is_repainted_and_a_small_spot_is_not() -> None:
    network, tiles = fitted_on_stripes(), crops([stripes()[:, 256:]], 20, np.random.default_rng(5), TINY.tile_px)
    y, x = np.mgrid[: TINY.tile_px, : TINY.tile_px]
    spot = 25 * np.exp(-((y - 30) ** 2 + (x - 34) ** 2) / (2 * 2.5**2))[..., None]  # 6 pixels wide, 10 % of the range
    spotted = np.clip(tiles + np.rint(spot), 0, 255).astype(np.uint8)
    before, after = answer(network, tiles), answer(network, spotted)
    assert np.abs(before - tiles / 255).mean() < 0.25 * tiles.std() / 255
    copied = ((after - before) * spot / 255).sum() / ((spotted - tiles.astype(np.float32)) / 255 * spot / 255).sum()
    assert copied < 0.2


def test_the_loss_is_the_mean_square_and_draws_nothing() -> None:
    network, tiles, rng = scrambled(TINY), random_tiles(TINY, 3), np.random.default_rng(1)
    state = rng.bit_generator.state
    loss, error = network.loss(torch.from_numpy(tiles), rng, 0.5)
    difference = answer(network, tiles).astype(np.float64) - tiles / 255
    assert float(loss.detach()) == pytest.approx((difference**2).mean(), rel=1e-4)
    contrast = (tiles / 255).std((1, 2, 3), ddof=1)
    assert float(error) == pytest.approx((np.abs(difference).mean((1, 2, 3)) / contrast).mean(), rel=1e-4)
    assert rng.bit_generator.state == state
    assert loss.requires_grad
    assert not error.requires_grad


def test_crops_are_whole_tiles() -> None:
    assert {a.crop_px(p) for a in SIZES.values() for p in (0.0, 0.5, 1.0)} == {
        ANOVIT_EDGE.tile_px,
        ANOVIT_PAPER.tile_px,
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tile_px": 250}, "tile_px 250 is no multiple of patch_px 16"),
        ({"heads": 7}, "a width of 768 cannot be shared by 7 heads"),
        ({"decoder_widths": (8, 8, 8)}, "decoder_widths"),
        ({"decoder_widths": (8, 8, 8, 8, 0)}, "decoder_widths"),
        ({"channels": 2}, "channels"),
        ({"kind": "mae"}, "kind"),
    ],
)
def test_architectures_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnovitArchitecture.model_validate(wrong)


def test_architectures_survive_a_manifest() -> None:
    for a in SIZES.values():
        assert AnovitArchitecture.model_validate_json(a.model_dump_json()) == a


@pytest.mark.timeout(1200)
def test_a_real_fabric_is_told_from_its_defects_better_than_by_the_mean_good_image() -> None:
    images, px = real_images("aitex/fabric02"), ANOVIT_EDGE.tile_px
    network, _ = fitted(ANOVIT_EDGE, images.fit, 300, 8, 2e-3)
    found = beside_the_mean_image(images, px, lambda tiles: answer(network, tiles), ENGINES["anovit"].error_map)
    assert found.ours > found.alike + 0.05
