"""Recordings: MCAP files of triggers, frames, view results and verdicts, and, for simulated streams, the truth.

`docs/recording_format.md` describes the file. What is written survives the death of its writer but for the open chunk;
a file without an index was cut, is read as far as it goes, and becomes a whole one by `recover`.
"""

from __future__ import annotations

from edge.recording.cutting import cut
from edge.recording.format import CALIBRATION, MAX_NUMBER, RecordedRefusal, RecordedTrigger, RecordedTruth
from edge.recording.frames import RecordedFrame
from edge.recording.reader import Recording
from edge.recording.recovery import Recovered, recover
from edge.recording.writer import RecordingWriter

__all__ = [
    "CALIBRATION",
    "MAX_NUMBER",
    "RecordedFrame",
    "RecordedRefusal",
    "RecordedTrigger",
    "RecordedTruth",
    "Recording",
    "RecordingWriter",
    "Recovered",
    "cut",
    "recover",
]
