"""Recordings that were damaged or made to harm, a thousand of them, read in a process that may not grow.

`python fuzz.py FOLDER COUNT SEED`: every mutation of a small recording must be read, as far as it goes, or refused with
a SourceError. Anything else, or more memory than a small file can need, ends this process with an error.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mcap_helpers import write_all

from edge.errors import SourceError
from edge.recording import RecordedFrame, Recording, recover
from edge.recording.container import FRAMING, MAGIC
from edge.sources.images import BadImageError

GROWTH_BYTES = 1 << 28
"""Address space; of it not more than RESIDENT_BYTES are to be touched."""
RESIDENT_BYTES = 48 << 20
PIXELS = 1 << 16
LENGTHS = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)

Mutation = Callable[[random.Random, bytearray], None]


def read_all(path: Path) -> None:
    """Everything that can be asked of a recording. Raises SourceError."""
    recording = Recording(path)
    assert recording.lossless in (True, False)
    for station in recording.stations:
        for event in recording.inputs(station):
            if isinstance(event, RecordedFrame):
                with contextlib.suppress(BadImageError):
                    event.decode(PIXELS)
        for truth in recording.truths(station).values():
            with contextlib.suppress(BadImageError):
                truth.mask()
        for number in (0, 4, 1 << 31):
            recording.frame(station, number)
    assert sum(1 for _ in recording.results()) < 1000
    assert sum(1 for _ in recording.verdicts()) < 1000
    with contextlib.suppress(SourceError):  # the whole one has none that is valid
        recording.calibration()


def lengths_at(data: bytes) -> list[tuple[int, int]]:
    """Place and size of the numbers by which a reader of this file allocates: of records, chunks, strings, maps."""
    found, at = [], len(MAGIC)
    while at + FRAMING.size <= len(data) - len(MAGIC):
        opcode, length = FRAMING.unpack_from(data, at)
        body = at + FRAMING.size
        found += [(at + 1, 8), (body, 4), (body + 4, 4), (body, 8)]
        if opcode == 6:
            found += [(body + 16, 8), (body + 28, 4), (body + 32, 8)]
            inner = body + 40
            while inner + FRAMING.size <= body + length:
                found += [(inner + 1, 8), *((inner + FRAMING.size + o, 4) for o in (4, 31, 36, 60, 80, 100, 120))]
                inner += FRAMING.size + FRAMING.unpack_from(data, inner)[1]
        found += [(body + o, 8) for o in range(8, min(length, 64), 8)]
        at = body + length
    return found


def without_checksums(data: bytes) -> bytes:
    """The same recording with checksums of 0, which say "not computed": what is damaged then reaches the parsers."""
    made, at = bytearray(data), len(MAGIC)
    while at + FRAMING.size <= len(made) - len(MAGIC):
        opcode, length = FRAMING.unpack_from(made, at)
        body = at + FRAMING.size
        if opcode in (2, 6):
            crc = body + (16 if opcode == 2 else 24)
            made[crc : crc + 4] = bytes(4)
        at = body + length
    return bytes(made)


def flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def splice(rng: random.Random, data: bytearray) -> None:
    start, end = sorted(rng.randrange(len(data)) for _ in range(2))
    at = rng.randrange(len(data))
    data[at : at + rng.choice((0, end - start))] = data[start : min(end, start + (1 << 16))]


def junk(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at : at + rng.choice((0, 40))] = rng.randbytes(rng.randrange(1, 200))


def magic(rng: random.Random, data: bytearray) -> None:
    data[rng.choice((0, -len(MAGIC))) + rng.randrange(len(MAGIC))] = rng.randrange(256)


def zeros(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    data[at : at + 4096] = bytes(min(4096, len(data) - at))


def length(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 3))):
        at, size = rng.choice(lengths_at(bytes(data)) or [(8, 8)])
        value = rng.choice((*LENGTHS, rng.randrange(len(data)), rng.getrandbits(64)))
        data[at : at + size] = struct.pack("<Q", value)[:size]
        if rng.random() < 0.5:
            break


def bomb(rng: random.Random, data: bytearray) -> None:
    """Nested msgpack arrays and maps, each of which declares to be as long as can be."""
    at = rng.choice([place.start() for place in re.finditer(rb"[\x84-\x8f]\xa1v|\x83\xa1v", data)] or [100])
    header = rng.choice((b"\xdd\x00\x00\xff\xff", b"\xdf\x00\x00\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6" * 5))
    data[at : at + 300] = header * 60


MUTATIONS: tuple[Mutation, ...] = (flip, flip, truncate, splice, junk, magic, zeros, length, length, length, bomb)


def main(folder: Path, count: int, seed: int) -> None:
    os.fsync = lambda _: None  # nothing here need survive a power cut
    rng = random.Random(seed)
    whole = write_all(folder / "whole.mcap").read_bytes()
    bases = (whole, without_checksums(whole), without_checksums(whole))
    path, out = folder / "odd.mcap", folder / "out.mcap"
    for base in bases:  # what is imported late is imported now
        path.write_bytes(base)
        attempt(path, out)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GROWTH_BYTES,) * 2)
    with contextlib.suppress(OSError):  # where the kernel has it: begin to count anew
        Path("/proc/self/clear_refs").write_text("5")
    resident = most_resident()
    said: Counter[str] = Counter()
    for number in range(count):
        data = bytearray(rng.choice(bases))
        mutation = rng.choice(MUTATIONS)
        mutation(rng, data)
        path.write_bytes(data)
        try:
            said[attempt(path, out)] += 1
        except BaseException:
            sys.stderr.write(f"mutation {number} of seed {seed}, {mutation.__name__}: {path}\n")
            raise
    grown = most_resident() - resident
    sys.stdout.write(f"{count} mutations; grown by {grown >> 20} MiB; {dict(said)}\n")
    assert grown < RESIDENT_BYTES, f"{grown} bytes more than before"


def most_resident() -> int:
    """Bytes, since this program began."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10


def attempt(path: Path, out: Path) -> str:
    """Read and recover a file; whether it could be. Raises whatever is no SourceError that names it."""
    outcomes = []
    for act in (lambda: read_all(path), lambda: recover(path, out)):
        try:
            act()
            outcomes.append("done")
        except SourceError as error:
            outcomes.append("refused")
            if path.name not in str(error) or len(str(error)) > 1000:
                raise AssertionError("a message that does not say which file, or says too much") from error
    if out.exists():
        with contextlib.suppress(SourceError):  # what is in its messages may still be wrong
            read_all(out)
        out.unlink()
    return ", ".join(outcomes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
