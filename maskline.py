"""The command `maskline`: makes sure that Python finds our packages and nobody else's, then runs the command line.

Our import packages have common names. Where another `edge`, `engines` or `calib` comes first on Python's path, an
import takes foreign code or ends in a traceback about a missing module. This module's own name is rare, so it can tell.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

__all__ = ["foreign_packages", "main"]

PACKAGES = ("edge", "engines", "calib")
EXIT_CONFIG = 78  # edge.errors.EXIT_CONFIG, which may not be importable here


def foreign_packages(home: Path) -> list[str]:
    """One sentence for each of our packages that Python would not take from `home`; empty when all is well.

    Imports none of them: a foreign package is looked up, not run.
    """
    complaints = []
    for name in PACKAGES:
        ours = home / name / "__init__.py"
        spec = importlib.util.find_spec(name)
        if spec is None:
            complaints.append(f"the package `{name}` is not installed (expected at {ours.parent}).")
        elif spec.origin is None or Path(spec.origin).resolve() != ours.resolve():
            found = spec.origin or ", ".join(spec.submodule_search_locations or ())
            complaints.append(f"another package `{name}` at {found} shadows ours at {ours.parent}.")
    return complaints


def main() -> None:
    """Entry point of the command. Exits with 78 and says what to do when our packages are shadowed or incomplete."""
    complaints = foreign_packages(Path(__file__).resolve().parent)
    if not complaints:
        try:
            from edge.cli import main as run
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in PACKAGES:
                raise
            complaints = [f"the installation is damaged, perhaps overwritten by another package: {error}."]
        else:
            run()
            return
    advice = (
        "Take the other package off Python's path (PYTHONPATH, the current folder), or install maskline into an "
        "environment of its own: python3 -m venv DIR && DIR/bin/pip install maskline"
    )
    print(f"maskline: {' '.join(complaints)} {advice}", file=sys.stderr)  # noqa: T201 - nothing of ours can be imported
    sys.exit(EXIT_CONFIG)


if __name__ == "__main__":
    main()
