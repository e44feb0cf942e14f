"""What all parts of a recipe have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Name", "Section"]

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,30}$")]


class Section(BaseModel):
    """A part of a recipe: it never changes, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
