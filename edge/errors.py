"""What a user did that cannot work, said in one sentence. The command line prints these without a traceback."""

from __future__ import annotations

__all__ = [
    "BundleError",
    "CalibrationError",
    "EngineError",
    "LineBusyError",
    "MasklineError",
    "RecipeError",
    "ResourceError",
    "SourceError",
    "StaleEngineError",
]

EXIT_ERROR = 1
EXIT_BUSY = 75
"""EX_TEMPFAIL of sysexits.h: something else holds what the line needs; starting a process again is no help."""
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: systemd does not restart a service that ends with it (RestartPreventExitStatus=78)."""
EXIT_STALE = 79
"""Of detect alone, and no code of sysexits.h: its engine must be built first; the supervisor lets the builder run."""


class MasklineError(Exception):
    """An error that the user can act on. The message names the thing, the value, what was expected and what to do."""

    exit_code = EXIT_ERROR


class RecipeError(MasklineError):
    """The recipe is missing, unreadable or wrong."""

    exit_code = EXIT_CONFIG


class BundleError(MasklineError):
    """A bundle is missing, incomplete or does not match its hashes."""

    exit_code = EXIT_CONFIG


class CalibrationError(MasklineError):
    """A calibration file cannot be read, or good parts are too few to compute one."""

    exit_code = EXIT_CONFIG


class EngineError(MasklineError):
    """A compiled engine is missing, stale, damaged or not verified, or what runs it is: driver, device, library."""

    exit_code = EXIT_CONFIG


class StaleEngineError(EngineError):
    """A compiled engine is missing, stale, damaged or was never verified: building it helps."""


class SourceError(MasklineError):
    """A source of frames cannot be opened or cannot go on."""


class LineBusyError(MasklineError):
    """Another supervisor runs this line, or a port that the recipe names is taken."""

    exit_code = EXIT_BUSY


class ResourceError(MasklineError):
    """The machine cannot give what the recipe needs: shared memory, disk, a directory."""
