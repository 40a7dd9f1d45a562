"""Config and Partial: a call that has not been made yet, whose every value can be changed first.

fiddle's, with what a recipe needs besides: defaults that are dataclasses or containers belong to the one recipe that
they came with, a misspelt name is refused with the nearest valid ones, and types are checked before anything runs.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from launcher import typecheck
from launcher.errors import ConfigError, LaunchError, nearest
from launcher.lazy_fiddle import fiddle, history
from launcher.worker import LOADING

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_CHECK = "__launch_check__"

history.add_exclude_location(__file__)  # the line that set a value is the caller's, not ours


class Call(fiddle.Buildable[T]):  # type: ignore[misc]  # fiddle has no types
    """What Config and Partial share: fiddle's Buildable, with our own defaults and errors."""

    def __init__(self, target: Callable[..., T], /, *args: Any, **kwargs: Any) -> None:
        if isinstance(target, fiddle.Buildable):
            raise ConfigError(f"{target!r} is a configuration already", where=_caller(), hint="copy.deepcopy(it)")
        if not callable(target):
            raise ConfigError(f"{target!r} is neither a function nor a class", where=_caller())
        parameters = _signature(target)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            for name in kwargs:
                _require(name, target, list(parameters))
        memo: dict[int, Any] = {}
        args = tuple(_owned(value, memo) for value in args)
        kwargs = {name: _owned(value, memo) for name, value in kwargs.items()}
        try:
            super().__init__(target, *args, **kwargs)
        except TypeError as error:
            raise ConfigError(f"{_name(target)} does not take these arguments: {error}", where=_caller()) from None
        for name, default in _defaults(target, parameters):
            if name not in fiddle.ordered_arguments(self):
                super().__setattr__(name, default)

    def __setattr__(self, name: str, value: Any) -> None:
        if not self.__signature_info__.has_var_keyword:
            _require(name, fiddle.get_callable(self), list(_parameters(self)))
        super().__setattr__(name, _owned(value, {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return super().__getattr__(name)
        except (AttributeError, ValueError):
            pass
        target, parameters = fiddle.get_callable(self), _parameters(self)
        if name not in parameters:
            _require(name, target, [*parameters])
        raise ConfigError(f"{_name(target)}.{name} is not set", where=_caller())

    def __eq__(self, other: object) -> bool:
        """The same call with equal arguments, defaults among them, and the same things shared; NaN equals NaN."""
        return isinstance(other, Call) and _equal(self, other, {}, {})


class Config(Call[T], fiddle.Config[T]):  # type: ignore[misc]
    """A call of `target` that is made when the task runs: `run.Config(Trainer, max_steps=100)`.

    A Config used in two places builds one object. Raises ConfigError for a name that `target` does not take.
    """


class Partial(Call[T], fiddle.Partial[T]):  # type: ignore[misc]
    """A task: `target` with its arguments bound, called when it runs: `run.Partial(finetune, model=..., data=...)`."""


def build(value: Any) -> Any:
    """The objects that a configuration describes, made in this process: a Config's result, a Partial's partial.

    What a constructor raises is raised as it is.
    """
    return _build(value, {})


def _build(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    built: Any
    if isinstance(value, fiddle.Buildable):
        given = {key: _build(argument, memo) for key, argument in fiddle.ordered_arguments(value).items()}
        args, kwargs = value.__signature_info__.transform_to_args_kwargs(given)
        target = fiddle.get_callable(value)
        built = functools.partial(target, *args, **kwargs) if isinstance(value, Partial) else target(*args, **kwargs)
    elif type(value) in (list, tuple, set, frozenset):
        built = type(value)(_build(item, memo) for item in value)
    elif type(value) is dict:
        built = {key: _build(item, memo) for key, item in value.items()}
    else:
        return value
    memo[id(value)] = built
    return built


def check(task: Any) -> None:
    """Check every value of a task against the type that its parameter declares, and that nothing required is missing.

    Raises ConfigError naming the value, its type, where it was set, and what belongs there.
    """
    seen: set[int] = set()
    for path, config, is_task in _walk(task, "", seen, True):
        hints = typecheck.hints(fiddle.get_callable(config))
        given = fiddle.ordered_arguments(config)
        for key, value in given.items():
            if key in hints and not typecheck.matches(value, hints[key]):
                raise ConfigError(
                    f"{path}{key} is {_show(value)}, but {_name(fiddle.get_callable(config))} takes "
                    f"{typecheck.describe(hints[key])}",
                    where=where(config, key),
                    hint=typecheck.suggest(value, hints[key]),
                )
        if isinstance(config, Partial) and not is_task:
            continue  # whoever calls it gives the rest
        for name, parameter in _parameters(config).items():
            if (
                parameter.default is parameter.empty
                and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
                and name not in given
            ):
                raise ConfigError(
                    f"{path}{name} is missing: {_name(fiddle.get_callable(config))} requires it",
                    where=where(config, "__fn_or_cls__"),
                )


def where(config: Any, name: str | int) -> str | None:
    """file:line of the statement that last set an argument; None if it was never set."""
    entries = config.__argument_history__.get(name)
    if not entries:
        return None
    location = entries[-1].location
    return _place(location.filename, location.line_number)


def arguments(config: Any) -> dict[int | str, Any]:
    """Every argument of a Config or Partial, defaults among them, by name (by position where it has no name)."""
    found: dict[int | str, Any] = fiddle.ordered_arguments(config, include_defaults=True)
    return found


def _equal(one: Any, other: Any, there: dict[int, int], back: dict[int, int]) -> bool:
    """Equality that sees sharing: `there` and `back` pair what has been met in one with what stood in the other."""
    if type(one) is not type(other):
        return not isinstance(one, Call) and not isinstance(other, Call) and bool(one == other)
    if not isinstance(one, Call | list | dict | tuple):
        return bool(one == other or (one != one and other != other))
    if not isinstance(one, tuple):
        if id(one) in there or id(other) in back:
            return there.get(id(one)) == id(other) and back.get(id(other)) == id(one)
        there[id(one)], back[id(other)] = id(other), id(one)
    if isinstance(one, Call):
        if fiddle.get_callable(one) != fiddle.get_callable(other):
            return False
        one, other = arguments(one), arguments(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key], there, back) for key in one)
    return len(one) == len(other) and all(_equal(a, b, there, back) for a, b in zip(one, other, strict=True))


def _walk(value: Any, path: str, seen: set[int], is_task: bool) -> Iterator[tuple[str, Any, bool]]:
    """Every Config and Partial under a value, once, with the path to its arguments ("trainer.")."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, fiddle.Buildable):
        yield path, value, is_task
        items = ((f"{path}{key}", item) for key, item in fiddle.ordered_arguments(value).items())
    elif isinstance(value, list | tuple | set | frozenset):
        items = ((f"{path[:-1]}[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, dict):
        items = ((f"{path[:-1]}[{key!r}]", item) for key, item in value.items())
    else:
        return
    for inner, item in items:
        yield from _walk(item, inner + ".", seen, False)


def _owned(value: Any, memo: dict[int, Any]) -> Any:
    """A dataclass instance as a Config of its own, however deep in containers; anything else as it is.

    A value that needs no change keeps its identity, so that what a person shares stays shared.
    """
    if id(value) in memo:
        return memo[id(value)][0]
    changed: Any = value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = _from_instance(value, memo)
    elif type(value) in (list, tuple):
        items = [_owned(item, memo) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            changed = type(value)(items)
    elif type(value) is dict:
        pairs = {key: _owned(item, memo) for key, item in value.items()}
        if any(pairs[key] is not value[key] for key in value):
            changed = pairs
    memo[id(value)] = (changed, value)  # the value too: its id must not be given to another meanwhile
    return changed


def _from_instance(value: Any, memo: dict[int, Any]) -> Any:
    taken = {field.name for field in dataclasses.fields(value) if field.init}
    for name, parameter in _signature(type(value)).items():
        if name not in taken and parameter.default is parameter.empty:
            cls = type(value).__name__
            raise ConfigError(
                f"this {cls} cannot be taken apart: it does not keep its argument {name!r}",
                where=_caller(),
                hint=f"run.Config({cls}, ...)",
            )
    # Containers are copied: the instance stays the caller's own.
    fields = {name: _owned(_copied(getattr(value, name)), memo) for name in taken}
    return Config(type(value), **fields)


def _copied(value: Any) -> Any:
    """What could be changed in place, copied; live objects in it stay themselves."""
    if isinstance(value, fiddle.Buildable):
        return copy.deepcopy(value)
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(_copied(item) for item in value) if type(value) in (list, set) else value


def _defaults(target: Any, parameters: Mapping[str, inspect.Parameter]) -> Iterator[tuple[str, Any]]:
    """The defaults that could be changed in place: each recipe gets its own, as Configs where they are dataclasses."""
    factories: dict[str, Any] = {}
    if dataclasses.is_dataclass(target):
        factories = {field.name: field.default_factory for field in dataclasses.fields(target)}
    for name, parameter in parameters.items():
        default = parameter.default
        if factories.get(name, dataclasses.MISSING) is not dataclasses.MISSING:
            default = factories[name]()
        elif default is parameter.empty:
            continue
        own = _owned(_copied(default), {})
        if isinstance(own, fiddle.Buildable | list | dict | set) or own is not default:
            yield name, own


def _signature(target: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except ValueError:  # a builtin such as dict, which says nothing of its arguments
        return inspect.signature(target.__call__).parameters


def _parameters(config: Any) -> dict[str, inspect.Parameter]:
    return dict(config.__signature_info__.parameters)


def _require(name: str, target: Any, valid: list[str]) -> None:
    if name not in valid:
        raise ConfigError(
            f"{_name(target)} has no parameter {name!r}; it has {', '.join(valid) or 'none'}",
            where=_caller(),
            hint=nearest(name, valid),
        )


def _name(target: Any) -> str:
    return str(getattr(target, "__qualname__", target))


def _show(value: Any) -> str:
    if isinstance(value, fiddle.Buildable):
        return f"a {type(value).__name__} of {_name(fiddle.get_callable(value))}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _caller() -> str | None:
    """file:line of the nearest frame that is neither ours nor fiddle's."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and "/fiddle/_src/" not in file:
            return _place(file, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _place(file: str, line: int) -> str:
    path = Path(file)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{path}:{line}"


def checked_by(check: Callable[[Any, int], None]) -> Callable[[F], F]:
    """A decorator: before a task of this function runs, `check` sees the task and the number of its processes.

    It raises a LaunchError for what cannot work there, so that it is known before anything is queued.
    """

    def mark(function: F) -> F:
        function.__dict__[_CHECK] = check
        return function

    return mark


def check_task(task: Any, ranks: int = 1) -> None:
    """Refuse what cannot be run: anything but a Config or a Partial, a wrong value in it (see `check`), and what the
    task's own check has against it (see `checked_by`). `ranks` is the number of processes that will call it.

    Raises ConfigError; LaunchError where a launch script without a guard is being loaded by its own job.
    """
    task_name(task)
    if script := os.environ.get(LOADING):
        raise LaunchError(
            f"{script} launches while a job is loading it: it would launch itself for ever",
            hint='put the launch under `if __name__ == "__main__":`',
        )
    check(task)
    own_check = getattr(fiddle.get_callable(task), _CHECK, None)
    if own_check is not None:
        own_check(task, ranks)


def task_name(task: Any) -> str:
    """The name a task has by itself: that of what it calls. Raises ConfigError for what is not a task."""
    if not isinstance(task, Call):
        hint = f"run.Partial({_name(task)}, ...)" if callable(task) else None
        raise ConfigError(f"{_show(task)} is not a task: a task is a run.Partial or a run.Config", hint=hint)
    return _name(fiddle.get_callable(task)).rpartition(".")[2]
