"""What the builder of a line does with an int8 graph that is stale or was never verified."""

from __future__ import annotations

from edge.errors import EngineError, StaleEngineError
from edge.samples import samples
from engines.backends.cache import EngineCache
from engines.backends.openvino import OpenVinoBackend
from engines.backends.openvino.compiling import key_of
from engines.backends.verify import require_passed, verify
from engines.bundle import Bundle

__all__ = ["rebuild"]

TILES = 48
"""Procedural ones, on which it is compared with float32: a line has no images of good parts at hand."""


def rebuild(bundle: Bundle, plan: str, precision: str, batch: int, *, cache: EngineCache | None = None) -> None:
    """Makes the int8 graph serve here that was quantised for another version of OpenVINO or another processor, unless
    the one in the cache serves already; other precisions need nothing.

    No images are needed for it, and no NNCF. Raises EngineError where there is no such graph, or when it differs too
    much from float32 here.
    """
    if precision != "int8":
        return
    backend = OpenVinoBackend(cache)
    try:
        backend.load(bundle, plan, precision=precision, threads=0, batch=batch)
    except StaleEngineError as error:
        stale = error
    else:
        return
    cache, key = backend.cache, key_of(bundle, plan, precision, batch)
    if not cache.has(key):
        earlier = cache.earlier(key)
        if earlier is None:
            raise EngineError(str(stale))
        here = earlier.manifest.model_copy(update={"key": key, "verification": None})
        cache.store(here, cache.read(earlier))
    candidate = OpenVinoBackend(cache, verified_only=False)
    found = verify(candidate, bundle, plan, precision, batch, samples(bundle.manifest, None, TILES))
    require_passed(found, f"bundle {bundle.path}: int8 of plan {plan}", precision)
