"""Whose a value is: what a recipe is given or has by default becomes its own, so that changing it changes no other."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Container, Iterator, Mapping
from typing import Any

from launcher.errors import ConfigError
from launcher.lazy_fiddle import fiddle, history
from launcher.places import caller
from launcher.tree import name_of, show

history.add_exclude_location(__file__)


def owned(value: Any, memo: dict[int, Any]) -> Any:
    """A dataclass instance as a Config of its own, however deep in containers, and fiddle's own configurations as ours;
    anything else as it is.

    A value that needs no change keeps its identity, so that what a person shares stays shared.
    Raises ConfigError for what cannot be taken apart, and for a container that contains itself.
    """
    if id(value) in memo:
        if memo[id(value)] is None:
            raise ConfigError(f"this {type(value).__name__} contains itself", where=caller())
        return memo[id(value)][0]
    memo[id(value)] = None
    changed: Any = value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = _from_instance(value, memo)
    elif isinstance(value, fiddle.Buildable):
        changed = _from_fiddle(value, memo)
    elif type(value) in (list, tuple):
        items = [owned(item, memo) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            changed = type(value)(items)
    elif type(value) is dict:
        pairs = {key: owned(item, memo) for key, item in value.items()}
        if any(pairs[key] is not value[key] for key in value):
            changed = pairs
    memo[id(value)] = (changed, value)  # the value too: its id must not be given to another meanwhile
    return changed


def _from_instance(value: Any, memo: dict[int, Any]) -> Any:
    from launcher.config import Config

    cls = type(value).__name__
    taken = {field.name for field in dataclasses.fields(value) if field.init}
    init_only = {name for name, field in value.__dataclass_fields__.items() if field not in dataclasses.fields(value)}
    for name, parameter in signature(type(value)).items():
        if name not in taken and (parameter.default is parameter.empty or name in init_only):
            raise ConfigError(
                f"this {cls} cannot be taken apart: it does not keep its argument {name!r}",
                where=caller(),
                hint=f"run.Config({cls}, ...)",
            )
    _require_same_again(value, taken)
    # Containers are copied: the instance stays the caller's own.
    fields = {name: owned(_copied(getattr(value, name)), memo) for name in taken}
    return Config(type(value), **fields)


def _require_same_again(value: Any, taken: set[str]) -> None:
    """Refuse an instance whose __post_init__ changes what it was given: made again, it would be changed again."""
    if not hasattr(value, "__post_init__"):
        return
    fields = {name: getattr(value, name) for name in taken}
    try:
        again = type(value)(**fields)
    except Exception:  # the class's own, whatever it may be; it comes when the task is built
        return
    for name, old in fields.items():
        new = getattr(again, name)
        if isinstance(old, _PLAIN) and isinstance(new, _PLAIN) and old != new and old == old:
            raise ConfigError(
                f"this {type(value).__name__} cannot be taken apart: made again from its fields, its {name} is "
                f"{show(new)} and not {show(old)}",
                where=caller(),
                hint=f"run.Config({type(value).__name__}, ...)",
            )


_PLAIN = (bool, int, float, str, type(None))


def _from_fiddle(value: Any, memo: dict[int, Any]) -> Any:
    from launcher.config import Call, Config, Partial

    kinds = {fiddle.Config: Config, fiddle.Partial: Partial}
    if isinstance(value, Call):
        return value
    if type(value) not in kinds:
        raise ConfigError(
            f"{show(value)} has no equal here", where=caller(), hint="run.Config(...) or run.Partial(...)"
        )
    given = {key: owned(item, memo) for key, item in value.__arguments__.items()}
    args, kwargs = value.__signature_info__.transform_to_args_kwargs(given)
    return kinds[type(value)](fiddle.get_callable(value), *args, **kwargs)


def _copied(value: Any) -> Any:
    """What could be changed in place, copied; live objects in it stay themselves."""
    if isinstance(value, fiddle.Buildable):
        return copy.deepcopy(value)
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, set):
        return type(value)(_copied(item) for item in value)
    if type(value) is tuple:
        items = [_copied(item) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else tuple(items)
    return copy.copy(value) if isinstance(value, list | dict | set) else value


def own_defaults(
    target: Any, parameters: Mapping[str, inspect.Parameter], given: Container[int | str]
) -> Iterator[tuple[int | str, Any]]:
    """The defaults that could be changed in place, but for what is given: each recipe gets its own, as Configs where
    they are dataclasses. Raises ConfigError, naming the argument, for one that cannot be taken apart."""
    factories: dict[str, Any] = {}
    if dataclasses.is_dataclass(target):
        factories = {field.name: field.default_factory for field in dataclasses.fields(target)}
    for index, (name, parameter) in enumerate(parameters.items()):
        key = index if parameter.kind is parameter.POSITIONAL_ONLY else name
        if key in given:
            continue
        default = parameter.default
        if factories.get(name, dataclasses.MISSING) is not dataclasses.MISSING:
            default = factories[name]()
        elif default is parameter.empty:
            continue
        try:
            own = owned(_copied(default), {})
        except ConfigError as error:
            raise ConfigError(
                f"{name_of(target)} has a default that must be given, {name}: {error.message}",
                where=caller(),
                hint=f"{name}={error.hint}" if error.hint else None,
            ) from None
        if isinstance(own, fiddle.Buildable | list | dict | set) or own is not default:
            yield key, own


def signature(target: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except ValueError:  # a builtin such as dict, which says nothing of its arguments
        if isinstance(target, type):
            return inspect.signature(target.__call__).parameters
        raise ConfigError(
            f"{name_of(target)} does not say what arguments it takes", where=caller(), hint="a function that calls it"
        ) from None
