"""What is counted from an architecture is what torch counts in the network."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from engine_helpers import TINY, VARIANTS

from engines.architecture import (
    ANOVIT_EDGE,
    MALA_EDGE,
    METAL_EDGE,
    RETOUCH,
    SDC_EDGE,
    TEXTURE_S,
    VIT_B,
    Architecture,
    MaeArchitecture,
    RetouchArchitecture,
    SdcArchitecture,
)
from engines.cost import Step, gflop, million_parameters, naive_mae_steps, steps
from engines.mae import MaskedAutoencoder
from engines.networks import build, count_flop, count_work, plan_arguments
from engines.plans import named_plan
from engines.reference import PlainNetwork, masked_copies

SMALL_SDC = SdcArchitecture(
    tile_px=64,
    channels=3,
    width=6,
    levels=2,
    encoder_convolutions=1,
    decoder_convolutions=0,
    dilations=(1, 3),
    branch_width=5,
    stacks=2,
    mix_px=1,
    normalise="local",
    window_px=16,
)
NETWORKS: dict[str, Architecture] = {
    **VARIANTS,
    "odd": TINY.model_copy(update={"tile_px": 42, "channels": 3, "mlp_ratio": 2.5, "depth": 3}),
    "texture-s": TEXTURE_S,
    "vit": VIT_B.model_copy(update={"depth": 2, "decoder_depth": 2}),
    "sdc": SDC_EDGE,
    "small sdc": SMALL_SDC,
    "metal": METAL_EDGE,
    "literal metal": METAL_EDGE.model_copy(update={"attention": "literal", "depth": 1, "channels": 3}),
    "metal without stripes": METAL_EDGE.model_copy(update={"stripes": "none", "patch_px": 16}),
    "anovit": ANOVIT_EDGE,
    "retouch": RETOUCH,
    "small retouch": RetouchArchitecture(
        channels=3, pixels=TINY.model_copy(update={"tile_px": 32, "patch_px": 4}), sigmas_px=(1.0, 2.5), context=3
    ),
    "retouch without features": RetouchArchitecture(pixels=TINY, features="none"),
    "mala": MALA_EDGE,
    "mala as published": MALA_EDGE.model_copy(update={"positions": "sine", "normalise": "fixed", "channels": 3}),
}


def flop(counted: list[Step]) -> int:
    return sum(step.flop for step in counted)


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_to_what_torch_counts_under_every_plan(name: str) -> None:
    network = build(NETWORKS[name])
    for plan in NETWORKS[name].plans:
        counted = steps(NETWORKS[name], plan)
        assert flop(counted) / 1e9 == pytest.approx(count_work(network, plan), rel=1e-12), plan
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        assert million_parameters(counted) == pytest.approx(parameters, rel=1e-12), plan


@pytest.mark.parametrize("name", ["cross", "near", "self", "he", "sine", "odd"])
def test_the_naive_way_is_what_torch_counts_with_masked_copies(name: str) -> None:
    a = NETWORKS[name]
    assert isinstance(a, MaeArchitecture)
    model = MaskedAutoencoder(a).eval().requires_grad_(False)
    for plan in a.plans:
        copies = masked_copies(torch.zeros(a.tile_px, a.tile_px, a.channels, dtype=torch.uint8), named_plan(plan, a), 6)
        visible = plan_arguments(a, plan)[0]
        expected = count_flop(lambda c=copies, v=visible: PlainNetwork(model)(c, v))  # type: ignore[misc]
        assert flop(naive_mae_steps(a, plan)) == expected, plan


def test_attention_is_counted() -> None:
    q = torch.zeros(2, 3, 5, 8)  # [batch, heads, queries, width]
    k = torch.zeros(2, 3, 7, 8)
    counted = count_flop(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k))
    assert counted == 2 * (2 * 3 * 5 * 7 * 8) * 2  # queries times keys, weights times values


def test_patches_are_embedded_once_for_all_variants() -> None:
    for plan in TEXTURE_S.plans:
        (embed,) = (step for step in steps(TEXTURE_S, plan) if step.name == "embed")
        assert embed.flop == 2 * 256 * 196 * 192


def test_what_backends_fold_counts_as_parameters_and_not_as_work() -> None:
    counted = steps(TEXTURE_S, "x1")
    folded = [step for step in counted if step.folded]
    assert {step.name.split(".")[-1] for step in folded} == {"positions"}
    assert gflop(counted) == pytest.approx((flop(counted) - flop(folded)) / 1e9)
    assert all(step.weights for step in folded)


def test_a_plan_that_the_network_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="x16"):
        steps(SDC_EDGE, "x16")
    with pytest.raises(ValueError, match="x7"):
        steps(TEXTURE_S, "x7")


def test_counting_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import engines.roofline as r; assert 'vit-h' in r.tables()[1]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
