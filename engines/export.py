"""From weights to a bundle: one ONNX file for every mask plan, the weights as safetensors beside it. Needs torch."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save

from edge.errors import BundleError
from engines.architecture import MaeArchitecture
from engines.bundle import GRAPH, WEIGHTS, Bundle, Manifest, write_bundle
from engines.mae import MaskedAutoencoder, plan_tensors
from engines.plans import named_plan

__all__ = ["INPUTS", "OPSET", "export_bundle", "load_model", "to_onnx"]

OPSET = 17
"""The first with LayerNormalization as one operator, which half precision needs."""
INPUTS = ("tiles", "visible", "hidden", "place")


def to_onnx(model: MaskedAutoencoder) -> bytes:
    """The whole graph, from uint8 tiles to repainted float32 tiles, with the mask plan as three int32 inputs.

    tiles [N, h, w, C], visible [V, K], hidden [V, H], place [T]; N, V, K and H are free.
    """
    a = model.architecture
    plan = named_plan("x16", a.grid, a.block)
    example = (torch.zeros(2, a.tile_px, a.tile_px, a.channels, dtype=torch.uint8), *plan_tensors(plan))
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The older exporter writes smaller graphs that OpenVINO and TensorRT fuse better; it is deprecated, not wrong.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Graph(model).eval(),
            (example[0], *(x.int() for x in example[1:])),
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=["repainted"],
            dynamic_axes={
                "tiles": {0: "N"},
                "visible": {0: "V", 1: "K"},
                "hidden": {0: "V", 1: "H"},
                "repainted": {0: "N"},
            },
        )
    return file.getvalue()


class _Graph(torch.nn.Module):
    """int32 indices outside, as TensorRT likes them; torch indexes with int64."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tiles: torch.Tensor, visible: torch.Tensor, hidden: torch.Tensor, place: torch.Tensor
    ) -> torch.Tensor:
        repainted: torch.Tensor = self.model(tiles, visible.long(), hidden.long(), place.long())
        return repainted


def export_bundle(path: Path, model: MaskedAutoencoder, manifest: Manifest) -> Bundle:
    """Writes a bundle with this model's weights. `manifest` gives everything but architecture and files.

    Raises ValueError if the answers are not finite.
    """
    a = model.architecture
    probe = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, a.tile_px, a.tile_px, a.channels), np.uint8))
    model = model.eval()
    with torch.no_grad():
        if not torch.isfinite(model(probe, *plan_tensors(named_plan("x16", a.grid, a.block)))).all():
            raise ValueError("the weights give answers that are not finite; nothing was written")
    state = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    complete = Manifest.model_validate(
        {**manifest.model_dump(), "architecture": a.model_dump(), "files": {GRAPH: "0" * 64}}
    )
    return write_bundle(path, complete, {GRAPH: to_onnx(model), WEIGHTS: save(state)})


def load_model(bundle: Bundle) -> MaskedAutoencoder:
    """The bundle's network in torch, from its safetensors. Raises BundleError if they do not fit the architecture."""
    a = bundle.manifest.architecture
    if not isinstance(a, MaeArchitecture):
        raise BundleError(f"bundle {bundle.path}: kind {a.kind!r} has no weights; name a bundle of kind 'mae'")
    model = MaskedAutoencoder(a)
    try:
        model.load_state_dict(load(bundle.read(WEIGHTS)))
    except RuntimeError as error:
        raise BundleError(f"bundle {bundle.path}: {WEIGHTS} does not fit its architecture: {error}") from error
    return model.eval()
