"""The command `maskline` in the test's own process: an interpreter's start costs more than what most commands do. What
only a process can show (its end, its signals, what it imports) is asked of `python -m edge.cli`."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys

import pytest

from edge.cli import main

__all__ = ["maskline"]


def maskline(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a user would see: exit code and output. What would be a traceback is raised."""
    said, told = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        patched.setattr(sys, "argv", ["maskline", *map(str, arguments)])
        for name, value in ({"COLUMNS": "200"} | environment).items():
            patched.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            main()
    code = end.value.code
    assert code is None or isinstance(code, int), code
    return subprocess.CompletedProcess(sys.argv, code or 0, said.getvalue(), told.getvalue())
