"""`python -m edge NAME`: one process of a line. The supervisor starts these; people use the command `maskline`."""

from __future__ import annotations

import os
import sys

from edge.parent import die_with_parent

if parent := os.environ.get("MASKLINE_SUPERVISOR_PID"):
    die_with_parent(int(parent))  # before the seconds that imports may take
    sys.modules["rich"] = None  # type: ignore[assignment] # structlog imports it, for tracebacks in colour: 0.1 s

from edge.worker import main

main()
