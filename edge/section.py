"""What all parts of a recipe have in common."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Name", "Region", "Section", "beyond_loopback", "sha256_of"]

_LOOPBACK = re.compile(r"tcp://(127\.0\.0\.1|\[::1\]):.*")

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,30}$")]


class Section(BaseModel):
    """A part of a recipe: it never changes, and an unknown field is an error.

    `defer_build`: pydantic makes the validator of what is read, once, and not of every part when it is imported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Region(Section):
    """A rectangle of the frame, in its pixels."""

    x_px: int = Field(ge=0)
    y_px: int = Field(ge=0)
    width_px: int = Field(ge=1)
    height_px: int = Field(ge=1)


def beyond_loopback(endpoint: str) -> bool:
    """Whether a ZeroMQ endpoint reaches other machines."""
    return endpoint.startswith("tcp://") and not _LOOPBACK.fullmatch(endpoint)


def sha256_of(value: object) -> str:
    """Hash of what JSON can say, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
