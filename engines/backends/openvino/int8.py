"""int8: a bundle's graph quantised by NNCF with images of good parts, once; every start compiles the same graph again.

Products of matrices and convolutions get 8-bit operands, but for the first and the last on their way: the first sees
pixels whose mean was taken off, and its rounding alone makes twenty times the error of all others (docs/openvino.md).
Everything between products stays in float32. Needs the extra `int8` to quantise, and not to serve.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import EngineError, MasklineError, StaleEngineError
from engines.backends import require_network, require_plan
from engines.backends.cache import EngineCache, Stored
from engines.backends.manifest import EngineKey, EngineManifest, Quantised, command
from engines.backends.openvino.compiling import core, import_openvino, network_graph, static_model
from engines.bundle import Bundle
from engines.graphs import MEASURING
from engines.plans import plan_inputs

__all__ = ["build_for", "find_built", "from_bytes", "quantise"]

PRODUCTS = (
    "MatMul",
    "Convolution",
    "ConvolutionBackpropData",
    "GroupConvolution",
    "GroupConvolutionBackpropData",
)
"""Operations, as OpenVINO calls them in a graph."""


def build_for(cache: EngineCache, bundle: Bundle, key: EngineKey, calibration: NDArray[np.uint8]) -> Stored:
    """Quantises the graph that `key` describes with tiles uint8 [N, h, w, C] of good parts, and keeps it.

    Raises BundleError for a bundle or plan that cannot be, EngineError without tiles or when NNCF fails, and
    MasklineError without NNCF.
    """
    network = require_network(bundle, "openvino")
    require_plan(bundle, key.plan)
    if not len(calibration):
        raise EngineError(f"bundle {bundle.path}: no calibration tiles: int8 takes the range of every activation there")
    model = static_model(network_graph(bundle), plan_inputs(network, key.plan), key.tiles)
    try:
        graph = quantise(model, calibration)
    except RuntimeError as error:  # NNCF's errors and OpenVINO's are kinds of it
        raise EngineError(f"bundle {bundle.path}: NNCF cannot quantise plan {key.plan}: {error}") from error
    manifest = EngineManifest(
        key=key,
        bundle=bundle.manifest.name,
        engine_sha256=hashlib.sha256(graph).hexdigest(),
        engine_bytes=len(graph),
        graph_sha256=key.model_sha256,
        built=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        quantised=Quantised(
            by=f"nncf {importlib.metadata.version('nncf')}",
            tiles=len(calibration),
            tiles_sha256=hashlib.sha256(calibration.tobytes()).hexdigest(),
        ),
    )
    return cache.store(manifest, graph)


def find_built(cache: EngineCache, bundle: Bundle, key: EngineKey) -> tuple[Stored, bytes]:
    """The quantised graph of `key`. Raises StaleEngineError, with the command that makes it."""
    try:
        stored = cache.find(key)
        return stored, cache.read(stored)
    except EngineError as error:
        raise StaleEngineError(f"bundle {bundle.path}: {error}; run: {command('build', bundle, key)}") from error


def quantise(model: Any, tiles: NDArray[np.uint8]) -> bytes:
    """An `openvino.Model` with a static shape, quantised with tiles uint8 [N, h, w, C]; read it with `from_bytes`.

    Equal arguments give equal bytes. Attention gets 8-bit operands as well, and its inputs are smoothed
    (SmoothQuant). Raises MasklineError without NNCF.
    """
    nncf = _import_nncf()
    measuring = _number(model)
    batch = model.input(0).shape[0]
    rows = np.resize(np.arange(len(tiles)), (-(-len(tiles) // batch), batch))  # the last batch starts again in front
    transformer = any(op.get_type_name() == "Softmax" for op in model.get_ops())
    with _on_terminals_only(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that NNCF is made from
        quantised = nncf.quantize(
            model,
            nncf.Dataset([tiles[row] for row in rows]),
            subset_size=len(rows),
            target_device=nncf.TargetDevice.CPU,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            ignored_scope=nncf.IgnoredScope(names=_left_alone(model, measuring), validate=False),
        )
    return _to_bytes(quantised)


def from_bytes(data: bytes) -> Any:
    """The `openvino.Model` that `quantise` returned as bytes."""
    length = int.from_bytes(data[:8], "little")
    return core().read_model(data[8 : 8 + length], data[8 + length :])


def _to_bytes(model: Any) -> bytes:
    """OpenVINO's two files in one: length of the XML, XML, weights."""
    _number(model)
    with tempfile.TemporaryDirectory(prefix="maskline-int8-") as folder:
        xml, weights = Path(folder) / "graph.xml", Path(folder) / "graph.bin"
        import_openvino().serialize(model, str(xml), str(weights))
        text = re.sub(rb'<attribute name="fused_names"[^>]*/>', b"", xml.read_bytes())  # names once more
        return len(text).to_bytes(8, "little") + text + weights.read_bytes()


def _number(model: Any) -> set[str]:
    """Gives operations numbers for names, for in the names that OpenVINO makes up it counts on from model to model;
    returns those of the operations that measure (`engines.graphs.MEASURING`)."""
    measuring = set[str]()
    for number, op in enumerate(model.get_ordered_ops()):
        if op.get_friendly_name().startswith(MEASURING):
            measuring.add(str(number))
        op.set_friendly_name(str(number))
    return measuring


def _left_alone(model: Any, measuring: set[str]) -> list[str]:
    """Names of the operations that stay in float32: all but products that are neither the first nor the last on their
    way, those that measure not counted. `engines.lowering.Flow` says the same of ONNX."""
    ops = [(op.get_friendly_name(), op.get_type_name(), _sources(op)) for op in model.get_ordered_ops()]
    products = {name for name, kind, _ in ops if kind in PRODUCTS} - measuring
    fixed, deep, ahead = set[str](), set[str](), set[str]()
    for name, kind, sources in ops:
        if kind in ("Constant", "ShapeOf") or (sources and fixed.issuperset(sources)):
            fixed.add(name)  # the same for every tile, products among them
        elif name in products or not deep.isdisjoint(sources):
            deep.add(name)  # made from a product
    for name, _, sources in reversed(ops):
        if name in ahead or (name in products and not deep.isdisjoint(sources)):
            ahead.update(sources)  # goes into a product of what another one made
    inner = {name for name, _, sources in ops if name in products & ahead and not deep.isdisjoint(sources)}
    return [name for name, _, _ in ops if name not in inner and name not in fixed]


def _sources(op: Any) -> list[str]:
    return [value.get_node().get_friendly_name() for value in op.input_values()]


def _import_nncf() -> Any:
    """NNCF, which sends no usage statistics either (`import_openvino`), and says nothing but errors."""
    import_openvino()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import nncf
    except ImportError as error:
        raise MasklineError(f"int8 with openvino needs {error.name}: pip install 'maskline[int8]'") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextlib.contextmanager
def _on_terminals_only() -> Iterator[None]:
    """NNCF draws its progress on the standard output; here it goes where somebody watches, or nowhere."""
    with contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        yield
