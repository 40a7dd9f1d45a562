"""Reading a configuration: what its arguments are, where each was set, what is nested in it, how two differ."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from launcher.errors import ConfigError
from launcher.lazy_fiddle import fiddle
from launcher.places import place


def arguments(config: Any) -> dict[int | str, Any]:
    """Every argument of a Config or Partial, defaults among them, by name (by position where it has no name)."""
    found: dict[int | str, Any] = fiddle.ordered_arguments(config, include_defaults=True)
    return found


def parameters(config: Any) -> dict[str, inspect.Parameter]:
    """What the target of a Config or Partial can be given, by name."""
    return dict(config.__signature_info__.parameters)


def has(config: Any, name: str) -> bool:
    """Whether a Config or Partial has an argument of this name, given or not."""
    parameter = parameters(config).get(name)
    named = parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    return named or name in config.__arguments__


def by_position(config: Any) -> list[int | str]:
    """The keys of the arguments that the call gives by position, in their order: what has no name, and what stands
    before it.

    Raises ConfigError where one of those is not set.
    """
    given, values = config.__arguments__, arguments(config)
    start = config.__signature_info__.var_positional_start
    variadic = [key for key in values if isinstance(key, int) and start is not None and key >= start]
    row: list[int | str] = []
    for index, parameter in enumerate(parameters(config).values()):
        if parameter.kind is parameter.POSITIONAL_ONLY:
            row.append(index)
        elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD and variadic:
            row.append(parameter.name)
    while row and not variadic and row[-1] not in given:
        row.pop()
    for key in row:
        if key not in values:
            name = list(parameters(config))[key] if isinstance(key, int) else key
            raise ConfigError(
                f"{name_of(fiddle.get_callable(config))}.{name} is not set, and what stands behind it is",
                where=where(config, (variadic or row)[-1]),
            )
    return row + variadic


def where(config: Any, name: str | int) -> str | None:
    """file:line of the statement that last set an argument; None if it was never set."""
    entries = config.__argument_history__.get(name)
    if not entries:
        return None
    location = entries[-1].location
    return place(location.filename, location.line_number)


def name_of(target: Any) -> str:
    return str(getattr(target, "__qualname__", target))


def show(value: Any) -> str:
    """A value, short, for an error."""
    if isinstance(value, fiddle.Buildable):
        whose = "fiddle's own" if type(value).__module__.startswith("fiddle.") else "a"
        return f"{whose} {type(value).__name__} of {name_of(fiddle.get_callable(value))}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def show_typed(value: Any) -> str:
    """The same with its type, for an error that is about the type."""
    return show(value) if isinstance(value, fiddle.Buildable) else f"{show(value)} ({type(value).__name__})"


def join(path: str, key: int | str) -> str:
    """The path of an argument of the configuration at `path`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def inside(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What stands directly in a configuration or container, each with its path."""
    if isinstance(value, fiddle.Buildable):
        yield from ((join(path, key), item) for key, item in fiddle.ordered_arguments(value).items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"{path}[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, dict):
        yield from ((f"{path}[{key!r}]", item) for key, item in value.items())


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every Config and Partial in a value, outermost first and each once, with its path; the value's own is ""."""
    seen: set[int] = set()
    waiting = [("", value)]
    while waiting:
        path, item = waiting.pop()
        if id(item) in seen:
            continue
        if isinstance(item, fiddle.Buildable | list | tuple | set | frozenset | dict):
            seen.add(id(item))
        if isinstance(item, fiddle.Buildable):
            yield path, item
        waiting += reversed(list(inside(item, path)))


class Difference(NamedTuple):
    """One value that differs: the path to it, what it was, what it is. UNSET where there was or is none."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path or 'the whole'}: {show(self.old)} -> {show(self.new)}"


class _Unset:
    def __repr__(self) -> str:
        return "unset"


UNSET: Final = _Unset()


class Shared(NamedTuple):
    """Stands in a Difference for something that was met before, at `path`: the same object, not an equal one."""

    path: str

    def __repr__(self) -> str:
        return f"the same object as {self.path or 'the whole'}"


def differences(old: Any, new: Any) -> Iterator[Difference]:
    """Where two values differ, as near to the leaves as it can be said; nothing where they are equal.

    Defaults count as if they were given, NaN equals NaN, and what is shared must be shared in both.
    """
    yield from _compare(old, new, "", {}, {})


def _compare(old: Any, new: Any, path: str, met: dict[int, str], met_new: dict[int, str]) -> Iterator[Difference]:
    if type(old) is not type(new) or not isinstance(old, fiddle.Buildable | list | dict | tuple):
        if not _same(old, new):
            yield Difference(path, old, new)
        return
    if not isinstance(old, tuple):
        before, now = met.get(id(old)), met_new.get(id(new))
        if before != now:
            yield Difference(path, old if before is None else Shared(before), new if now is None else Shared(now))
        if before is not None or now is not None:
            return
        met[id(old)] = met_new[id(new)] = path
    if isinstance(old, list | tuple):
        if len(old) != len(new):
            yield Difference(path, old, new)
        else:
            for index, pair in enumerate(zip(old, new, strict=True)):
                yield from _compare(*pair, f"{path}[{index}]", met, met_new)
        return
    paths = {key: f"{path}[{key!r}]" for key in [*old, *new]} if isinstance(old, dict) else None
    if paths is None:
        if fiddle.get_callable(old) != fiddle.get_callable(new):
            yield Difference(path, old, new)
            return
        old, new = arguments(old), arguments(new)
        paths = {key: join(path, key) for key in [*old, *new]}
    for key, inner in paths.items():
        if key in old and key in new:
            yield from _compare(old[key], new[key], inner, met, met_new)
        else:
            yield Difference(inner, old.get(key, UNSET), new.get(key, UNSET))


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, fiddle.Buildable) or isinstance(new, fiddle.Buildable):
        return False
    return old is new or bool(old == new or (old != old and new != new))
