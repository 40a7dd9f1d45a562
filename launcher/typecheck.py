"""Does a value of a configuration fit the type that its parameter declares?

Strict where a mistake is likely (True is no int, a str is no Path, a list is no tuple), silent where it cannot know
(protocols, type variables, annotations that only a type checker can resolve). An int fits a float.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
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
        # The fields of a dataclass or NamedTuple, else the constructor's parameters; each class's names mean what its
        # module says.
        if not target.__dict__.keys().isdisjoint(("__dataclass_fields__", "_fields")):
            for base in reversed(target.__mro__):
                found |= _resolve(inspect.get_annotations(base), vars(sys.modules[base.__module__]))
            return found
        target = target.__new__ if target.__init__ is object.__init__ else target.__init__  # type: ignore[misc]
    while isinstance(target, functools.partial):
        target = target.func
    target = inspect.unwrap(target)
    return _resolve(getattr(target, "__annotations__", {}), getattr(target, "__globals__", {}))


def declared(config: Any, key: int | str) -> Any:
    """The declared type of an argument of a configuration, also of one that `*args` or `**kwargs` takes; None where it
    is not known."""
    taken = list(config.__signature_info__.parameters.values())
    known = hints(fiddle.get_callable(config))
    stars = {item.kind: item.name for item in taken if item.kind in (item.VAR_POSITIONAL, item.VAR_KEYWORD)}
    if isinstance(key, int):
        named = next((item for item in taken[: key + 1] if item.kind is item.VAR_POSITIONAL), None)
        return known.get(named.name if named is not None else taken[key].name)
    if key not in stars.values() and (key in known or any(item.name == key for item in taken)):
        return known.get(key)
    return known.get(stars.get(inspect.Parameter.VAR_KEYWORD, key))


def _resolve(annotations: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, annotation in annotations.items():
        holder = type("holder", (), {"__annotations__": {name: annotation}})  # of a class, it may be Final
        try:
            (hint,) = typing.get_type_hints(holder, globalns=names).values()
        except (NameError, TypeError, AttributeError):
            continue
        if typing.get_origin(hint) is typing.Final:
            (hint,) = typing.get_args(hint)
        found[name] = hint.type if isinstance(hint, dataclasses.InitVar) else hint
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
        row: Any = kind
        fields = hints(row)
        return (
            isinstance(value, dict)
            and row.__required_keys__ <= value.keys() <= row.__annotations__.keys()
            and all(matches(item, fields.get(key, Any)) for key, item in value.items())
        )
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
    if kind is type and isinstance(args[0], type):
        return issubclass(value, args[0])
    if isinstance(value, str) and len(args) == 1:
        return matches("", args[0])
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
            return " or ".join(
                f"{type(arg).__name__}.{arg.name}" if isinstance(arg, enum.Enum) else repr(arg)
                for arg in typing.get_args(option)
            )
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
