"""`python -m edge NAME`: one process of a line. The supervisor starts these; people use the command `maskline`."""

from __future__ import annotations

from edge.worker import main

main()
