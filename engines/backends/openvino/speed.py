"""How fast a precision is here, against float32."""

from __future__ import annotations

import statistics
import time

import numpy as np
from numpy.typing import NDArray

from engines.backends.openvino import OpenVinoBackend
from engines.bundle import Bundle

__all__ = ["speedup"]

MOST_TILES = 24


def speedup(bundle: Bundle, plan: str, precision: str, batch: int, tiles: NDArray[np.uint8]) -> float:
    """Median of how many times as long float32 takes, tile by tile, with as many threads as a line has.

    Both take turns, so that whatever else runs here slows both down.
    """
    backends = [OpenVinoBackend(), OpenVinoBackend(verified_only=False)]
    for backend, wanted in zip(backends, ("f32", precision), strict=True):
        backend.load(bundle, plan, precision=wanted, threads=0, batch=batch)
        backend.warm_up()
    chosen = tiles[:MOST_TILES]
    answer = np.empty(bundle.manifest.answer_shape((1, *chosen.shape[1:])), np.float32)
    ratios = []
    for tile in chosen:
        plain, wanted_s = (_seconds(backend, tile[None], answer) for backend in backends)
        ratios.append(plain / wanted_s)
    return statistics.median(ratios)


def _seconds(backend: OpenVinoBackend, tile: NDArray[np.uint8], answer: NDArray[np.float32]) -> float:
    began = time.perf_counter()
    backend.infer(tile, answer)
    return time.perf_counter() - began
