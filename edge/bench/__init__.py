"""`maskline bench NAME`: what the line costs, measured on this machine. Ratios come from one run; quote those.

Each bench is one module with `run(...) -> dict[str, float]`; its docstring says what is measured against what, and its
`BUDGETS` what is asked of it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BENCHES", "Budget", "machine", "percentile", "write_json"]

BENCHES = {
    "transport": "a frame from one process to another: the slab against a socket that copies",
    "pipeline": "trigger to verdict through all processes, against the same functions in a row",
    "memory": "resident memory of each process over many frames",
    "engine": "the exported graph against the naive way, and the plans beside each other",
    "cascade": "plan `cascade` against `x1`: the same decisions, and the time",
    "gate": "verdicts per second through gate, journal and channel, and from the judgement to a subscriber",
    "record": "a line that records every frame against the same line that records nothing",
    "replay": "a recording as fast as it goes against the engine alone; seeks in large recordings, and `recover`",
    "faults": "processes that die or hang, messages that are wrong: what passes, is lost or comes twice on a conveyor",
}
"""Name of the module in this package, and what it measures."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """What is asked of a figure: at least or at most a value."""

    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        return not (
            (self.at_least is not None and value < self.at_least) or (self.at_most is not None and value > self.at_most)
        )

    def __str__(self) -> str:
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"


def percentile(values: list[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def machine() -> str:
    """The processor, its cores and the memory: what the figures belong to."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    kib = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    flags = next((line for line in _lines("/proc/cpuinfo") if line.startswith("flags")), "")
    best = next((isa for isa in ("amx_bf16", "avx512_vnni", "avx512f", "avx2") if f" {isa}" in flags), "")
    return f"{model}, {os.cpu_count()} cores, {kib / 2**20:.0f} GiB{', ' + best if best else ''}"


def commit() -> str:
    """The commit of the working tree, or the version where there is none."""
    from edge import __version__

    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "-C", here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() if found.returncode == 0 else f"v{__version__}"


def write_json(path: Path, figures: dict[str, float]) -> None:
    """One flat object: the machine, the commit, the figures."""
    path.write_text(
        json.dumps({"machine": machine(), "commit": commit(), **figures}, indent=2) + "\n", encoding="utf-8"
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
