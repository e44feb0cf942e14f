"""Recordings made out of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.recording import Recording, RecordingWriter

__all__ = ["rewriting"]


@contextmanager
def rewriting(source: Path, out: Path) -> Iterator[tuple[Recording, RecordingWriter]]:
    """A recording, and a copy of it that has its metadata and calibration and nothing else yet."""
    recording = Recording(source)
    calibration = recording.calibration()
    assert calibration is not None
    with RecordingWriter(out, recording.metadata) as copy:
        copy.calibration(calibration.to_bytes())
        yield recording, copy
