"""What benches report follows from what they saw; nothing here is timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calib.inspection import Inspection
from edge.bench.cascade import Judged, figures, run
from edge.bench.engine import BUDGETS, MATRIX, speed, work
from edge.bench.photographs import photographs
from edge.errors import MasklineError
from engines.architecture import TEXTURE_S, VIT_B


def part(exact: bool, cascade: bool, bad: bool = False) -> Judged:
    a_map = np.zeros((1, 1), np.float32)
    return Judged(bad, Inspection(0.0, exact, a_map, 300.0), Inspection(0.0, cascade, a_map, 75.0))


def test_a_cascade_agrees_where_both_plans_decide_the_same() -> None:
    judged = [part(True, True), part(True, False), part(False, False, bad=True), part(False, False, bad=True)]
    found = figures(judged)
    assert found["cascade.parts"] == 4
    assert found["cascade.agreement_with_x1"] == 0.75
    assert found["cascade.agreement_on_good"] == 0.5
    assert found["cascade.agreement_on_bad"] == 1
    assert found["cascade.agreement_at_least"] < 0.75
    assert found["cascade.cost_vs_x1"] == 0.25


def test_a_folder_without_categories_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKLINE_TEST_DATA", str(tmp_path))
    with pytest.raises(MasklineError, match=rf"MASKLINE_TEST_DATA={tmp_path}: no GROUP/CATEGORY/train/good"):
        run()


def test_work_is_reported_for_every_plan_naive_and_ours() -> None:
    found = work({"engine": TEXTURE_S, "engine.vit_b": VIT_B})
    for name in ("engine", "engine.vit_b"):
        for where in (name, f"{name}.plan.x4", f"{name}.plan.x16", f"{name}.plan.x32"):
            assert 0 < found[f"{where}.gflop_ours"] < found[f"{where}.gflop_naive"]
        assert 0.1 < found[f"{name}.decoder_share"] < 0.3
    assert found["engine.gflop_naive"] / found["engine.gflop_ours"] == pytest.approx(3.6, abs=0.1)
    assert found["engine.vit_b.gflop_naive"] / found["engine.vit_b.gflop_ours"] == pytest.approx(1.03, abs=0.01)


def test_each_precision_is_held_against_products_of_its_own_kind() -> None:
    calls = ("naive", "plain", "whole", "x1", "x4", "x16", "x32", "matmul")
    seconds = dict(zip(calls, ([6.0] * 5, [4.0] * 5, [8.0] * 5, *[[2.0] * 5] * 4, [1.0, 0.5, 1.0]), strict=True))
    product = 2 * MATRIX**3 / 1e9
    plain = speed(seconds, gflop_of_x1=product)
    assert plain["engine.speedup_fp32"] == 3
    assert plain["engine.share_of_matmul_peak"] == pytest.approx(0.25)
    assert not [key for key in plain if "bf16" in key]
    found = speed(seconds | {"bf16": [1.0] * 5, "matmul_bf16": [0.1, 0.2]}, gflop_of_x1=product)
    assert found.items() > plain.items()
    assert found["engine.speedup_bf16"] == 6
    assert found["engine.matmul_bf16_gflop_per_s"] == pytest.approx(10 * product)
    assert found["engine.share_of_matmul_peak_bf16"] == pytest.approx(0.1)
    assert {key for key in BUDGETS if "bf16" in key} == {"engine.speedup_bf16", "engine.share_of_matmul_peak_bf16"}
    broken = {key for key, value in found.items() if key in BUDGETS and not BUDGETS[key].holds(value)}
    assert broken == {"engine.share_of_matmul_peak_bf16"}


def test_photographs_are_always_the_same_and_defects_change_little_of_them() -> None:
    good, bad = photographs(64, 4, 3)
    assert (good.shape, bad.shape) == ((4, 64, 64, 1), (3, 64, 64, 1))
    np.testing.assert_array_equal(bad, photographs(64, 4, 3)[1])
    before = photographs(64, 5, 1)[0][4]  # the same crop, still a good one
    assert 0 < (bad[0] != before).mean() < 0.5
