"""The journal: what was seen and what was answered, in SQLite, before it is published; and its tools.

Everyone may read it (`open_for_reading`), live or not; the gate alone writes it (`Journal`), and `retire` does while no
gate runs. Its verdicts form a chain of hashes: see `edge.journal.schema`.
"""

from __future__ import annotations

from edge.journal.rows import write_turn
from edge.journal.schema import Head, first_seq, newest, open_for_reading
from edge.journal.writer import (
    Journal,
    JournalBlockedError,
    JournalBusyError,
    JournalFullError,
    OpenTrigger,
    boot_id,
)

__all__ = [
    "Head",
    "Journal",
    "JournalBlockedError",
    "JournalBusyError",
    "JournalFullError",
    "OpenTrigger",
    "boot_id",
    "first_seq",
    "newest",
    "open_for_reading",
    "write_turn",
]
