"""Build: makes the engines that detect found to be stale. It does that once and ends, and runs while nothing serves."""

from __future__ import annotations

import signal

from edge.detector import mask_plans
from edge.slab import State
from edge.worker import Worker
from engines.backends import build_engine

__all__ = ["run"]


def run(worker: Worker) -> None:
    """The builder. Raises MasklineError when an engine cannot be built, or differs too much to be served.

    It may be killed at any moment: an engine is in the cache as a whole or not at all.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a compiler does not ask whether it shall stop
    settings = worker.recipe.engine
    wanted = {(s.bundle.sha256, p): s.bundle for s in worker.plan.stations.values() for p in mask_plans(s)}
    for (_, mask_plan), bundle in wanted.items():
        build_engine(
            settings.backend,
            bundle,
            mask_plan,
            precision=settings.precision,
            batch=settings.batch,
            marker_build_ms=settings.marker_build_ms,
        )
        worker.log.info("engine_built", bundle=bundle.manifest.name, plan=mask_plan)
    worker.report(State.DONE)
