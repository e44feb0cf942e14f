"""`maskline engines`: everything in the table is listed, counted, and timed where that takes seconds."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from engine_helpers import TINY

import engines.listing
from edge.errors import MasklineError
from engines.architecture import RETOUCH, SDC_EDGE, VIT_H, Architecture
from engines.bundle import Score, SmoothedMap
from engines.fit import from_scratch
from engines.listing import LARGEST_GFLOP, Row, counted, figures, measured, remarks
from engines.registry import ENGINES, EngineKind, Fitting


def kind(**sizes: Architecture) -> EngineKind:
    return EngineKind("a paper", sizes, SmoothedMap(), Score(), Fitting(), licence="a licence", published=("huge",))


def test_every_size_of_every_engine_is_listed_with_every_plan() -> None:
    rows = counted()
    expected = [(name, s, p) for name, k in ENGINES.items() for s, a in k.sizes.items() for p in a.plans]
    assert [(row.engine, row.size, row.plan) for row in rows] == expected
    for row in rows:
        assert row.note or (row.gflop and row.million_parameters), row
    assert not any(row.note for row in rows if row.engine in ("mae", "sdc", "metal", "anovit", "mala"))
    told = "\n".join(remarks(rows))
    assert all(k.paper in told and k.licence in told for k in ENGINES.values())
    assert "CC-BY-NC" in told
    assert "vit-b, vit-l, vit-h" in told


def test_a_network_that_cannot_be_counted_without_torch_is_counted_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.listing, "ENGINES", {"new": kind(edge=TINY)})
    exact = counted()

    def unknown(architecture: Architecture, plan: str) -> None:
        raise NotImplementedError(architecture.kind)

    monkeypatch.setattr(engines.listing, "steps", unknown)
    for row, with_torch in zip(exact, counted(), strict=True):
        assert with_torch.million_parameters == pytest.approx(row.million_parameters)
        assert row.gflop is not None
        assert with_torch.gflop == pytest.approx(row.gflop, rel=0.1)  # backends fold a tenth of so small a network
    monkeypatch.setitem(sys.modules, "engines.networks", None)
    for row in counted():
        assert row.gflop is None
        assert "pip install 'maskline[train]'" in row.note


def test_what_takes_seconds_is_timed_and_the_rest_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.listing, "ENGINES", {"mae": kind(edge=TINY), "sdc": kind(edge=SDC_EDGE, huge=VIT_H)})
    monkeypatch.setattr("engines.fit.ENGINES", engines.listing.ENGINES)
    monkeypatch.setattr("engines.settings.ENGINES", engines.listing.ENGINES)
    rows = [row for row in counted() if (row.engine, row.size) != ("sdc", "edge")]
    found = measured(rows)
    assert len(found) == len(rows)
    for row in found:
        assert row.gflop is not None
        assert (row.ms is not None) == (row.gflop <= LARGEST_GFLOP)
        assert row.ms is not None or "200 GFLOP" in row.note
    assert "  huge x1, huge x4, huge x16, huge x32: not timed: over 200 GFLOP" in remarks(found)
    named = figures(found)
    assert named["engines.mae.edge.x16.ms_per_tile"] > 0
    assert named["engines.sdc.huge.x1.gflop"] == pytest.approx(21_871, rel=1e-3)
    assert "engines.sdc.huge.x1.ms_per_tile" not in named


def test_an_engine_that_learns_what_is_usual_from_good_parts_is_timed_without_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = RETOUCH.pixels.model_copy(update={"tile_px": 112})  # weights of texture-s have no size of tiles
    small = replace(ENGINES["retouch"], sizes={"edge": RETOUCH.model_copy(update={"pixels": pixels})})
    monkeypatch.setattr(engines.listing, "ENGINES", {"retouch": small})
    monkeypatch.setattr("engines.fit.ENGINES", {**ENGINES, "retouch": small})
    monkeypatch.setattr("engines.settings.ENGINES", engines.listing.ENGINES)
    (found,) = measured([row for row in counted() if row.plan == "x32"])
    assert not found.note
    assert found.ms is not None
    assert found.ms > 0


def test_timing_without_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "engines.fit", None)
    with pytest.raises(MasklineError, match=r"maskline\[train\]"):
        measured([Row("mae", "edge", TINY, "x1", gflop=0.1)])


def test_published_sizes_can_be_fitted_from_fresh_weights_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.fit.build", lambda architecture: architecture)
    for size in ENGINES["mae"].published:
        assert from_scratch("mae", size=size, channels=3).manifest.architecture == ENGINES["mae"].sizes[size]
    with pytest.raises(MasklineError, match=r"channels = 3 \(fit: --colour\)"):
        from_scratch("mae", size="vit-b")
