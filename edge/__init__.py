"""The runtime of maskline: from trigger to verdict."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
