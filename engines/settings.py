"""What can be set of an engine: `--set NAME=VALUE` of `maskline fit` and `compare`; `maskline engines NAME` lists it.

A setting is a field of the models that a bundle's manifest is made of, so what was set stands there. Its name is the
field's path: that of the architecture's as it is ("stripes", "corruption.kinds"), others after their section
("error_map.sigma_px", "score.kind", "fitting.batch"). Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import MasklineError
from engines.architecture import Architecture, RetouchArchitecture
from engines.bundle import DirectMap, ErrorMap, Score, SmoothedMap, SsimL1Map
from engines.registry import ENGINES, Fitting

__all__ = ["Setting", "Settings", "changed", "default_settings", "listed", "with_tiles"]

MAP_KIND = "error_map.kind"
ELSEWHERE = ("kind", "tile_px", "channels", "pixels", "fitting.steps", "fitting.seed", "fitting.every")
"""Fields that are no settings: what the engine is, what has an option of its own, the network that `retouch` takes from
`texture-s`, and how often a checkpoint is written."""
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


class Settings(BaseModel):
    """All that an engine is fitted and judged by."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    architecture: Annotated[Architecture, Field(discriminator="kind")]
    error_map: ErrorMap
    score: Score
    fitting: Fitting


@dataclass(frozen=True)
class Setting:
    """One of `listed`."""

    name: str
    value: object
    allowed: str
    """What it can be, in words."""
    meaning: str
    several: bool = False
    """Whether it is a list, however long: values with commas between them."""


def default_settings(engine: str, size: str | None = None) -> Settings:
    """Those of a size, or of the first. Raises MasklineError for an engine or a size that does not exist."""
    kind = ENGINES.get(engine)
    if kind is None:
        raise MasklineError(f"engine {engine!r}: there is no such engine; there are: {', '.join(ENGINES)}")
    size = size or next(iter(kind.sizes))
    if size not in kind.sizes:
        raise MasklineError(f"--size {size!r}: engine {engine!r} has the sizes {', '.join(kind.sizes)}")
    return Settings(architecture=kind.sizes[size], error_map=kind.error_map, score=kind.score, fitting=kind.fitting)


def with_tiles(settings: Settings, channels: int, tile_px: int | None) -> Settings:
    """The settings for tiles with other channels and, if wanted, of another size, which `changed` is to check."""
    a = settings.architecture
    said: dict[str, object] = {"channels": channels}
    if tile_px is not None and isinstance(a, RetouchArchitecture):
        said["pixels"] = a.pixels.model_copy(update={"tile_px": tile_px})
    elif tile_px is not None:
        said["tile_px"] = tile_px
    return settings.model_copy(update={"architecture": a.model_copy(update=said)})


def listed(settings: Settings) -> list[Setting]:
    """Every setting that there is, with its value, in the order of the fields."""
    maps = ", ".join(_maps(settings))
    return [
        *_fields(settings.architecture, ""),
        Setting(MAP_KIND, settings.error_map.kind, maps, "how the map is made; direct: by the network itself"),
        *_fields(settings.error_map, "error_map."),
        *_fields(settings.score, "score."),
        *_fields(settings.fitting, "fitting."),
    ]


def changed(settings: Settings, said: Sequence[str]) -> Settings:
    """The settings with those changed that are said, each as "NAME=VALUE", several values with commas between them.

    They are checked as a whole, also what was not changed. Another kind of map comes with its own defaults. Raises
    MasklineError for what is no setting or cannot be that.
    """
    asked = dict(map(_split, said))
    kind, maps = asked.get(MAP_KIND, settings.error_map.kind), _maps(settings)
    if kind in maps and kind != settings.error_map.kind:
        settings = settings.model_copy(update={"error_map": maps[kind]()})
    known, tree = {setting.name: setting for setting in listed(settings)}, settings.model_dump()
    for name, value in asked.items():
        if name not in known:
            raise MasklineError(
                f"--set {name}={value}: {_engine(settings)} has no such setting; it has {', '.join(known)}"
            )
        if name == MAP_KIND and value not in maps:
            raise MasklineError(f"--set {name}={value}: {_engine(settings)} can have {known[name].allowed}")
        *path, last = name.split(".") if name.split(".")[0] in tree else ["architecture", *name.split(".")]
        reduce(lambda branch, key: branch[key], path, tree)[last] = _value(value, known[name].several)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise MasklineError(_refusal(error, settings, asked)) from error


def _maps(settings: Settings) -> Mapping[str, type[SmoothedMap] | type[SsimL1Map] | type[DirectMap]]:
    """The kinds of map that can be made of what the network answers: one that draws its own has no other."""
    if isinstance(settings.error_map, DirectMap):
        return {"direct": DirectMap}
    return {"smoothed": SmoothedMap, "ssim_l1": SsimL1Map}


def _engine(settings: Settings) -> str:
    return f"engine {settings.architecture.kind!r}"


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name.strip()):
        raise MasklineError(f"--set {text}: expected NAME=VALUE, as in --set score.kind=max")
    return name.strip(), value.strip()


def _value(text: str, several: bool) -> object:
    """A number, true, false or null, as JSON has them; else the text itself."""
    if several or "," in text:
        return [_value(part.strip(), False) for part in text.split(",")]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _refusal(error: ValidationError, settings: Settings, asked: Mapping[str, str]) -> str:
    """The first thing that is wrong, with the setting whose fault it is, where it is only one's."""
    first = error.errors(include_url=False)[0]
    section, *where = map(str, first["loc"])
    if section in ("architecture", "error_map"):
        del where[0]  # the kind of it
    place = ".".join(where if section == "architecture" else [section, *where])
    said = next((f"--set {name}={asked[name]}" for name in asked if f"{place}.".startswith(f"{name}.")), None)
    what = said or ": ".join(filter(None, [_engine(settings), place]))
    message = first["msg"].removeprefix("Value error, ")
    return f"{what}: {message}; `maskline engines {settings.architecture.kind}` lists what can be set"


def _fields(model: BaseModel, before: str) -> Iterator[Setting]:
    schemas = model.model_json_schema()["properties"]
    for name, field in type(model).model_fields.items():
        value, path = getattr(model, name), before + name
        if path in (*ELSEWHERE, MAP_KIND):
            continue
        if isinstance(value, BaseModel):
            yield from _fields(value, f"{path}.")
        else:
            schema = schemas[name]
            yield Setting(path, value, _in_words(schema), field.description or "", schema.get("type") == "array")


def _in_words(schema: Mapping[str, Any]) -> str:
    """What a field's JSON schema allows."""
    if "anyOf" in schema:
        return " or ".join(map(_in_words, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema["type"] == "array":
        one, count = schema.get("items") or schema["prefixItems"][0], schema.get("maxItems")
        exact = count is not None and count == schema.get("minItems")
        return f"{count if exact else 'some'} of: {_in_words(one)}"
    return ", ".join([schema["type"], *(f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema)])
