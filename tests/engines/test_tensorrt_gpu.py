"""On a GPU: what `maskline engine selftest` proves, a test a step. Skipped, with the reason, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import EngineError
from edge.samples import samples
from engines.backends.tensorrt.api import find_tensorrt
from engines.backends.tensorrt.device import CudaGpu
from engines.backends.tensorrt.selftest import STEPS, Box
from engines.bundle import ZOO, load_bundle

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    try:
        CudaGpu(find_tensorrt()).close()
    except EngineError as error:
        pytest.skip(f"needs a GPU: {error}")
    bundle = load_bundle(ZOO / "texture-s")
    folder: Path = tmp_path_factory.mktemp("engines")
    return Box(bundle, samples(bundle.manifest, None, 24), folder)


@pytest.mark.parametrize("step", STEPS)
def test_the_selftest_holds_here(box: Box, step: str) -> None:
    assert STEPS[step](box)
