"""The autoencoder that predicts maps: its answer, its losses, and that its export says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from export_helpers import assert_tensorrt_builds, by_onnxruntime, in_every_precision
from mala_helpers import TINY, VARIANTS, scrambled
from network_helpers import answer, random_tiles
from skimage.metrics import structural_similarity
from torch import Tensor

from edge.anomaly import error_map
from engines.architecture import MALA_EDGE, MALA_PAPER, MalaArchitecture
from engines.backends import open_backend
from engines.bundle import GRAPH, Manifest
from engines.export import export_bundle, to_onnx
from engines.graphs import static_graph
from engines.mala import ADVERSARIAL, STAGE_2_FROM, TokenBalance, draw_hidden, focal
from engines.networks import build, count_work
from engines.precision import PRECISIONS
from engines.registry import ENGINES

STAGES = {"masking": 0.0, "map": STAGE_2_FROM}


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
    return in_every_precision(scrambled(TINY), random_tiles(TINY, 4, seed=9))


def test_half_precision_says_nearly_the_same(typed: dict[str, bytes]) -> None:
    tiles = random_tiles(TINY, 1)
    apart = np.abs(by_onnxruntime(typed["f16"], tiles) - by_onnxruntime(typed["f32"], tiles))
    assert 0 < apart.mean() < 2e-3
    assert apart.max() < 3e-2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_builds_it(precision: str, typed: dict[str, bytes]) -> None:
    assert_tensorrt_builds(typed[precision])


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
