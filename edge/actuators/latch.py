"""Faults on disk: they survive a restart, and only an authorised reset removes them.

Who may write the state folder may reset. What cannot be read counts as a fault: somebody, or a dying disk, was at it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from edge.actuators.driver import Fault
from edge.audit import AuditTrail
from edge.errors import ResourceError
from edge.paths import make_private, write_durably

__all__ = ["Latch", "Latched", "actuator_dir"]

MAX_BYTES = 1 << 16


def actuator_dir(state_dir: Path, name: str) -> Path:
    """Where an actuator of a line keeps what must survive it."""
    return state_dir / "actuators" / name


@dataclass(frozen=True)
class Latched:
    """One fault that waits for its reset."""

    fault: Fault
    detail: str
    utc_ns: int


class Latch:
    """The latched faults of one actuator."""

    def __init__(self, folder: Path, name: str, audit: AuditTrail) -> None:
        """Read what an earlier process left. Raises ResourceError when the folder cannot be made."""
        self._path, self._name, self._audit = make_private(folder) / "latch.json", name, audit
        self._faults = _read(self._path)
        self.unsaved = False
        """Whether the disk does not have all of it yet."""

    @property
    def faults(self) -> tuple[Latched, ...]:
        """In the order in which they came."""
        return tuple(self._faults.values())

    @property
    def first(self) -> Fault:
        """What came first; NONE if nothing is latched."""
        return next(iter(self._faults), Fault.NONE)

    def raise_fault(self, fault: Fault, detail: str) -> bool:
        """Latch a fault; whether it is new. It is on disk after the next `save`: outputs come before a slow disk."""
        if fault in self._faults:
            return False
        self._faults[fault] = Latched(fault, detail, time.time_ns())
        self.unsaved = True
        return True

    def save(self) -> None:
        """Write what is latched; on failure `unsaved` is set, and the fault holds for as long as this process lives."""
        try:
            write_durably(self._path, json.dumps([asdict(f) for f in self._faults.values()]).encode())
            self.unsaved = False
        except OSError:
            self.unsaved = True

    def reset(self, who: str, why: str) -> tuple[Latched, ...]:
        """Remove every fault, and record who did so and why; what was removed.

        The record comes first: without it nothing is reset. Raises AuditError, ResourceError.
        """
        removed = self.faults
        names = [f.fault.name.lower() for f in removed]
        self._audit.record("actuator.reset", who, actuator=self._name, why=why, faults=names)
        self._faults = {}
        self.save()
        if self.unsaved:
            self._faults = {f.fault: f for f in removed}
            raise ResourceError(f"{self._path}: cannot write it, so the faults stay; is the disk full?")
        return removed


def _read(path: Path) -> dict[Fault, Latched]:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_BYTES))
        faults = [Latched(Fault(f["fault"]), str(f["detail"]), int(f["utc_ns"])) for f in found]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        faults = [Latched(Fault.OTHER, f"{path} cannot be read", time.time_ns())]
    return {f.fault: f for f in faults}
