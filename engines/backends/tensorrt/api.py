"""Whichever TensorRT is installed, with one face.

`tensorrt` is NVIDIA's, version 10 (JetPack 6.1 and later) or 11; `tensorrt_rtx` is the one for RTX desktops, which also
builds for GPUs that are not there. Networks are strongly typed with all of them, so that one path serves all.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

from edge.errors import EngineError

__all__ = ["FLAVOURS", "OLDEST", "Api", "find_tensorrt"]

FLAVOURS = ("tensorrt", "tensorrt_rtx")
"""The packages, in the order in which they are looked for."""
OLDEST = {"tensorrt": 10, "tensorrt_rtx": 1}
"""Major versions. TensorRT 8 (JetPack 6.0) knows no strongly typed networks."""
MOST_LINES = 20


@dataclass(frozen=True)
class Api:
    """One of FLAVOURS, its exact version, its module and the logger that everything made from it writes to."""

    flavour: str
    version: str
    trt: Any
    log: Any

    @property
    def name(self) -> str:
        """For people: flavour and version."""
        return f"{self.flavour} {self.version}"

    @property
    def rtx(self) -> bool:
        """Whether engines are built for GPUs that may not be here, and their kernels compiled on the device."""
        return self.flavour == "tensorrt_rtx"

    @property
    def targets(self) -> tuple[str, ...]:
        """GPUs that engines can be built for without one, such as "sm86"; empty: only for the one in this machine."""
        names = self.trt.ComputeCapability.__members__ if self.rtx else ()
        return tuple(sorted((n.lower() for n in names if n.startswith("SM")), key=lambda n: int(n[2:])))

    def said(self) -> str:
        """What TensorRT complained about since this was last asked, in its own words."""
        lines, self.log.lines[:] = list(dict.fromkeys(self.log.lines)), []
        return "; ".join(lines[:MOST_LINES]) or "it gave no reason"


@functools.cache
def find_tensorrt() -> Api:
    """The TensorRT of this environment, one per process: TensorRT keeps the first logger that it is given.

    Raises EngineError when there is none, or only one that is too old.
    """
    missing = []
    for flavour in FLAVOURS:
        try:
            trt = importlib.import_module(flavour)
        except ImportError as error:
            missing.append(f"{flavour} ({error})")
            continue
        version = str(trt.__version__)
        if int(version.split(".")[0]) < OLDEST[flavour]:
            raise EngineError(
                f"{flavour} {version} is too old: expected {OLDEST[flavour]} or newer, which JetPack has from 6.1 on"
            )
        return Api(flavour, version, trt, _logger(trt))
    raise EngineError(
        f"no TensorRT here: {', '.join(missing)}. RTX cards: pip install 'maskline[rtx]'; Jetson: JetPack 6.1 or "
        "later, in an environment made with --system-site-packages; others: pip install tensorrt"
    )


def _logger(trt: Any) -> Any:
    """A logger that keeps errors as text."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.ERROR) and len(self.lines) < MOST_LINES:
                self.lines.append(message.strip())

    return Log()
