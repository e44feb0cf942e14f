"""Logs: the processes of the line outlive the place where their events go."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TALK = """
import os
import structlog
from edge.logs import configure_logs

log_file = os.dup(2)
configure_logs("gate")
log = structlog.get_logger()
log.info("first")
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
log.error("lost")
log.error("lost, too")
os.dup2(log_file, 2)
log.info("last")
"""


def test_events_that_cannot_be_written_cost_only_themselves(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        subprocess.run([sys.executable, "-c", TALK], stderr=file, check=True, timeout=100)
    events = [json.loads(line) for line in log.read_text().splitlines() if line]
    assert [e["event"] for e in events] == ["first", "events_lost", "last"]
    assert events[1]["count"] == 2
