"""Logs: key-value events on standard error, where journald picks them up; readable ones on a terminal."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import TextIO, cast

import structlog

__all__ = ["configure_logs"]


def configure_logs(process: str) -> None:
    """Send this process's events to standard error, each with the name of the process.

    `MASKLINE_LOG_LEVEL` (debug, info, warning, error) sets what is shown; the default is info.
    """
    level = logging.getLevelName(os.environ.get("MASKLINE_LOG_LEVEL", "info").upper())
    terminal = sys.stderr.isatty() or os.environ.get("MASKLINE_LOG_FORMAT") == "text"
    renderer = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level if isinstance(level, int) else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _StandardError())),
    )
    structlog.contextvars.bind_contextvars(process=process)


class _StandardError(io.TextIOBase):
    """Standard error, where a full disk or a reader that went away costs the event and never the process."""

    def __init__(self) -> None:
        self._lost = 0

    def write(self, text: str) -> int:
        """Write whole lines; those that cannot be written are counted, and the count comes before the next ones."""
        head = f'\n{{"event": "events_lost", "count": {self._lost}}}\n' if self._lost else ""
        data = (head + text).encode("utf-8", "backslashreplace")
        try:
            whole = os.write(2, data) == len(data)
        except OSError:
            whole = False
        self._lost = 0 if whole else self._lost + text.count("\n")
        return len(text)
