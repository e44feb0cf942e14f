"""The autoencoder that predicts maps: its two stages, what is frozen, its losses, and that its export says the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from sklearn.metrics import roc_auc_score
from texture_helpers import crops, photograph, real_images, stripes, with_defect
from torch import Tensor

from edge.anomaly import error_map
from engines.architecture import MALA_EDGE, MALA_PAPER, MalaArchitecture
from engines.backends import open_backend
from engines.bundle import GRAPH, Manifest
from engines.export import export_bundle, to_onnx
from engines.graphs import static_graph
from engines.mala import ADVERSARIAL, STAGE_2_FROM, Mala, TokenBalance, draw_hidden, focal
from engines.networks import build, count_work
from engines.precision import PRECISIONS, observe_ranges, typed_graph
from engines.registry import ENGINES
from engines.training import Schedule, Trainer

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float32]

TINY = MalaArchitecture(
    tile_px=32,
    patch_px=4,
    width=64,
    depth=2,
    heads=2,
    mlp_ratio=2.0,
    decoder_width=48,
    decoder_depth=1,
    decoder_heads=2,
    decoder_mlp_ratio=2.0,
    positions="offset",
    normalise="visible",
    balance_width=48,
    pool_px=7,
)
VARIANTS = {
    "grey": TINY,
    "colour": TINY.model_copy(update={"channels": 3, "tile_px": 40, "patch_px": 8, "pool_px": 1}),
    "fixed": TINY.model_copy(update={"normalise": "fixed", "positions": "sine", "depth": 1, "decoder_depth": 2}),
}
STAGES = {"masking": 0.0, "map": STAGE_2_FROM}


def scrambled(a: MalaArchitecture, seed: int = 0) -> Mala:
    """A network whose answers vary with the tile and with the place."""
    torch.manual_seed(seed)
    network = Mala(a).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * (0.3 / max(1, p.shape[-1]) ** 0.5))
        network.map_head[-1].weight.mul_(4)
    return network


def random_tiles(a: MalaArchitecture, count: int = 2, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, a.tile_px, a.tile_px, a.channels), np.uint8)


def answer(network: Mala, tiles: Pixels) -> Numbers:
    with torch.no_grad():
        return np.asarray(network.eval()(torch.from_numpy(tiles)).numpy())


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_answer_is_a_picture_and_a_map_behind_it(kind: str) -> None:
    a = VARIANTS[kind]
    for tiles in (random_tiles(a), *(np.full((1, a.tile_px, a.tile_px, a.channels), x, np.uint8) for x in (0, 255))):
        said = answer(scrambled(a), tiles)
        assert said.shape == (*tiles.shape[:3], a.channels + 1)
        assert said.dtype == np.float32
        assert 0 <= said.min() <= said.max() <= 1


def test_the_map_is_averaged_over_squares_of_k_pixels() -> None:
    a, tiles = TINY, random_tiles(TINY)
    network = scrambled(a)
    with torch.no_grad():
        _, logits = network.look(torch.from_numpy(tiles).float() / 255)
    assert logits.shape == (2, 32, 32, 2)
    sharp, pooled = logits.softmax(3)[..., 1].numpy(), answer(network, tiles)[..., 1]
    assert sharp.std() > 0.05
    half = a.pool_px // 2
    for y, x in ((15, 16), (half, 20), (0, 0), (31, 9)):
        square = sharp[:, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
        np.testing.assert_allclose(pooled[:, y, x], square.mean((1, 2)), atol=1e-5)
    kind = ENGINES["mala"]
    assert (kind.error_map.kind, kind.score.kind) == ("direct", "max")
    np.testing.assert_array_equal(error_map(tiles, answer(network, tiles), kind.error_map), pooled)


@pytest.mark.parametrize(("tokens", "hidden"), [(196, 147), (64, 48), (2, 1)])
def test_three_quarters_of_the_tokens_are_hidden(tokens: int, hidden: int) -> None:
    seen, unseen = draw_hidden(tokens, np.random.default_rng(0))
    assert unseen.shape == (1, max(hidden, 1))
    assert sorted(torch.cat([seen, unseen], 1)[0].tolist()) == list(range(tokens))
    assert not torch.equal(unseen, draw_hidden(tokens, np.random.default_rng(1))[1]) or tokens == 2


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_depends_on_weights_tiles_and_seed_only(stage: str) -> None:
    network, tiles = scrambled(TINY), torch.from_numpy(random_tiles(TINY, 4))
    (loss, error), (again, _), (other, _) = (
        network.loss(tiles, np.random.default_rng(seed), STAGES[stage]) for seed in (1, 1, 2)
    )
    assert float(loss.detach()) == float(again.detach()) != float(other.detach())
    assert loss.requires_grad
    assert not error.requires_grad


def test_stage_1_is_l1_and_ssim_of_image_and_reconstruction_and_cross_entropy() -> None:
    network, x = scrambled(TINY), torch.from_numpy(random_tiles(TINY, 3) // 2 + 60).float() / 255
    repainted: list[Tensor] = []

    def remember(patches: Tensor, visible: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, scale = type(network.autoencoder).repaint(network.autoencoder, patches, visible, hidden)
        y = y.tanh()  # so that the picture stays one
        repainted.append(y * scale + mean)
        return y, mean, scale

    network.autoencoder.repaint = remember  # type: ignore[method-assign, assignment]
    with torch.no_grad():
        loss, error = network.masking_loss(x, np.random.default_rng(5))
    _, hidden = draw_hidden(64, np.random.default_rng(5))
    picture, wanted = x.clone(), []
    for number, token in enumerate(hidden[0].tolist()):
        y, px = divmod(4 * token, 32)[0] * 4, 4 * token % 32
        wanted.append(x[:, y : y + 4, px : px + 4, 0].flatten(1))
        picture[:, y : y + 4, px : px + 4, 0] = repainted[0][:, 0, number].reshape(-1, 4, 4)
    image = torch.stack(wanted, 1)  # [N, H, P]
    l1 = (repainted[0][:, 0] - image).abs()
    alike = np.mean([ssim(a[..., 0].numpy(), b[..., 0].numpy()) for a, b in zip(x, picture, strict=True)])
    with torch.no_grad():
        of_image, of_repainted = (network.pseudo_label(p - 0.5).log_softmax(-1) for p in (image, repainted[0][:, 0]))
    cross_entropy = -(of_image[..., 0].mean() + of_repainted[..., 1].mean()) / 2
    assert float(loss) == pytest.approx(float(l1.mean() + cross_entropy) + 1 - alike, abs=2e-4)
    np.testing.assert_allclose(error, l1.mean((1, 2)), rtol=1e-4)


def ssim(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    """scikit-image's, with the sides mirrored as they are in the loss."""
    x, y = (np.pad(z.astype(np.float64), 3, mode="reflect") for z in (x, y))
    return float(structural_similarity(x, y, win_size=7, data_range=1, use_sample_covariance=False))


def test_the_autoencoder_plays_against_the_pseudo_labels() -> None:
    network = scrambled(TINY)
    image, repainted = (torch.rand(2, 1, 5, 16, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    repainted.requires_grad_(True)
    network._pseudo_label_loss(image, repainted).backward()
    with_the_stream = [p.grad.clone() for p in network.pseudo_label.parameters() if p.grad is not None]
    against = repainted.grad
    network.zero_grad()
    plain = repainted.detach().requires_grad_(True)
    logits = network.pseudo_label(torch.stack([image, plain]) - 0.5).reshape(2, -1, 2)
    loss = (F.cross_entropy(logits[0], torch.zeros(10).long()) + F.cross_entropy(logits[1], torch.ones(10).long())) / 2
    loss.backward()  # type: ignore[no-untyped-call]
    assert plain.grad is not None
    assert against is not None
    torch.testing.assert_close(against, -ADVERSARIAL * plain.grad)
    for found, expected in zip(with_the_stream, network.pseudo_label.parameters(), strict=True):
        torch.testing.assert_close(found, expected.grad)


def test_focal_loss_is_cross_entropy_that_forgets_what_is_sure() -> None:
    logits = torch.randn(2, 8, 8, 2, generator=torch.Generator().manual_seed(0))
    truth = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3
    each = F.cross_entropy(logits.reshape(-1, 2), truth.reshape(-1).long(), reduction="none")
    torch.testing.assert_close(focal(logits, truth, gamma=0.0), each.mean())
    torch.testing.assert_close(focal(logits, truth), ((1 - (-each).exp()) ** 2 * each).mean())


def test_the_balance_weighs_depths_of_different_widths_place_by_place() -> None:
    torch.manual_seed(0)
    balance = TokenBalance((6, 6, 4), 8)
    tokens = [torch.randn(2, 5, width) for width in (6, 6, 4)]
    entered = torch.stack([enter(t) for enter, t in zip(balance.enter, tokens, strict=True)])
    found = balance(*tokens)
    assert found.shape == (2, 5, 8)
    assert not torch.allclose(found, entered.mean(0), atol=1e-3)
    with torch.no_grad():
        balance.weigh.weight.zero_()
        balance.weigh.bias.zero_()
    torch.testing.assert_close(balance(*tokens), entered.mean(0))
    with torch.no_grad():
        balance.weigh.bias[1] = 50
    torch.testing.assert_close(balance(*tokens), entered[1])


def test_balanced_are_the_first_and_the_last_of_the_encoder_and_the_last_of_the_decoder() -> None:
    network, seen = scrambled(TINY.model_copy(update={"depth": 3})), {}
    net = network.autoencoder
    parts = {"first": net.encoder[0], "last": net.norm, "decoded": net.decoder_norm}
    for name, part in parts.items():
        part.register_forward_hook(lambda module, given, out, name=name: seen.__setitem__(name, out[:, 0]))
    network.balance.register_forward_pre_hook(lambda module, tokens: seen.__setitem__("balanced", tokens))
    answer(network, random_tiles(TINY))
    for name, tokens in zip(parts, seen["balanced"], strict=True):
        torch.testing.assert_close(tokens, seen[name])


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
    assert ours > 0.75
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


def by_onnxruntime(graph: bytes, tiles: Pixels) -> Numbers:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"tiles": tiles})[0])


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_export_says_what_torch_says(kind: str) -> None:
    a = VARIANTS[kind]
    network = scrambled(a)
    graph = to_onnx(network)
    (out,) = static_graph(graph, {}, 5).graph.output
    assert [d.dim_value for d in out.type.tensor_type.shape.dim] == [5, a.tile_px, a.tile_px, a.channels + 1]
    for count in (1, 3):
        tiles = random_tiles(a, count)
        tiles[0, :20, :20] = 255
        wanted = answer(network, tiles)
        assert wanted[..., :-1].std() > 0.05  # answers that do not vary would be equal for no reason
        assert wanted[..., -1].std() > 0.01
        np.testing.assert_allclose(by_onnxruntime(graph, tiles), wanted, atol=1e-4, rtol=0)


def test_a_bundle_serves_picture_and_map(tmp_path: Path) -> None:
    network, kind = scrambled(TINY), ENGINES["mala"]
    manifest = Manifest(
        name="m", architecture=TINY, error_map=kind.error_map, score=kind.score, licence="", files={GRAPH: "0" * 64}
    )
    bundle, tiles = export_bundle(tmp_path / "m", network, manifest), random_tiles(TINY, 3)
    backend = open_backend("openvino")
    backend.load(bundle, "x1", precision="f32", threads=1, batch=2)
    out = np.full(bundle.manifest.answer_shape(tiles.shape), np.nan, np.float32)
    backend.infer(tiles, out)
    np.testing.assert_allclose(out, answer(network, tiles), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def typed() -> dict[str, bytes]:
    graph = to_onnx(scrambled(TINY))
    ranges = observe_ranges(graph, {}, random_tiles(TINY, 4, seed=9))
    return {p: typed_graph(graph, {}, 1, p, ranges if p == "int8" else None) for p in PRECISIONS}


def test_half_precision_says_nearly_the_same(typed: dict[str, bytes]) -> None:
    tiles = random_tiles(TINY, 1)
    apart = np.abs(by_onnxruntime(typed["f16"], tiles) - by_onnxruntime(typed["f32"], tiles))
    assert 0 < apart.mean() < 2e-3
    assert apart.max() < 3e-2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_builds_it(precision: str, typed: dict[str, bytes]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx: pip install 'maskline[rtx]'")
    from engines.backends.tensorrt.api import find_tensorrt
    from engines.backends.tensorrt.build import build_engine

    api = find_tensorrt()
    if api.flavour != "tensorrt_rtx":
        pytest.skip(f"{api.name} is installed as well and comes first; it builds for the GPU of this machine alone")
    assert len(build_engine(api, typed[precision], "sm89")) > 50_000


def test_the_edge_size_is_small() -> None:
    assert sum(p.numel() for p in build(MALA_EDGE).parameters()) < 0.5e6
    assert count_work(build(MALA_EDGE), "x1") < 0.4


def test_crops_are_whole_tiles() -> None:
    assert {MALA_PAPER.crop_px(p) for p in (0.0, 0.5, 1.0)} == {224}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tile_px": 100}, "tile_px 100 is no multiple of patch_px 16"),
        ({"heads": 7}, "a width of 768 must be a multiple of 4 x 7 heads"),
        ({"pool_px": 8}, "pool_px is 8, expected an odd number"),
        ({"pool_px": 241}, "up to the tile's 224"),
        ({"normalise": "local"}, "normalise"),
        ({"decoder": "cross"}, "decoder"),
        ({"channels": 2}, "channels"),
        ({"kind": "mae"}, "kind"),
    ],
)
def test_architectures_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MalaArchitecture.model_validate(wrong)


def test_architectures_survive_a_manifest() -> None:
    for a in (*VARIANTS.values(), MALA_EDGE, MALA_PAPER):
        assert MalaArchitecture.model_validate_json(a.model_dump_json()) == a


@pytest.mark.timeout(2400)
def test_a_real_fabric_is_told_from_its_defects_better_than_by_the_mean_good_image() -> None:
    images, px = real_images("aitex/fabric02"), MALA_EDGE.tile_px
    network = train(trainer(400, MALA_EDGE), images.fit, 400, batch=16)
    mean = (np.mean(images.fit, 0) / 255).astype(np.float32)[..., None]
    ours, trivial = [], []
    for image in (*images.good, *images.bad):
        tiles = image.reshape(256 // px, px, 256 // px, px).swapaxes(1, 2).reshape(-1, px, px, 1)
        ours.append(float(answer(network, tiles)[..., 1].max()))
        trivial.append(float(distance(image[None, ..., None], mean)[0]))
    truth = [0] * len(images.good) + [1] * len(images.bad)
    assert roc_auc_score(truth, ours) > roc_auc_score(truth, trivial)
