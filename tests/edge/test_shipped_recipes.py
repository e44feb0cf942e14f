"""The recipes that ship: web.toml and conveyor.toml together name every field there is, as a manual that cannot lag."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from edge.recipes import load_recipe
from edge.section import Section
from edge.settings import Recipe

CONFIGS = Path(__file__).parents[2] / "configs"
COMMENTED_OUT = re.compile(r"^# (?=\[|[a-z0-9_]+ = )", re.MULTILINE)
ELSEWHERE = re.compile(r"actuators\.drivers\.(?!kind|endpoint)")
"""Of real drivers: docs/plc.md."""

Fields = dict[str, list[FieldInfo]]
"""Each field by its path; several where sections of different kinds stand in one place."""


def sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections that may stand in a field of this type."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from sections(argument)


def fields(section: type[Section], path: str = "") -> Fields:
    found: Fields = {}
    for name, info in section.model_fields.items():
        found.setdefault(path + name, []).append(info)
        for inner in sections(info.annotation):
            for below, infos in fields(inner, f"{path}{name}.").items():
                found.setdefault(below, []).extend(infos)
    return found


def values(table: dict[str, Any], known: Fields, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of each field in a table; what stands in no section is a value, such as `features`."""
    for name, value in table.items():
        at = path + name
        yield at, value
        if any(inner.startswith(f"{at}.") for inner in known):
            for row in value if isinstance(value, list) else [value]:
                yield from values(row, known, f"{at}.")


def named(recipe: str) -> list[tuple[str, Any]]:
    """What a recipe names, commented out or not."""
    text = COMMENTED_OUT.sub("", (CONFIGS / recipe).read_text(encoding="utf-8"))
    return list(values(tomllib.loads(text), fields(Recipe)))


def test_every_field_is_named() -> None:
    web, conveyor = ({path for path, _ in named(recipe)} for recipe in ("web.toml", "conveyor.toml"))
    there = {path for path in fields(Recipe) if not ELSEWHERE.match(path)}
    assert web - there == set(), "no such field"
    assert {p for p in there - web if not p.startswith("actuators.")} == set()
    assert {p for p in there - conveyor if p.startswith("actuators.")} == set()


@pytest.mark.parametrize("recipe", ["web.toml", "conveyor.toml"])
def test_what_is_commented_out_is_allowed(recipe: str) -> None:
    known = fields(Recipe)
    for path, value in named(recipe):
        if any(inner.startswith(f"{path}.") for inner in known):
            continue  # its own fields are looked at
        kinds = [TypeAdapter(Annotated[info.annotation, info]) for info in known[path]]
        assert any(_takes(kind, value) for kind in kinds), f"{recipe}: {path} = {value!r}"


def _takes(kind: TypeAdapter[Any], value: Any) -> bool:
    try:
        kind.validate_python(value)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("recipe", sorted(p.name for p in CONFIGS.glob("*.toml")))
def test_each_is_a_recipe(recipe: str) -> None:
    assert load_recipe(CONFIGS / recipe).simulated
