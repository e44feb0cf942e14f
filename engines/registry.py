"""The engines that `maskline fit` can make: one entry each, with what its paper says and what it starts from.

Needs no torch; the networks themselves are in a file each, and `engines.networks` builds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from engines.architecture import (
    ANOVIT_EDGE,
    ANOVIT_PAPER,
    MALA_EDGE,
    MALA_PAPER,
    METAL_EDGE,
    METAL_PAPER,
    METAL_PAPER_PRODUCT,
    RETOUCH,
    SDC_EDGE,
    SDC_PAPER,
    TEXTURE_S,
    VIT_B,
    VIT_H,
    VIT_L,
    Architecture,
)
from engines.bundle import DirectMap, ErrorMap, Score, SmoothedMap, SsimL1Map

__all__ = ["ENGINES", "YOURS", "EngineKind", "Fitting"]

YOURS = "yours: the weights come from your images alone"


class Fitting(BaseModel):
    """How a network is fitted; a run that is resumed must choose the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    steps: int = Field(default=600, ge=0)
    batch: int = Field(default=8, ge=1, le=4096, description="tiles per step, or as many pixels of smaller crops")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="of the plateau between warm-up and decay")
    seed: int = Field(default=0, ge=0, description="of the weights and the crops")
    every: int = Field(default=50, ge=1, description="steps between checkpoints")
    average: float = Field(
        default=0.98, ge=0, lt=1, description="decay of the moving average of the weights, which is what is kept"
    )


@dataclass(frozen=True)
class EngineKind:
    """One kind of detector."""

    paper: str
    sizes: Mapping[str, Architecture]
    """By name; the first is what is taken when none is named."""
    error_map: ErrorMap
    score: Score
    fitting: Fitting
    tuning: Fitting | None = None
    """Where it starts from weights that others have published; None: it cannot."""
    base: str | None = None
    """The bundle that fitting starts from; None: from fresh weights."""
    licence: str = YOURS
    """Of the weights."""
    published: tuple[str, ...] = ()
    """Sizes whose weights others have published, for `maskline engine import`; to fit them from fresh ones takes GPUs
    and days."""


ENGINES: Mapping[str, EngineKind] = {
    "retouch": EngineKind(
        paper="none: our own; see engines/retouch.py",
        sizes={"edge": RETOUCH},
        error_map=DirectMap(largest=10.0),
        score=Score(kind="max"),
        fitting=Fitting(steps=150),
        base="texture-s",
        licence="yours, from texture-s and EfficientNet-Lite0, which are Apache-2.0",
    ),
    "mae": EngineKind(
        paper="Dini & Rahtu, Detecting Anomalies in Textured Images Using Modified Transformer Masked Autoencoder",
        sizes={"edge": TEXTURE_S, "vit-b": VIT_B, "vit-l": VIT_L, "vit-h": VIT_H},
        error_map=SsimL1Map(ssim_window=11, ssim_weight=0.3, opening_px=2),
        score=Score(kind="area", map_quantile=0.97),
        fitting=Fitting(),
        base="texture-s",
        licence="yours, from texture-s, which is Apache-2.0; Meta's published checkpoints: CC-BY-NC 4.0, not for "
        "commercial use",
        published=("vit-b", "vit-l", "vit-h"),
    ),
    "sdc": EngineKind(
        paper="Bauer, Self-Supervised Training with Autoencoders for Visual Anomaly Detection",
        sizes={"edge": SDC_EDGE, "paper": SDC_PAPER},
        error_map=SmoothedMap(norm="l2", sigma_px=2.0),
        score=Score(kind="max"),
        fitting=Fitting(steps=800, batch=3, learning_rate=2e-3),
    ),
    "metal": EngineKind(
        paper="De Nardin et al., Masked Transformer for image Anomaly Localization",
        sizes={"edge": METAL_EDGE, "paper": METAL_PAPER, "paper-product": METAL_PAPER_PRODUCT},
        error_map=SmoothedMap(norm="l2", sigma_px=2.0),
        score=Score(kind="max"),
        fitting=Fitting(steps=800, batch=16, learning_rate=2e-3),
    ),
    "anovit": EngineKind(
        paper="Lee & Kang, AnoViT: Unsupervised Anomaly Detection and Localization with Vision Transformer-based "
        "Encoder-Decoder",
        sizes={"edge": ANOVIT_EDGE, "paper": ANOVIT_PAPER},
        error_map=SmoothedMap(norm="l2", sigma_px=2.0),
        score=Score(kind="max"),
        fitting=Fitting(steps=800, learning_rate=2e-3),
        tuning=Fitting(steps=800, learning_rate=1e-4),  # not tried: no such weights were at hand
    ),
    "mala": EngineKind(
        paper="Chen et al., A Novel MAE-Based Self-Supervised Anomaly Detection and Localization Method",
        sizes={"edge": MALA_EDGE, "paper": MALA_PAPER},
        error_map=DirectMap(),
        score=Score(kind="max"),
        fitting=Fitting(steps=1200, batch=16, learning_rate=6e-3),
    ),
}
"""By the name that `maskline fit --engine` takes."""
