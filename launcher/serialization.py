"""A configuration as our own versioned JSON (exact), and as YAML (for people).

JSON values stand for themselves; anything else is an object whose first key begins with "$" (see worker.Reader, which
reads them). References are `module:qualname`, or a file and a name for what the launch script itself defines. What is
shared in the configuration is shared in the file: `$id` where it first stands, `$same` after that. YAML is another
spelling of the same.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import json
import math
import os
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.config import Call, Config, Partial, arguments, where
from launcher.errors import LaunchError, SerializationError
from launcher.lazy_fiddle import fiddle
from launcher.tree import by_position, join, name_of
from launcher.worker import SCRIPT_MODULE, Reader

VERSION = 1


@contextlib.contextmanager
def _not_too_deep() -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise SerializationError("this configuration is nested too deep to be saved") from None


@_not_too_deep()
def dumps(value: Any) -> str:
    """The exact JSON document of a configuration. Raises SerializationError as `encode` does."""
    return json.dumps({"version": VERSION, "value": encode(value)}, indent=1)


def loads(text: str) -> Any:
    """The configuration that `dumps` wrote, equal to it.

    Raises SerializationError for what is not such a document, is of another version, or names what is not there.
    """
    try:
        document = json.loads(text)
        version = document["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SerializationError("this is not a configuration that the launcher saved") from None
    if version != VERSION:
        raise SerializationError(f"this configuration is of version {version}; this launcher reads version {VERSION}")
    try:
        return _ConfigReader().read(document["value"])
    except LaunchError as error:
        raise SerializationError(f"this configuration cannot be read here: {error.message}", hint=error.hint) from error
    except (ImportError, AttributeError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise SerializationError(f"this configuration cannot be read here: {type(error).__name__}: {error}") from error


class _ConfigReader(Reader):
    def call(self, target: Any, args: list[Any], kwargs: dict[str, Any], *, partial: bool) -> Any:
        return (Partial if partial else Config)(target, *args, **kwargs)


@_not_too_deep()
def encode(value: Any) -> Any:
    """A configuration as JSON values.

    Raises SerializationError for a lambda, a function inside a function, or a live object, with the path to it and
    the line that set it.
    """
    encoder = _Encoder()
    encoder.count(value)
    return encoder.node(value, "", None)


class _Encoder:
    def __init__(self) -> None:
        self._seen: dict[int, int] = {}  # id -> times it stands in the configuration
        self._given: dict[int, int] = {}  # id -> its number in the document
        self._open: set[int] = set()

    def count(self, value: Any) -> None:
        """Find what stands in more than one place. What cannot be changed has no identity worth keeping."""
        if not isinstance(value, fiddle.Buildable | list | dict | set | tuple):
            return
        if not isinstance(value, tuple):
            self._seen[id(value)] = self._seen.get(id(value), 0) + 1
            if self._seen[id(value)] > 1:
                return
        inner = arguments(value) if isinstance(value, fiddle.Buildable) else value
        for item in inner.values() if isinstance(inner, dict) else inner:
            self.count(item)

    def node(self, value: Any, path: str, set_at: str | None) -> Any:
        if self._seen.get(id(value), 0) < 2:
            return self._plain(value, path, set_at)
        if id(value) in self._open:
            raise SerializationError(f"{path or 'the task'} contains itself", where=set_at)
        if id(value) in self._given:
            return {"$same": self._given[id(value)]}
        self._given[id(value)] = number = len(self._given)
        self._open.add(id(value))
        node = {"$id": number, "value": self._plain(value, path, set_at)}
        self._open.remove(id(value))
        return node

    def _plain(self, value: Any, path: str, set_at: str | None) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}  # JSON itself has no NaN
        if isinstance(value, Call):
            return self._call(value, path)
        if kind is list:
            return [self.node(item, f"{path}[{index}]", set_at) for index, item in enumerate(value)]
        if kind is tuple:
            return {"$tuple": [self.node(item, f"{path}[{index}]", set_at) for index, item in enumerate(value)]}
        if kind in (set, frozenset):
            items = [self.node(item, f"{path}{{}}", set_at) for item in value]
            return {f"${kind.__name__}": sorted(items, key=json.dumps)}
        if kind is dict:
            pairs = [
                (self.node(key, f"{path} key", set_at), self.node(item, f"{path}[{key!r}]", set_at))
                for key, item in value.items()
            ]
            if all(type(key) is str and not key.startswith("$") for key in value):
                return dict(pairs)
            return {"$dict": [list(pair) for pair in pairs]}
        if isinstance(value, Path):
            return {"$path": str(value)}
        if isinstance(value, enum.Enum) and value.name in kind.__members__:
            return {"$enum": reference(kind, path, set_at), "name": value.name}
        if kind.__module__ == "torch" and kind.__name__ == "dtype":
            return {"$dtype": str(value)}
        if hasattr(value, "__qualname__") and hasattr(value, "__module__"):
            return {"$ref": reference(value, path, set_at)}
        hint = f"run.Config({kind.__qualname__}, ...)"
        if isinstance(value, functools.partial):
            hint = f"run.Partial({name_of(value.func)}, ...)"
        elif isinstance(value, int | float | str):
            hint = f"{next(base.__name__ for base in (int, float, str) if isinstance(value, base))}(...)"
        raise SerializationError(
            f"{path or 'the task'} is a live object of {kind.__module__}.{kind.__qualname__}: it can be used with "
            "direct=True alone",
            where=set_at,
            hint=hint,
        )

    def _call(self, config: Any, path: str) -> Any:
        node: dict[str, Any] = {
            "$partial" if isinstance(config, Partial) else "$config": reference(
                fiddle.get_callable(config), path, where(config, "__fn_or_cls__")
            )
        }
        encoded_at = {}
        explicit = fiddle.ordered_arguments(config)
        positions = by_position(config)
        for key, value in arguments(config).items():
            if isinstance(key, int) and key not in positions:
                continue  # a default by position
            inner = join(path, key)
            try:
                encoded_at[key] = self.node(value, inner, where(config, key))
            except SerializationError:
                if key in explicit or key in positions:
                    raise
                continue  # a default that only the function itself can hold, and it will
        if positions:
            node["positional"] = [encoded_at.pop(key) for key in positions]
        return {**node, "args": encoded_at}


def reference(target: Any, path: str = "", set_at: str | None = None) -> str | dict[str, str]:
    """How a function or class is found again: "module:qualname", or {"file", "name"} for the launch script's own.

    Raises SerializationError for what cannot be found again: a lambda, something local to a function, something that
    its module no longer knows by that name.
    """
    subject = path or "the task"
    qualname = getattr(target, "__qualname__", None)
    module_name = getattr(target, "__module__", None)
    if inspect.ismethod(target) and isinstance(target.__self__, type):  # a class method, also one that is inherited
        qualname, module_name = f"{target.__self__.__qualname__}.{target.__name__}", target.__self__.__module__
    if not qualname or not module_name:
        raise SerializationError(
            f"{subject} is {target!r}, which has no name to find it by",
            where=set_at,
            hint=f"{name_of(target.func)}, with the arguments given here"
            if isinstance(target, functools.partial)
            else "a function: def, at top level",
        )
    if "<lambda>" in qualname:
        raise SerializationError(
            f"{subject} is a lambda, which cannot be found again by name", where=set_at, hint="def, at top level"
        )
    if "<locals>" in qualname:
        raise SerializationError(
            f"{subject} is {qualname}, which is local to a function and cannot be found again by name",
            where=set_at,
            hint="move it to the top level of its file",
        )
    if inspect.ismethod(target) and not isinstance(target.__self__, type):
        raise SerializationError(
            f"{subject} is {qualname} of a live object, which cannot be found again by name",
            where=set_at,
            hint=f"a function that is given a run.Config({type(target.__self__).__qualname__}, ...)",
        )
    module = sys.modules.get(module_name)
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found != target:
        raise SerializationError(
            f"{subject} is {target!r}, but {module_name}.{qualname} is something else",
            where=set_at,
            hint=qualname if found is not None and typing.get_origin(target) is found else None,
        )
    if module_name not in ("__main__", SCRIPT_MODULE):
        return f"{module_name}:{qualname}"
    spec = getattr(module, "__spec__", None)
    if module_name == "__main__" and spec is not None and spec.name != "__main__":  # python -m package.module
        return f"{spec.name}:{qualname}"
    file = getattr(module, "__file__", None)
    known = file is not None and Path(file).is_file()
    if not known and spec is not None:  # python app.zip
        raise SerializationError(
            f"{subject} is {qualname} of {file}, which is not a file that can be loaded again",
            where=set_at,
            hint="a module beside it, which it imports",
        )
    if file is None or not known:
        raise SerializationError(
            f"{subject} is {qualname}, which was typed into an interactive session", where=set_at, hint="a file"
        )
    return {"file": str(Path(file).resolve()), "name": qualname}


@_not_too_deep()
def to_yaml(value: Any) -> str:
    """The YAML document of a configuration, for a person to read and change (see `launcher.yaml_format`).

    Raises SerializationError as `encode` does.
    """
    from launcher.yaml_format import write

    return write(encode(value))


def from_yaml(text: str, source: str | os.PathLike[str] = "<yaml>") -> Any:
    """The configuration that a YAML document describes, equal to what `to_yaml` wrote it from. What it leaves out has
    its default. `source` is the file it came from: where a value was set is then that file's line.

    Raises SerializationError for what cannot be read, ConfigError for a name that a target does not take.
    """
    from launcher.yaml_format import read

    return read(text, source)
