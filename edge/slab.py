"""The line's shared memory: one memfd that holds every frame in flight, and the words that say whose it is.

The supervisor makes the slab, allocated in full, and every process inherits it as a file descriptor: it leaves nothing
behind when the line dies, however it dies. A *slot* holds all arrays of one frame. What travels between processes is a
descriptor (slot, generation); the pixels stay where they are.

Who may touch a slot is one aligned 64-bit word, `generation << 8 | holder`, written by its holder alone:

    free ──acquire──► capture ──hand_over──► prepare ─► detect ─► judge ──release──► free (next generation)

Only the capture process of the station takes a free slot, and a holder names the next one before it sends the
descriptor, so that no word ever has two writers and no lock can be held by a dead process. A killed holder's slots are
released by the supervisor once it was reaped, never before. A descriptor that was lost with its sender leaves a slot
whose holder knows nothing of it: the holder finds such orphans (`Orphans`) and releases them. What arrives too late
carries an old generation and is dropped.

Order of memory: a descriptor is received through a socket, whose system calls order it after the pixels that were
written before it was sent. `release` follows the sending of the result, which orders it after the last read.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ResourceError

__all__ = ["FREE", "ArraySpec", "Ending", "EngineState", "Orphans", "Slab", "SlotLayout", "State"]

FREE = 0
MAGIC = 0x6D61736B6C696E65  # "maskline"
VERSION = 2
MAX_PROCESSES = 96
MAX_SLOTS = 2048
PAGE = 4096
CGROUP_ROOT = Path("/sys/fs/cgroup")

Array = NDArray[Any]


class State:
    """What a process says of itself in its row (plain integers: they live in shared memory)."""

    ABSENT, STARTING, RUNNING, DONE = range(4)


class EngineState(IntEnum):
    """What the supervisor says of the line's engines, in the head of the slab."""

    SERVED = 0  # by detect, or they will be as soon as it runs
    STALE = 1  # detect cannot open them, and has ended: they are being built
    BUILT = 2  # detect is opening them


class Ending(IntEnum):
    """Why the line drains, in the head of the slab."""

    NO = 0
    STOP = 1
    CHANGE_OVER = 2  # and starts again, with another recipe


_ROW = np.dtype(
    [
        ("beat_ns", "u8"),
        ("state", "u8"),
        ("done", "u8"),
        ("failed", "u8"),
        ("open", "u8"),
        ("stale", "u8"),
        ("frames_offered", "u8"),  # capture: frames that ought to be recorded
        ("frames_unrecorded", "u8"),  # of these, the ones that are not and will not be
        ("messages_unrecorded", "u8"),  # triggers, view results and verdicts
        ("trouble", "u8"),  # record: why it does not record, RecordTrouble
    ]
)
_HEAD = np.dtype(
    [
        ("magic", "u8"),
        ("version", "u8"),
        ("server_id", "u8"),
        ("start_ns", "u8"),
        ("ending", "u8"),
        ("engine", "u8"),
        ("rows", _ROW, MAX_PROCESSES),
        ("next_trigger", "u8", MAX_PROCESSES),
        ("astray", "u8", MAX_PROCESSES),  # capture: 1 once the gate has found that it shows other parts of its lane
        ("words", "u8", MAX_SLOTS),
    ]
)


@dataclass(frozen=True)
class ArraySpec:
    """One array of a slot."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class SlotLayout:
    """What a slot of one station holds, and how many slots it has."""

    arrays: tuple[ArraySpec, ...]
    count: int

    @property
    def slot_bytes(self) -> int:
        """Every array begins on a page, so that engines may take it as it is."""
        return sum(_pages(a.nbytes) for a in self.arrays)


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


class Slab:
    """All slots of a line, and the head that its processes share.

    `layouts` maps each station to its layout; every process computes it from the same recipe.
    """

    def __init__(self, fd: int, layouts: Mapping[str, SlotLayout], *, populate: bool = False) -> None:
        """Map an existing slab. `populate`: all pages now, so that no frame pays for the first touch of its slot.

        Raises ResourceError if the file is no slab of this version or too small.
        """
        self.fd = fd
        size = slab_bytes(layouts)
        if os.fstat(fd).st_size < size:
            raise ResourceError(
                f"the slab has {os.fstat(fd).st_size} bytes, the recipe needs {size}: not the same recipe"
            )
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0))
        self.head = np.frombuffer(self._map, _HEAD, 1)[0]
        if int(self.head["magic"]) != MAGIC or int(self.head["version"]) != VERSION:
            raise ResourceError(f"the file descriptor {fd} is no slab of version {VERSION}")
        self.words: NDArray[np.uint64] = self.head["words"]
        self.station_slots: dict[str, range] = {}
        self._arrays: list[dict[str, Array]] = []
        offset = _pages(_HEAD.itemsize)
        for station, layout in layouts.items():
            first = len(self._arrays)
            for _ in range(layout.count):
                arrays = {}
                for spec in layout.arrays:
                    count = int(np.prod(spec.shape))
                    arrays[spec.name] = np.frombuffer(self._map, spec.dtype, count, offset).reshape(spec.shape)
                    offset += _pages(spec.nbytes)
                self._arrays.append(arrays)
            self.station_slots[station] = range(first, len(self._arrays))

    @classmethod
    def create(cls, layouts: Mapping[str, SlotLayout]) -> Slab:
        """Make a slab, every page allocated now: a line that starts cannot run out of memory for frames later.

        Raises ResourceError when the machine does not have the memory.
        """
        size, slots = slab_bytes(layouts), sum(layout.count for layout in layouts.values())
        if slots > MAX_SLOTS:
            raise ResourceError(f"the recipe asks for {slots} slots; a line has at most {MAX_SLOTS}")
        available = _available_bytes()
        if size > available:
            raise ResourceError(
                f"the line needs {size / 2**20:.0f} MiB of shared memory for its frames, {available / 2**20:.0f} MiB "
                "are available: fewer slots, smaller frames or a smaller region need less"
            )
        fd = os.memfd_create("maskline-slab", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            os.close(fd)
            raise ResourceError(f"cannot allocate {size / 2**20:.0f} MiB of shared memory: {error.strerror}") from error
        head = np.zeros(1, _HEAD)
        head["magic"], head["version"], head["server_id"] = MAGIC, VERSION, secrets.randbits(63)
        head["words"] = 1 << 8 | FREE
        os.pwrite(fd, head.tobytes(), 0)
        return cls(fd, layouts)

    @property
    def server_id(self) -> int:
        """Random, one per start of the line."""
        return int(self.head["server_id"])

    @property
    def engine(self) -> EngineState:
        """What became of the line's engines."""
        return EngineState(int(self.head["engine"]))

    def arrays(self, slot: int) -> dict[str, Array]:
        """The arrays of a slot: views into shared memory."""
        return self._arrays[slot]

    def row(self, process: int) -> Any:
        """What process number `process` says of itself: beat_ns, state and its counters."""
        return self.head["rows"][process]

    def acquire(self, station: str, me: int) -> tuple[int, int] | None:
        """Take a free slot of the station: (slot, generation), or None. Only the station's capture process may ask."""
        for slot in self.station_slots[station]:
            if self.is_free(slot):
                self.hand_over(slot, me)
                return slot, int(self.words[slot]) >> 8
        return None

    def is_free(self, slot: int) -> bool:
        """Whether nobody holds the slot."""
        return int(self.words[slot]) & 0xFF == FREE

    def holds(self, slot: int, generation: int, me: int) -> bool:
        """Whether a descriptor still speaks of the frame in the slot, and the slot is ours."""
        return 0 <= slot < len(self._arrays) and int(self.words[slot]) == (generation << 8 | me)

    def hand_over(self, slot: int, to: int) -> None:
        """Name the next holder; call it before the descriptor is sent."""
        self.words[slot] = int(self.words[slot]) >> 8 << 8 | to

    def release(self, slot: int) -> None:
        """Give the slot back; descriptors that still name it become stale."""
        self.words[slot] = ((int(self.words[slot]) >> 8) + 1) << 8 | FREE

    def held_by(self, process: int) -> list[int]:
        """The slots whose holder is this process."""
        return [int(s) for s in np.flatnonzero(self.words[: len(self._arrays)] & np.uint64(0xFF) == process)]

    def reclaim(self, process: int) -> list[int]:
        """Release what a reaped process held. Only the supervisor may, and only after it reaped the process."""
        slots = self.held_by(process)
        for slot in slots:
            self.release(slot)
        return slots

    def close(self) -> None:
        """Close the file descriptor; the memory goes with its last user."""
        os.close(self.fd)


@dataclass
class Orphans:
    """Finds the slots that a process holds and knows nothing of: their descriptor died with its sender."""

    slab: Slab
    me: int
    patience_ns: int = 1_000_000_000
    _since: dict[tuple[int, int], int] = field(default_factory=dict)

    def release(self, known: Iterable[int], now_ns: int) -> list[int]:
        """Release the slots that were unknown for `patience_ns`. `known`: slots of all descriptors received so far,
        so the caller must have emptied its socket."""
        known = set(known)
        unknown = [(s, int(self.slab.words[s])) for s in self.slab.held_by(self.me) if s not in known]
        self._since = {key: self._since.get(key, now_ns) for key in unknown}
        lost = [slot for (slot, _), since in self._since.items() if now_ns - since >= self.patience_ns]
        for slot in lost:
            self.slab.release(slot)
        return lost


def slab_bytes(layouts: Mapping[str, SlotLayout]) -> int:
    """Size of the slab for these layouts, bytes."""
    return _pages(_HEAD.itemsize) + sum(layout.slot_bytes * layout.count for layout in layouts.values())


def _available_bytes() -> int:
    """What the machine and our control groups still have: posix_fallocate on a memfd that exceeds memory calls the
    kernel's OOM killer instead of failing."""
    available = [1 << 62]  # an old or strange kernel: let the allocation itself tell
    memory = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available += [int(line.split()[1]) * 1024 for line in memory if line.startswith("MemAvailable:")]
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        if line.startswith("0::"):
            available += _cgroup_available(CGROUP_ROOT, line[3:].strip("/"))
    return max(0, min(available))


def _cgroup_available(root: Path, path: str) -> list[int]:
    """What is left of the limits of a control group (version 2) and of those that it is in; empty without limits."""
    left = []
    for group in (root / path, *(root / path).parents):
        if not group.is_relative_to(root):
            break
        limit, used = group / "memory.max", group / "memory.current"
        if limit.is_file() and (most := limit.read_text(encoding="ascii").strip()) != "max":
            left.append(int(most) - int(used.read_text(encoding="ascii")))
    return left
