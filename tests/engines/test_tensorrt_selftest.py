"""The selftest says what holds on a box, and does not say it of one where it does not hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_helpers import TINY, scrambled
from fake_gpu import FakeGpu

import engines.backends.tensorrt.selftest as checked
from edge.errors import EngineError
from edge.samples import samples
from engines.backends import open_backend
from engines.backends.manifest import EngineManifest
from engines.backends.tensorrt.selftest import STEPS, Box, selftest
from engines.backends.verify import answers
from engines.bundle import Bundle, Manifest
from engines.export import export_bundle

SMALL = TINY.model_copy(update={"depth": 1, "decoder_depth": 1})
Compute = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx: pip install 'maskline[rtx]'")
    manifest = Manifest(name="tiny", architecture=SMALL, licence="none", files={"network.onnx": "0" * 64})
    return export_bundle(tmp_path_factory.mktemp("bundle") / "tiny", scrambled(SMALL), manifest)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "INFERENCES", 3)
    monkeypatch.setattr(checked, "IDLE_S", 0.01)


def a_box(
    bundle: Bundle, folder: Path, kind: type[FakeGpu] = FakeGpu, spoil: Callable[[Compute], Compute] = lambda f: f
) -> Box:
    """A box whose device gives the CPU's answers, `spoil`ed."""
    by_plan: dict[str, Compute] = {}

    def understand(engine: bytes) -> tuple[tuple[int, ...], Compute]:
        path = next(p for p in folder.glob("*/*.engine") if p.read_bytes() == engine)
        key = EngineManifest.model_validate_json(path.with_name("manifest.json").read_bytes()).key
        if key.plan not in by_plan:
            cpu = open_backend("openvino")
            cpu.load(bundle, key.plan, precision="f32", threads=1, batch=1)
            by_plan[key.plan] = lambda tiles: answers(cpu, bundle.manifest, tiles)
        return key.tiles, spoil(by_plan[key.plan])

    return Box(bundle, samples(bundle.manifest, None, 6), folder, lambda api: kind(understand=understand))


def run(box: Box) -> dict[str, str]:
    said: dict[str, str] = {}
    selftest(box, said.__setitem__)
    return said


def test_on_a_box_where_all_holds_every_step_says_what_it_proved(bundle: Bundle, tmp_path: Path) -> None:
    said = run(a_box(bundle, tmp_path))
    assert list(said) == ["TensorRT", *STEPS]
    assert said["GPU"] == "Fake GPU, sm86, CUDA 13.0, 8192 MiB"
    assert said["answers as the CPU"].count("100%") == 4
    assert "twice the same" in said["builds without a GPU"]


def wrong(compute: Compute) -> Compute:
    return lambda tiles: compute(tiles) * np.float32(0.9)


def changing(compute: Compute) -> Compute:
    rng = np.random.default_rng(0)
    return lambda tiles: compute(tiles) + rng.uniform(-1e-5, 1e-5, tiles.shape).astype(np.float32)


def leaning(compute: Compute) -> Compute:
    return lambda tiles: compute(tiles) + np.float32(1e-6) * np.roll(tiles, 1, axis=0)


class Leaks(FakeGpu):
    left_mib = 1000.0

    def copy_in(self, address: int, source: np.ndarray) -> None:
        Leaks.left_mib -= 1
        super().copy_in(address, source)

    def free_mib(self) -> float:
        return Leaks.left_mib


def test_answers_that_are_wrong_end_it_and_it_says_what_was_not_tried(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"answers as the CPU: x16 f32 .*too far from the CPU.*not tried: repeats"):
        run(a_box(bundle, tmp_path, spoil=wrong))


@pytest.mark.parametrize(
    ("step", "kind", "spoil", "message"),
    [
        ("repeats to the bit", FakeGpu, changing, "answers change: again False"),
        ("fills up batches", FakeGpu, leaning, "answers change: again True, in another order False"),
        ("allocates nothing", Leaks, lambda f: f, r"\d+ MiB of the device are gone"),
    ],
    ids=["changing", "leaning", "leaking"],
)
def test_a_step_fails_where_it_does_not_hold(
    bundle: Bundle,
    tmp_path: Path,
    step: str,
    kind: type[FakeGpu],
    spoil: Callable[[Compute], Compute],
    message: str,
) -> None:
    box = a_box(bundle, tmp_path, kind, spoil)
    box.build("f16")
    with pytest.raises(EngineError, match=message):
        STEPS[step](box)
