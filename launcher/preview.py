"""The table of a task's resolved arguments: what would run, value by value, and where each was set."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.lazy_fiddle import fiddle
from launcher.tree import arguments, inside, join, name_of, parameters, where

_WIDTH = 60  # of a value; what is longer is cut off, and whole in the YAML


def table(task: Any) -> str:
    """Rows of "name | value | set at", aligned, the nested by dotted paths; a value that nobody set has no place.

    A Config shows as the name of what it calls, what is shared as the path where it stands first, and a value that is
    required and was not given as "(missing)". Plain text without a newline at the end.
    """
    rows = [("name", "value", "set at"), *_rows(task, "", None, {})]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {value:{widths[1]}}  {place}".rstrip() for name, value, place in rows)


def _rows(value: Any, path: str, set_at: str | None, met: dict[int, str]) -> Iterator[tuple[str, str, str]]:
    if id(value) in met:
        yield path, f"= {met[id(value)]}", set_at or ""
    elif isinstance(value, fiddle.Buildable):
        met[id(value)] = path
        yield path or "task", name_of(fiddle.get_callable(value)), set_at or ""
        given = arguments(value)
        for key, item in given.items():
            yield from _rows(item, join(path, key), where(value, key), met)
        for name, parameter in parameters(value).items():
            needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
            if needed and name not in given and parameter.kind is not parameter.VAR_KEYWORD:
                yield join(path, name), "(missing)", ""
    elif isinstance(value, list | tuple | set | dict) and _holds_configs(value):
        met[id(value)] = path
        for inner, item in inside(value, path):
            yield from _rows(item, inner, set_at, met)
    else:
        yield path, _clip(shown(value)), set_at or ""


def _holds_configs(value: Any) -> bool:
    return isinstance(value, fiddle.Buildable) or any(_holds_configs(item) for _, item in inside(value))


def shown(value: Any) -> str:
    """A plain value as a person would write it in a launch script, on one line."""
    if isinstance(value, Path):
        return f"Path({str(value)!r})"
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if type(value) in (list, tuple, set):
        items = ", ".join(shown(item) for item in value)
        if type(value) is tuple:
            return f"({items},)" if len(value) == 1 else f"({items})"
        return f"[{items}]" if type(value) is list else f"{{{items}}}" if value else "set()"
    if type(value) is dict:
        return "{" + ", ".join(f"{shown(key)}: {shown(item)}" for key, item in value.items()) + "}"
    return name_of(value) if callable(value) else repr(value)


def _clip(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
