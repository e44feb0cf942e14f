"""Costs on paper: no device is faster than its peaks, and the documents say what is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.architecture import TEXTURE_S, VIT_B
from engines.cost import Step, gflop, steps
from engines.roofline import DEVICES, MEMORY, PRODUCTS, Device, milliseconds, tables

DOCS = Path(__file__).parent.parent.parent / "docs" / "performance.md"
DEVICE = Device("some", tflops=1, gb_per_s=100, launch_us=10, source="here")
PRODUCT = Step("product", flop=10**9, weights=1000, moved=1000)
"""1 ms of products, 40 ns of memory."""
COPY = Step("copy", flop=0, weights=0, moved=10**7)
"""0.2 ms of memory."""


def test_the_longer_of_products_and_memory_counts_step_by_step() -> None:
    assert milliseconds([PRODUCT, COPY], DEVICE, ideal=True) == pytest.approx(1 + 0.2)
    assert milliseconds([PRODUCT, COPY], DEVICE) == pytest.approx(1 / PRODUCTS + 0.2 / MEMORY)


def test_small_steps_wait_for_their_launch_and_folded_ones_cost_nothing() -> None:
    small, folded = Step("small", 1, 1, 1), Step("folded", 10**9, 1, 1, folded=True)
    assert milliseconds([small, small, folded], DEVICE) == pytest.approx(0.02)
    assert milliseconds([small, small, folded], DEVICE, ideal=True) < 1e-6


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_nothing_is_faster_than_the_peak_and_fewer_variants_are(device: Device) -> None:
    for a in (TEXTURE_S, VIT_B):
        ideal = [milliseconds(steps(a, plan), device, ideal=True) for plan in a.plans]
        expected = [milliseconds(steps(a, plan), device) for plan in a.plans]
        assert all(gflop(steps(a, p)) / device.tflops <= ms for p, ms in zip(a.plans, ideal, strict=True))
        assert all(fast <= slow for fast, slow in zip(ideal, expected, strict=True))
        assert ideal == sorted(ideal, reverse=True)


def test_the_tables_in_the_documents_are_those_that_are_computed() -> None:
    written = DOCS.read_text(encoding="utf-8")
    for table in tables():
        assert table in written, "put in docs/performance.md what `maskline engines --paper` prints"
