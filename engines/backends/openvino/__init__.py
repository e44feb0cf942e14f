"""OpenVINO on the CPU: the embedded default.

f32 and bf16 are compiled from the bundle when the line starts, and what was compiled is kept for the next start. int8
is built once, with images of good parts (`maskline engine build --backend openvino --precision int8 --good FOLDER`),
and compared with f32; what is served is a graph that passed. See docs/openvino.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import BundleError
from engines.backends import BackendInfo, require_network, require_plan
from engines.backends.cache import EngineCache, Stored, default_folder
from engines.backends.manifest import EngineKey, command
from engines.backends.openvino.compiling import (
    compile_graph,
    compile_kept,
    cores_less_one,
    effective_precision,
    import_openvino,
    instruction_set,
    key_of,
    network_graph,
    require_precision,
    static_model,
)
from engines.backends.openvino.int8 import find_built, from_bytes
from engines.backends.openvino.quarters import Quarters, quarters_of
from engines.backends.verify import require_verified
from engines.bundle import GRAPH, Bundle
from engines.plans import Index, plan_inputs

__all__ = ["OpenVinoBackend", "compile_graph", "instruction_set"]


class OpenVinoBackend:
    """One compiled model and one request, on one thread's behalf; buffers are made once."""

    def __init__(
        self, cache: EngineCache | None = None, compiled: EngineCache | None = None, *, verified_only: bool = True
    ) -> None:
        """cache: of int8 graphs; compiled: of what is kept for the next start."""
        self.cache = cache or EngineCache()
        self._compiled = compiled or EngineCache(default_folder("compiled"))
        self._verified_only = verified_only
        self.stored: Stored | None = None
        self._info: BackendInfo | None = None
        self._request: Any = None
        self._input: npt.NDArray[np.uint8] = np.empty((0, 0, 0, 0), np.uint8)
        self._quarters: Quarters | None = None

    def load(self, bundle: Bundle, plan: str, *, precision: str, threads: int, batch: int) -> None:
        """See `Backend`. Raises StaleEngineError, which says what to do, for an int8 graph that is missing, stale,
        damaged or was never verified, and EngineError for one that was and failed."""
        openvino = import_openvino()
        network = require_network(bundle, "openvino")
        require_plan(bundle, plan)
        require_precision(precision)
        self._quarters = quarters_of(network, plan, precision)
        key = key_of(bundle, plan, precision, 1 if self._quarters else batch)
        make, model_sha256, version = self._model(bundle, key)
        wanted = key.model_copy(update={"model_sha256": model_sha256, "threads": threads or cores_less_one()})
        self._input = np.zeros(key.tiles, np.uint8)
        try:
            compiled = compile_kept(wanted, bundle.manifest.name, make, self._compiled)
        except RuntimeError as error:
            raise BundleError(f"bundle {bundle.path}: OpenVINO cannot run {GRAPH}: {error}") from error
        answer, expected = compiled.output(0).partial_shape, bundle.manifest.answer_shape(self._input.shape)
        if not answer.compatible(openvino.PartialShape(list(expected))):
            raise BundleError(f"bundle {bundle.path}: {GRAPH} answers {answer}, expected {list(expected)}")
        self._request = compiled.create_infer_request()
        self._request.set_tensor(compiled.input("tiles"), openvino.Tensor(self._input, shared_memory=True))
        device = str(compiled.get_property("EXECUTION_DEVICES")[0])
        self._info = BackendInfo("openvino", version, device, effective_precision(compiled), key.target, plan)

    def warm_up(self) -> None:
        """See `Backend`; the second run is the first at full speed."""
        self._input.fill(128)
        for _ in range(2):
            self._request.infer(self._quarters.example if self._quarters else None)

    def infer(self, tiles: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> int | None:
        """See `Backend`; a last, smaller batch is filled up with what lies in the buffer."""
        if self._quarters:
            for tile, answer in zip(tiles, out, strict=True):
                self._quarters.repaint(self._run, tile, answer)
            return None
        batch = len(self._input)
        for start in range(0, len(tiles), batch):
            count = min(batch, len(tiles) - start)
            self._input[:count] = tiles[start : start + count]
            self._request.infer()
            out[start : start + count] = self._request.get_output_tensor().data[:count]
        return None

    @property
    def blocks(self) -> int:
        """See `RepaintsBlocks`."""
        return self._quarters.blocks if self._quarters else 0

    def repaint(self, tiles: npt.NDArray[np.uint8], out: npt.NDArray[np.float32], blocks: Index) -> None:
        """See `RepaintsBlocks`."""
        assert self._quarters is not None
        for tile, answer, chosen in zip(tiles, out, blocks, strict=True):
            self._quarters.repaint(self._run, tile, answer, chosen)

    def _run(self, tiles: npt.NDArray[np.uint8], sets: dict[str, Index]) -> npt.NDArray[np.float32]:
        self._input[:] = tiles
        self._request.infer(sets)
        answer: npt.NDArray[np.float32] = self._request.get_output_tensor().data
        return answer

    def keep_warm(self) -> None:
        """See `Backend`; nothing cools down here."""

    def describe(self) -> BackendInfo:
        """See `Backend`."""
        if self._info is None:
            raise RuntimeError("load the backend first")
        return self._info

    def close(self) -> None:
        """Frees what was compiled; otherwise the end of the process does."""
        self._request = None

    def _model(self, bundle: Bundle, key: EngineKey) -> tuple[Callable[[], Any], str, str]:
        """How to make the model of `key`, the hash that names it, and OpenVINO's version with the hash of an int8
        graph: one that was quantised with other images rounds otherwise, and thresholds with it."""
        self.stored = None
        network = network_graph(bundle)  # its hash is checked here, also where what was kept is served
        if key.precision != "int8":
            sets = plan_inputs(require_network(bundle, "openvino"), key.plan)
            constants, inputs = ({}, self._quarters.example) if self._quarters else (sets, {})
            return lambda: static_model(network, constants, key.tiles, inputs), key.model_sha256, key.version
        self.stored, graph = find_built(self.cache, bundle, key)
        if self._verified_only:
            require_verified(self.stored, command("verify", bundle, key))
        sha256 = self.stored.manifest.engine_sha256
        return lambda: from_bytes(graph), sha256, f"{key.version}, int8 graph {sha256[:16]}"
