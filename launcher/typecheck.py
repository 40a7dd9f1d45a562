"""Does a value of a configuration fit the type that its parameter declares?

Strict where a mistake is likely (True is no int, a str is no Path, a list is no tuple), silent where it cannot know
(protocols, type variables, annotations that only a type checker can resolve). An int fits a float.
"""

from __future__ import annotations

import collections.abc
import inspect
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

from launcher.lazy_fiddle import fiddle


def hints(target: Any) -> dict[str, Any]:
    """The declared type of each parameter; one that cannot be resolved (a TYPE_CHECKING import) is left out."""
    found: dict[str, Any] = {}
    if typing.is_typeddict(target):
        return _resolve(target.__annotations__, vars(sys.modules[target.__module__]))
    if isinstance(target, type):
        # A dataclass's fields, else the constructor's parameters; each class's names mean what its module says.
        if "__dataclass_fields__" in target.__dict__:
            for base in reversed(target.__mro__):
                found |= _resolve(inspect.get_annotations(base), vars(sys.modules[base.__module__]))
            return found
        target = target.__init__  # type: ignore[misc]
    target = inspect.unwrap(target)
    return _resolve(getattr(target, "__annotations__", {}), getattr(target, "__globals__", {}))


def _resolve(annotations: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, annotation in annotations.items():
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            found |= typing.get_type_hints(holder, globalns=names)
        except (NameError, TypeError, AttributeError):
            continue
    found.pop("return", None)
    return found


def matches(value: Any, hint: Any) -> bool:
    """Whether `value` fits `hint`; True where that cannot be told."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint is None:
        return value is None
    if origin in (Union, types.UnionType):
        return any(matches(value, arg) for arg in args)
    if origin is typing.Annotated:
        return matches(value, args[0])
    if isinstance(value, fiddle.Buildable):
        return _builds(value, origin or hint)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    kind = origin or hint
    if kind is collections.abc.Callable:
        return callable(value)
    if not isinstance(kind, type) or kind is object or getattr(kind, "_is_protocol", False):
        return not isinstance(hint, typing.NewType) or matches(value, hint.__supertype__)
    if kind in (int, float, complex):
        wider = {int: (int,), float: (int, float), complex: (int, float, complex)}[kind]
        return isinstance(value, wider) and not isinstance(value, bool)
    if typing.is_typeddict(kind):
        return isinstance(value, dict)
    return isinstance(value, kind) and _contents_match(value, kind, args)


def _contents_match(value: Any, kind: type, args: tuple[Any, ...]) -> bool:
    if not args:
        return True
    if kind is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return all(matches(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(matches, value, args))
    if isinstance(value, collections.abc.Mapping) and len(args) == 2:
        return all(matches(key, args[0]) and matches(item, args[1]) for key, item in value.items())
    if isinstance(value, list | set | frozenset | tuple) and len(args) == 1:
        return all(matches(item, args[0]) for item in value)
    return True


def _builds(config: Any, kind: Any) -> bool:
    """Whether what a Config or Partial becomes can be a `kind`."""
    if not isinstance(kind, type) or kind is object or getattr(kind, "_is_protocol", False):
        return True
    if isinstance(config, fiddle.Partial):
        return kind is collections.abc.Callable
    target = fiddle.get_callable(config)
    if not isinstance(target, type):  # a function: what it returns is its own affair
        return True
    return issubclass(target, kind)


def describe(hint: Any) -> str:
    """A type as a person writes it: `int | None`, `Literal['a', 'b']`, `Trainer`."""
    if hint is None or hint is type(None):
        return "None"
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__qualname__
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " | ".join(describe(arg) for arg in typing.get_args(hint))
    return str(hint).replace("typing.", "").replace("collections.abc.", "").replace("pathlib.", "")


def suggest(value: Any, hint: Any) -> str | None:
    """What to type instead, where that is plain."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if option is Path and isinstance(value, str):
            return f"Path({value!r})"
        if typing.get_origin(option) is Literal:
            return " or ".join(repr(arg) for arg in typing.get_args(option))
        if option in (int, float) and isinstance(value, str):
            try:
                return repr(option(value))
            except ValueError:
                continue
        if option is int and isinstance(value, float) and value.is_integer():
            return repr(int(value))
        if typing.get_origin(option) is tuple and isinstance(value, list):
            return repr(tuple(value))
        if typing.get_origin(option) is list and isinstance(value, tuple | str):
            return repr([value] if isinstance(value, str) else list(value))
    return None
