"""Config and Partial: a call that has not been made yet, whose every value can be changed first.

fiddle's, with what a recipe needs besides: defaults that are dataclasses or containers belong to the one recipe that
they came with, a misspelt name is refused with the nearest valid ones, and types are checked before anything runs.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from launcher import typecheck
from launcher.checks import check_of, kept_by
from launcher.errors import ConfigError, LaunchError, nearest
from launcher.lazy_fiddle import fiddle, history
from launcher.ownership import own_defaults, owned, signature
from launcher.places import caller
from launcher.tree import (
    Difference,
    by_position,
    differences,
    has,
    join,
    name_of,
    parameters,
    show,
    show_typed,
    walk,
)
from launcher.tree import (
    arguments as arguments,
)
from launcher.tree import (
    where as where,
)
from launcher.worker import LOADING

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

history.add_exclude_location(__file__)  # the line that set a value is the caller's, not ours

if TYPE_CHECKING:

    def _gives_way(method: F) -> F: ...

else:

    class _gives_way:
        """A method that is hidden by a parameter of its name: `config.walk` is the walk that the target takes."""

        def __init__(self, method):
            self._method = method
            functools.update_wrapper(self, method)

        def __get__(self, config, owner=None):
            if config is None:
                return self._method
            name = self._method.__name__
            if name in config.__arguments__ or name in parameters(config):
                return config.__getattr__(name)
            return self._method.__get__(config, owner)


class Call(fiddle.Buildable[T], Generic[T]):  # type: ignore[misc]  # fiddle has no types
    """What Config and Partial share: fiddle's Buildable, with our own defaults and errors."""

    def __init__(self, target: Callable[..., T], /, *args: Any, **kwargs: Any) -> None:
        if isinstance(target, fiddle.Buildable):
            raise ConfigError(f"{target!r} is a configuration already", where=caller(), hint="it.clone()")
        if not callable(target):
            raise ConfigError(f"{show(target)} is neither a function nor a class", where=caller())
        taken = signature(target)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            for name in kwargs:
                _require(name, target, list(taken))
        memo: dict[int, Any] = {}
        args = tuple(owned(value, memo) for value in args)
        kwargs = {name: owned(value, memo) for name, value in kwargs.items()}
        try:
            super().__init__(target, *args, **kwargs)
        except TypeError as error:
            said = error.__cause__ or error
            raise ConfigError(f"{name_of(target)} does not take these arguments: {said}", where=caller()) from None
        self._set_defaults(self.__arguments__.keys())

    def __setattr__(self, name: str, value: Any) -> None:
        _require_name(self, name)
        super().__setattr__(name, owned(value, {}))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, owned(value, {}))

    def __delattr__(self, name: str) -> None:
        """Back to its default, which is this configuration's own."""
        if name not in self.__arguments__:
            getattr(self, name)  # it has a default, and nothing is to be done, or this raises
            return
        super().__delattr__(name)
        self._set_defaults(parameters(self).keys() - {name} | self.__arguments__.keys())

    def _set_defaults(self, but: Container[int | str]) -> None:
        target = fiddle.get_callable(self)
        for key, default in list(own_defaults(target, signature(target), but)):
            if isinstance(key, int):
                super().__setitem__(key, default)
            else:
                super().__setattr__(key, default)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return super().__getattr__(name)
        except (AttributeError, ValueError):
            pass
        _require_name(self, name)
        raise ConfigError(f"{name_of(fiddle.get_callable(self))}.{name} is not set", where=caller())

    def __eq__(self, other: object) -> bool:
        """The same call with equal arguments, defaults among them, and the same things shared; NaN equals NaN."""
        return isinstance(other, Call) and next(differences(self, other), None) is None

    @_gives_way
    def clone(self, **changes: Any) -> Self:
        """A copy, with `changes` made to it, that shares nothing with this one that can be changed.

        Raises ConfigError for a live object that cannot be copied, and for a name that the target does not take.
        """
        try:
            copied = copy.deepcopy(self)
        except (TypeError, NotImplementedError) as error:
            raise ConfigError(
                f"a live object in this configuration cannot be copied: {error}", where=caller()
            ) from error
        except RecursionError:
            raise ConfigError("this configuration is nested too deep to be copied", where=caller()) from None
        for name, value in changes.items():
            setattr(copied, name, value)
        return copied

    @_gives_way
    def broadcast(self, **values: Any) -> Self:
        """Set each value here and in every nested configuration that takes an argument of its name.

        Returns this configuration. Raises ConfigError, and changes nothing, where none takes it.
        """
        return self._set_everywhere(values, lambda value, config: value)

    @_gives_way
    def walk(
        self, visit: Callable[[str, Call[Any]], object] | None = None, /, **functions: Callable[[Any], Any]
    ) -> Self:
        """Call `visit(path, config)` for this and every nested configuration, outermost first and each once; then set
        each named argument, wherever it is taken, to its function of the configuration that takes it:
        `recipe.walk(lr=lambda config: config.lr / 10)`.

        Returns this configuration. Raises ConfigError where no configuration takes such an argument.
        """
        if visit is not None:
            for path, config in list(walk(self)):
                visit(path, config)
        for name, function in functions.items():
            if not callable(function):
                raise ConfigError(
                    f"walk takes a function for {name}, not {show_typed(function)}",
                    where=caller(),
                    hint=f"broadcast({name}={show(function)})",
                )
        return self._set_everywhere(functions, lambda function, config: function(config))

    @_gives_way
    def diff(self, other: Any) -> list[Difference]:
        """What changes from this configuration to the other, a row a value: empty where they are equal.

        A row prints as `trainer.max_steps: 100 -> 500`. Lists are compared by index where their lengths are the same.
        """
        return list(differences(self, other))

    def _set_everywhere(self, given: dict[str, Any], value: Callable[[Any, Any], Any]) -> Self:
        configs = [config for _, config in walk(self)]
        for name in given:
            if not any(has(config, name) for config in configs):
                raise ConfigError(
                    f"nothing in this configuration takes an argument {name!r}",
                    where=caller(),
                    hint=nearest(name, {name for config in configs for name in parameters(config)}),
                )
        for name, item in given.items():
            for config in configs:
                if has(config, name):
                    setattr(config, name, value(item, config))
        return self


class Config(Call[T], fiddle.Config[T]):  # type: ignore[misc]
    """A call of `target` that is made when the task runs: `run.Config(Trainer, max_steps=100)`.

    A Config used in two places builds one object. Raises ConfigError for a name that `target` does not take.
    """


class Partial(Call[T], fiddle.Partial[T]):  # type: ignore[misc]
    """A task: `target` with its arguments bound, called when it runs: `run.Partial(finetune, model=..., data=...)`."""


_OPEN = object()


def build(value: Any) -> Any:
    """The objects that a configuration describes, made in this process: a Config's result, a Partial's partial.

    What a constructor raises is raised as it is.
    """
    return _build(value, {})


def _build(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        if memo[id(value)] is _OPEN:
            raise ConfigError(f"{show(value)} contains itself")
        return memo[id(value)]
    if isinstance(value, fiddle.Buildable | list | tuple | dict):
        memo[id(value)] = _OPEN
    built: Any
    if isinstance(value, Call):
        positions = by_position(value)
        given = {key: _build(argument, memo) for key, argument in fiddle.ordered_arguments(value).items()}
        args = [given[key] if key in given else arguments(value)[key] for key in positions]
        kwargs = {name: argument for name, argument in given.items() if name not in positions}
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
    for path, config in walk(task):
        if not isinstance(config, Call):
            raise ConfigError(f"{path} is {show(config)}", hint=f"a run.{type(config).__name__}")
        given = fiddle.ordered_arguments(config)
        for key, value in given.items():
            hint = typecheck.declared(config, key)
            if hint is not None and not typecheck.matches(value, hint):
                raise ConfigError(
                    f"{join(path, key)} is {show_typed(value)}, but {name_of(fiddle.get_callable(config))} takes "
                    f"{typecheck.describe(hint)}",
                    where=where(config, key),
                    hint=typecheck.suggest(value, hint),
                )
        if isinstance(config, Partial) and config is not task:
            continue  # whoever calls it gives the rest
        for index, (name, parameter) in enumerate(parameters(config).items()):
            if (
                parameter.default is parameter.empty
                and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
                and (index if parameter.kind is parameter.POSITIONAL_ONLY else name) not in given
            ):
                alone = ", by position" if parameter.kind is parameter.POSITIONAL_ONLY else ""
                raise ConfigError(
                    f"{join(path, name)} is missing: {name_of(fiddle.get_callable(config))} requires it{alone}",
                    where=where(config, "__fn_or_cls__"),
                    hint=None if alone else f"{join(path, name)}=...",
                )


def _require_name(config: Call[Any], name: str) -> None:
    """Refuse what is no argument of a configuration, or one that has no name in a call."""
    target, taken = fiddle.get_callable(config), parameters(config)
    kind = taken[name].kind if name in taken else None
    if kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
        raise ConfigError(
            f"{name_of(target)} takes {name!r} by position alone",
            where=caller(),
            hint=f"config[{list(taken).index(name)}]",
        )
    if not config.__signature_info__.has_var_keyword:
        _require(name, target, list(taken))


def _require(name: str, target: Any, valid: list[str]) -> None:
    if name not in valid:
        raise ConfigError(
            f"{name_of(target)} has no parameter {name!r}; it has {', '.join(valid) or 'none'}",
            where=caller(),
            hint=nearest(name, valid),
        )


def check_task(task: Any, ranks: int = 1) -> None:
    """Refuse what cannot be run: anything but a Config or a Partial, a wrong value in it (see `check`), and what the
    task's own check has against it (see launcher.checks). `ranks` is the number of processes that will call it.

    Raises ConfigError; LaunchError where a launch script without a guard is being loaded by its own job.
    """
    task_name(task)
    if script := os.environ.get(LOADING):
        raise LaunchError(
            f"{script} launches while a job is loading it: it would launch itself for ever",
            hint='put the launch under `if __name__ == "__main__":`',
        )
    check(task)
    own_check = check_of(fiddle.get_callable(task))
    if own_check is not None:
        own_check(task, ranks)


def kept_path(task: Call[Any], environment: Mapping[str, str]) -> tuple[str, str, str | None] | None:
    """Where a task that runs in this environment leaves something for good, as far as its function says (see
    launcher.checks.keeps).

    The argument's name, its value, and file:line of what set it.
    """
    kept = kept_by(fiddle.get_callable(task))
    if kept is None:
        return None
    value: Any = task
    set_at = None
    for part in kept.argument.split("."):
        if isinstance(value, fiddle.Buildable):
            set_at = where(value, part)
            value = arguments(value).get(part)
        else:
            value = getattr(value, part, None)
    if value is None:
        value = environment.get(kept.variable or "") or kept.otherwise
    return (kept.argument, os.fspath(value), set_at) if isinstance(value, str | os.PathLike) else None


def task_name(task: Any) -> str:
    """The name a task has by itself: that of what it calls. Raises ConfigError for what is not a task."""
    if not isinstance(task, Call):
        target = fiddle.get_callable(task) if isinstance(task, fiddle.Buildable) else task
        hint = f"run.Partial({name_of(target)}, ...)" if callable(target) else None
        raise ConfigError(f"{show_typed(task)} is not a task: a task is a run.Partial or a run.Config", hint=hint)
    return name_of(fiddle.get_callable(task)).rpartition(".")[2]
