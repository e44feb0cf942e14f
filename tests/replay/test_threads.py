"""How many threads an engine has changes its speed and nothing else: a fleet's replays get one each."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.recording import RecordedFrame, Recording
from engines.backends.cache import EngineCache
from engines.backends.openvino import OpenVinoBackend
from engines.backends.verify import answers
from engines.bundle import Bundle, find_bundle, load_bundle
from tests.replay.make import RECORDING

CORES = len(os.sched_getaffinity(0))
THREADS = sorted({min(threads, CORES) for threads in (1, 2, 4)})
"""OpenVINO takes no more than there are cores."""


@pytest.fixture(scope="module")
def tiles() -> NDArray[np.uint8]:
    """uint8 [3, 224, 224, 1]: a batch of two, and one that is not full."""
    frames = [e.decode() for e in Recording(RECORDING).events("near") if isinstance(e, RecordedFrame)]
    return np.stack(frames[:3])


@pytest.mark.skipif(len(THREADS) == 1, reason="one core: an engine has one thread, whatever it is given")
@pytest.mark.parametrize("plan", ["x1", "x16"])
def test_the_shipped_network_answers_to_the_bit_on_any_number_of_threads(
    plan: str, tiles: NDArray[np.uint8], tmp_path: Path
) -> None:
    bundle = load_bundle(find_bundle("texture-s"))
    tile_by_tile = _answers(bundle, plan, tiles, 1, 1, tmp_path)
    for threads in THREADS:
        in_batches = _answers(bundle, plan, tiles, threads, 2, tmp_path)
        np.testing.assert_array_equal(in_batches, tile_by_tile, err_msg=f"{threads} threads", strict=True)


def _answers(
    bundle: Bundle, plan: str, tiles: NDArray[np.uint8], threads: int, batch: int, kept: Path
) -> NDArray[np.float32]:
    backend = OpenVinoBackend(compiled=EngineCache(kept))
    backend.load(bundle, plan, precision="f32", threads=threads, batch=batch)
    assert backend._request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == threads
    return answers(backend, bundle.manifest, tiles)
