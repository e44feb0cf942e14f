"""From a bundle to an engine. Needs no GPU with `tensorrt_rtx`, and the GPU that it is for with `tensorrt`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import BundleError, EngineError
from engines.backends import require_network, require_plan
from engines.backends.cache import EngineCache, Stored
from engines.backends.manifest import EngineKey, EngineManifest
from engines.backends.tensorrt.api import Api
from engines.bundle import Bundle
from engines.graphs import GraphError, network_graph
from engines.plans import plan_inputs
from engines.precision import observe_ranges, typed_graph

__all__ = ["build_engine", "build_for", "what_fails"]


def build_engine(api: Api, graph: bytes, target: str | None = None, beside: Path | None = None) -> bytes:
    """Compiles a typed ONNX graph (`engines.precision.typed_graph`) and returns the serialised engine.

    target: a GPU by its compute capability, "sm86"; None: the one in this machine. beside: the bundle's graph, beside
    which the weights lie, where they are not inside. Precision stands in the graph, so the one flag that is touched is
    TF32, which would quietly round what the graph says is float32. Equal graphs give equal bytes with `tensorrt_rtx`;
    `tensorrt` times its kernels while it builds and may choose others the next time. Raises EngineError with TensorRT's
    own words.
    """
    trt = api.trt
    api.said()
    builder = trt.Builder(api.log)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only kind there is one day
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, api.log)
    if not (parser.parse(graph, str(beside)) if beside else parser.parse(graph)):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise EngineError(f"{api.name} cannot read the graph: {'; '.join(errors) or api.said()}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.max_aux_streams = 0  # one stream, one order
    if api.rtx:
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(_capability(api, target), 0):
            raise EngineError(f"{api.name} does not build for {target or 'this GPU'}: {api.said()}")
    elif target is not None:
        raise EngineError(f"target {target!r}: {api.name} builds only for the GPU in this machine; leave --target out")
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(f"{api.name} cannot build for {target or 'this GPU'}: {api.said()}")
    return bytes(engine)


def _capability(api: Api, target: str | None) -> Any:
    if target is None:
        return api.trt.ComputeCapability.CURRENT
    if target not in api.targets:
        raise EngineError(f"target {target!r}: {api.name} builds for {', '.join(api.targets)}")
    return getattr(api.trt.ComputeCapability, target.upper())


@contextmanager
def what_fails(bundle: Bundle, plan: str, precision: str) -> Iterator[None]:
    """Says of which bundle, plan and precision it was that a graph cannot be typed: BundleError or EngineError."""
    try:
        yield
    except GraphError as error:
        raise BundleError(f"bundle {bundle.path}: {error}; export or import it again") from error
    except ValueError as error:
        raise EngineError(f"bundle {bundle.path}: {precision} of plan {plan}: {error}") from error


def build_for(
    api: Api, cache: EngineCache, bundle: Bundle, key: EngineKey, calibration: NDArray[np.uint8] | None = None
) -> Stored:
    """Types a bundle's graph, builds the engine that `key` describes and keeps it.

    calibration: tiles uint8 [N, h, w, C] of good parts, for "int8"; without them the ranges of an earlier "int8" engine
    of the same network are taken. Raises EngineError or BundleError.
    """
    network = require_network(bundle, "tensorrt")
    require_plan(bundle, key.plan)
    constants, graph = plan_inputs(network, key.plan), network_graph(bundle)
    with what_fails(bundle, key.plan, key.precision):
        ranges = cache.ranges(key) if key.precision == "int8" and calibration is None else None
        if key.precision == "int8" and ranges is None:
            none = np.empty((0, *key.tiles[1:]), np.uint8)
            ranges = observe_ranges(graph, constants, none if calibration is None else calibration)
        beside = graph if isinstance(graph, Path) and key.precision == "f32" else None
        typed = typed_graph(graph, constants, key.tiles[0], key.precision, ranges, in_place=beside is not None)
    engine = build_engine(api, typed, key.target if api.rtx else None, beside)
    manifest = EngineManifest(
        key=key,
        bundle=bundle.manifest.name,
        engine_sha256=hashlib.sha256(engine).hexdigest(),
        engine_bytes=len(engine),
        graph_sha256=hashlib.sha256(typed).hexdigest(),
        built=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        ranges=ranges,
    )
    return cache.store(manifest, engine)
