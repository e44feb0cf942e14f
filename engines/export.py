"""From weights to a bundle: one ONNX file for every mask plan, the weights as safetensors beside it. Needs torch."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save

from edge.errors import BundleError
from engines.bundle import GRAPH, WEIGHTS, Bundle, Manifest, MarkerArchitecture, NullArchitecture, write_bundle
from engines.networks import Network, build, plan_arguments, ready_to_serve
from engines.plans import plan_inputs

__all__ = ["OPSET", "export_bundle", "load_model", "to_onnx"]

OPSET = 17
"""The first with LayerNormalization as one operator, which half precision needs."""
LARGEST_INSIDE_BYTES = 1_900_000_000
"""An ONNX file ends at 2 GiB. More weights than this stay in the safetensors file, and the graph says where in it."""


def to_onnx(model: Network, *, weights_inside: bool = True) -> bytes:
    """The whole graph, from uint8 tiles to repainted float32 tiles, with the mask plan, if any, as three int32 inputs.

    tiles [N, h, w, C], visible [V, K], hidden [V, H], place [T]; N, V, K and H are free. Without its weights inside the
    graph takes them as inputs too, named as in the state dict with "model." before.
    """
    a = model.architecture
    tiles = torch.zeros(2, a.tile_px, a.tile_px, a.channels, dtype=torch.uint8)
    plan = {name: torch.from_numpy(values) for name, values in plan_inputs(a, a.plans[-1]).items()}
    free = {"tiles": {0: "N"}, "visible": {0: "V", 1: "K"}, "hidden": {0: "V", 1: "H"}, "repainted": {0: "N"}}
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The older exporter writes smaller graphs that OpenVINO and TensorRT fuse better; it is deprecated, not wrong.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Graph(ready_to_serve(model)).eval(),
            (tiles, *plan.values()),
            file,  # type: ignore[arg-type]
            dynamo=False,
            export_params=weights_inside,
            do_constant_folding=weights_inside,
            opset_version=OPSET,
            input_names=["tiles", *plan],
            output_names=["repainted"],
            dynamic_axes={name: axes for name, axes in free.items() if name in ("tiles", "repainted", *plan)},
        )
    return file.getvalue()


def point_to_weights(graph: bytes, weights: bytes) -> bytes:
    """The graph that `to_onnx` makes without weights, now with references into a safetensors file of these bytes, which
    must lie beside it. Nothing is stored twice.
    """
    import onnx

    header = int.from_bytes(weights[:8], "little")
    where, model = json.loads(weights[8 : 8 + header]), onnx.load_from_string(graph)
    for value in [i for i in model.graph.input if i.name.startswith("model.")]:
        entry = where[value.name.removeprefix("model.")]
        begin, end = entry["data_offsets"]
        tensor = model.graph.initializer.add(name=value.name, data_type=onnx.TensorProto.FLOAT, dims=entry["shape"])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, said in (("location", WEIGHTS), ("offset", 8 + header + begin), ("length", end - begin)):
            tensor.external_data.add(key=key, value=str(said))
        model.graph.input.remove(value)
    written: bytes = model.SerializeToString()
    return written


class _Graph(torch.nn.Module):
    """int32 indices outside, as TensorRT likes them; torch indexes with int64."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, tiles: torch.Tensor, *plan: torch.Tensor) -> torch.Tensor:
        repainted: torch.Tensor = self.model(tiles, *(indices.long() for indices in plan))
        return repainted


def export_bundle(path: Path, model: Network, manifest: Manifest) -> Bundle:
    """Writes a bundle with this model's weights. `manifest` gives everything but architecture and files.

    Raises ValueError if the answers are not finite, or have planes that the manifest's error map does not know of.
    """
    a = model.architecture
    complete = Manifest.model_validate(
        {**manifest.model_dump(), "architecture": a.model_dump(), "plans": a.plans, "files": {GRAPH: "0" * 64}}
    )
    probe = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, a.tile_px, a.tile_px, a.channels), np.uint8))
    model = model.eval()
    with torch.no_grad():
        answer = model(probe, *plan_arguments(a, a.plans[-1]))
    if not torch.isfinite(answer).all():
        raise ValueError("the weights give answers that are not finite; nothing was written")
    if answer.shape != complete.answer_shape(probe.shape):
        raise ValueError(f"answers have {answer.shape[3]} planes, not what error map {complete.error_map.kind!r} needs")
    weights = save({k: v.detach().contiguous() for k, v in model.state_dict().items()})
    if len(weights) <= LARGEST_INSIDE_BYTES:
        graph = to_onnx(model)
    else:
        graph = point_to_weights(to_onnx(model, weights_inside=False), weights)
    return write_bundle(path, complete, {GRAPH: graph, WEIGHTS: weights})


def load_model(bundle: Bundle) -> Network:
    """The bundle's network in torch, from its safetensors. Raises BundleError if they do not fit the architecture."""
    a = bundle.manifest.architecture
    if isinstance(a, MarkerArchitecture | NullArchitecture):
        raise BundleError(f"bundle {bundle.path}: kind {a.kind!r} has no weights; name a bundle with a network")
    model = build(a)
    try:
        model.load_state_dict(load(bundle.read(WEIGHTS)))
    except RuntimeError as error:
        raise BundleError(f"bundle {bundle.path}: {WEIGHTS} does not fit its architecture: {error}") from error
    return model.eval()
