"""The engines that `maskline fit` can make: one entry each, with what its paper says and what it starts from.

Needs no torch; the networks themselves are in a file each, and `engines.networks` builds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.architecture import SDC_EDGE, SDC_PAPER, TEXTURE_S, Architecture
from engines.bundle import ErrorMap, Score, SmoothedMap, SsimL1Map

__all__ = ["ENGINES", "EngineKind", "Fitting"]


@dataclass(frozen=True)
class Fitting:
    """What can be chosen; a run that is resumed must choose the same."""

    steps: int = 600
    batch: int = 8
    learning_rate: float = 1e-3
    seed: int = 0
    every: int = 50
    """Steps between checkpoints."""
    average: float = 0.98
    """Of the moving average of the weights, which is what is kept."""


@dataclass(frozen=True)
class EngineKind:
    """One kind of detector."""

    paper: str
    sizes: Mapping[str, Architecture]
    """By name; the first is what is taken when none is named."""
    error_map: ErrorMap
    score: Score
    fitting: Fitting
    base: str | None = None
    """The bundle that fitting starts from; None: from fresh weights."""


ENGINES: Mapping[str, EngineKind] = {
    "mae": EngineKind(
        paper="Dini & Rahtu, Detecting Anomalies in Textured Images Using Modified Transformer Masked Autoencoder",
        sizes={"edge": TEXTURE_S},
        error_map=SsimL1Map(ssim_window=11, ssim_weight=0.3, opening_px=2),
        score=Score(kind="area", map_quantile=0.99),
        fitting=Fitting(),
        base="texture-s",
    ),
    "sdc": EngineKind(
        paper="Bauer, Self-Supervised Training with Autoencoders for Visual Anomaly Detection",
        sizes={"edge": SDC_EDGE, "paper": SDC_PAPER},
        error_map=SmoothedMap(norm="l2", sigma_px=2.0),
        score=Score(kind="max"),
        fitting=Fitting(steps=800, batch=3, learning_rate=2e-3),
    ),
}
"""By the name that `maskline fit --engine` takes."""
