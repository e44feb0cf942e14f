"""Reads a recipe: a TOML file with the environment on top of it, checked whole.

`MASKLINE__SECTION__FIELD=value` in the environment overrides a field.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, TomlConfigSettingsSource

from edge.errors import RecipeError
from edge.settings import Recipe, Section

__all__ = ["load_recipe", "shipped_recipe"]

ENV_PREFIX = "MASKLINE__"
MAX_RECIPE_BYTES = 1 << 20


def shipped_recipe(name: str) -> Path | None:
    """The path of a recipe that ships with the package (`configs/NAME.toml`), or None."""
    here = Path(__file__).resolve().parent
    for folder in (here / "configs", here.parent / "configs"):
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    return None


def load_recipe(path_or_name: str | Path) -> Recipe:
    """Read, resolve and check a recipe: a TOML file, or the name of one that ships.

    Relative paths in it are taken from the folder of the file. Raises RecipeError, which names the field, its value
    and what is allowed.
    """
    path = Path(path_or_name)
    if not path.is_file() and (shipped := shipped_recipe(str(path_or_name))):
        path = shipped
    try:
        if not stat.S_ISREG((about := path.stat()).st_mode):
            raise RecipeError(f"{path}: not a file. Name a TOML file, or a recipe that ships")
        if about.st_size > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes; that is no recipe")
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path}: cannot read this recipe: {error}. Name a TOML file, or a recipe that ships"
        ) from error
    _refuse_unknown_overrides(path)
    try:
        resolved = _reader(path)().model_dump()
        return Recipe.model_validate(_anchor_paths(resolved, path.resolve().parent))
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(path, e) for e in _causes(error))) from error
    except RecursionError as error:
        raise RecipeError(f"{path}: nested too deep; that is no recipe") from error
    except ValueError as error:  # tomllib.TOMLDecodeError, and JSON that does not parse in an override
        raise RecipeError(f"{path}: {error}") from error


def _reader(path: Path) -> type[BaseSettings]:
    """A settings class that reads this file, with the environment on top of it."""

    class RecipeFile(Recipe, BaseSettings):
        model_config = {"frozen": True, "extra": "forbid"}

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            environment = EnvSettingsSource(settings_cls, env_prefix=ENV_PREFIX, env_nested_delimiter="__")
            return environment, TomlConfigSettingsSource(settings_cls, toml_file=path)

    return RecipeFile


def _refuse_unknown_overrides(path: Path) -> None:
    for variable in os.environ:
        if not variable.upper().startswith(ENV_PREFIX):
            continue
        section, *fields = variable[len(ENV_PREFIX) :].lower().split("__")
        if section not in Recipe.model_fields:
            known = ", ".join(f"{ENV_PREFIX}{n.upper()}" for n in Recipe.model_fields)
            raise RecipeError(f"{path}: the environment sets {variable}, which overrides nothing; known: {known}")
        annotation = Recipe.model_fields[section].annotation
        known_fields = (
            annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, Section) else {}
        )
        if fields and section == "stations":
            raise RecipeError(
                f"{path}: the environment sets {variable}; {ENV_PREFIX}STATIONS overrides all stations at once, as JSON"
            )
        if fields and known_fields and fields[0] not in known_fields:
            raise RecipeError(
                f"{path}: the environment sets {variable}; [{section}] has only: {', '.join(known_fields)}"
            )


def _anchor_paths(resolved: dict[str, Any], folder: Path) -> dict[str, Any]:
    def anchor(value: Any) -> Any:
        if isinstance(value, Path):
            return folder / value.expanduser()
        if isinstance(value, dict):
            return {k: anchor(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [anchor(v) for v in value]
        return value

    for station in resolved["stations"]:
        bundle = Path(station["bundle"]).expanduser()
        if len(bundle.parts) != 1 or (folder / bundle / "manifest.json").is_file():  # else the name of one that ships
            station["bundle"] = str(folder / bundle)
    return {k: anchor(v) for k, v in resolved.items()}


def _causes(error: ValidationError) -> list[Any]:
    """The errors, without those that a list of stations is too short because its only station is wrong."""
    errors = error.errors()
    inner = any(len(e["loc"]) > 1 and e["loc"][0] == "stations" for e in errors)
    return [e for e in errors if not (inner and e["type"] == "too_short" and e["loc"] == ("stations",))]


def _explain(path: Path, error: Any) -> str:
    """`recipe.toml: deadline.deadline_ms = 3: input should be greater than or equal to 10; allowed: 10 to 600000`."""
    field = ".".join(str(part) for part in error["loc"]) or "recipe"
    variable = ENV_PREFIX + field.replace(".", "__").upper()
    where = f"{path}: {field}" + (f" (from {variable} in the environment)" if variable in os.environ else "")
    if error["type"] == "missing":
        return f"{where}: this field is required"
    if error["type"] == "extra_forbidden":
        return f"{where}: no such field; `maskline check` on a shipped recipe prints all that exist"
    value, message = error["input"], error["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(value, (dict, list)) else f" = {value!r}"
    return f"{where}{shown}: {message[0].lower()}{message[1:]}{_range(error['loc'])}"


def _range(location: tuple[str | int, ...]) -> str:
    """`; allowed: 10 to 600000` for the field of a bounded number, else nothing."""
    bounds: list[float] = []
    found: Any = Recipe
    for part in location:
        if isinstance(part, str):
            model = next((m for m in (found, *get_args(found)) if isinstance(m, type) and issubclass(m, Section)), None)
            if model is None or part not in model.model_fields:
                return ""
            found, limits = model.model_fields[part].annotation, model.model_fields[part].metadata
            bounds = [
                b
                for m in limits
                for n in ("gt", "ge", "lt", "le")
                if isinstance(b := getattr(m, n, None), (int, float))
            ]
    return f"; allowed: {' to '.join(map(str, sorted(bounds)))}" if len(bounds) == 2 else ""
