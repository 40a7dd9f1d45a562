"""autoconvert: a function that builds objects, as one that gives their configuration."""

from __future__ import annotations

import enum
import functools
import inspect
import pathlib
import re
import typing
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, overload

from launcher import no_fiddle
from launcher.config import Call, Config, Partial
from launcher.errors import ConfigError
from launcher.lazy_fiddle import fiddle, history
from launcher.places import caller, place
from launcher.tree import name_of, show_typed

P = ParamSpec("P")
T = TypeVar("T")

MADE = "__launch_autoconverted__"  # of a function that was: Config or Partial, which it gives
_CALL_NAME = re.compile(r"(\w+\.)*(Config|Partial|Call)(\[.*)?")

history.add_exclude_location(__file__)


@overload
def autoconvert(function: Callable[P, Config[T]], /) -> Callable[P, Config[T]]: ...
@overload
def autoconvert(function: Callable[P, Partial[T]], /) -> Callable[P, Partial[T]]: ...
@overload
def autoconvert(function: Callable[P, T], /) -> Callable[P, Config[T]]: ...
@overload
def autoconvert(*, partial: Literal[False] = False) -> Callable[[Callable[P, T]], Callable[P, Config[T]]]: ...
@overload
def autoconvert(*, partial: Literal[True]) -> Callable[[Callable[P, T]], Callable[P, Partial[T]]]: ...
def autoconvert(function: Any = None, /, *, partial: bool = False) -> Any:
    """A decorator: what the function would build, as a Config of it; with `partial=True`, as a Partial.

        @run.autoconvert
        def small_model(num_layers: int = 2) -> GemmaConfig:
            return GemmaConfig(num_layers=num_layers, hidden_size=64 * num_layers)

        small_model(4).hidden_size = 512

    Every call of a class or function in the body becomes a Config, but for builtins, methods, Path and enumerations,
    whose values are taken at once, and functions that give a configuration themselves. A function whose annotation says
    that it returns a Config or a Partial is called as it is. A closure, `try` or `with` in the body is refused.

    The function itself stays callable as `small_model.__wrapped__`. Raises ConfigError, when it is called, for a body
    that cannot be converted and for a result that is no configuration.
    """
    if function is None:
        return functools.partial(_autoconvert, partial=partial)
    return _autoconvert(function, partial=partial)


def _autoconvert(function: Callable[..., Any], *, partial: bool) -> Callable[..., Any]:
    if not inspect.isfunction(function):
        raise ConfigError(f"autoconvert takes a function, not {show_typed(function)}", where=caller())
    where = place(function.__code__.co_filename, function.__code__.co_firstlineno)

    @functools.cache
    def converted() -> Callable[..., Any]:
        return function if _gives_call(function) else _converted(function, where)

    @functools.wraps(function)
    def configured(*args: Any, **kwargs: Any) -> Any:
        try:
            inspect.signature(function).bind(*args, **kwargs)
        except TypeError as error:
            raise ConfigError(f"{name_of(function)} does not take these arguments: {error}", where=caller()) from None
        try:
            made = converted()(*args, **kwargs)
        except ValueError as error:
            if "within auto_config" not in str(error):  # the body's own, rather than fiddle's about the body
                raise
            raise _cannot_be(function, str(error), where) from None
        if not isinstance(made, Call):
            raise ConfigError(
                f"{name_of(function)} gives {show_typed(made)}, which is no configuration",
                where=where,
                hint="return what a class or function makes, SomeClass(...)",
            )
        return Partial.__unflatten__(*made.__flatten__()) if partial else made

    setattr(configured, MADE, Partial if partial else Config)
    return configured


def _converted(function: Callable[..., Any], where: str) -> Callable[..., Any]:
    """The function with its calls made configurations, by fiddle."""
    if fiddle is no_fiddle:
        no_fiddle.refuse()
    from fiddle._src.experimental import auto_config, auto_config_policy

    def at_once(target: Any) -> bool:
        if isinstance(target, type) and issubclass(target, Call | pathlib.PurePath | enum.Enum):
            return True
        if inspect.ismethod(target) and not isinstance(target.__self__, type):
            return True
        return hasattr(target, MADE) or _gives_call(target) or bool(auto_config_policy.latest(target))

    try:
        made = auto_config.auto_config(
            function,
            experimental_allow_dataclass_attribute_access=True,
            experimental_allow_control_flow=True,
            experimental_always_inline=True,
            experimental_exemption_policy=at_once,
            experimental_config_types=auto_config.ConfigTypes(config_cls=Config, partial_cls=Partial),
            experimental_result_must_contain_buildable=False,
        )
    except SyntaxError as error:
        place_of_it = place(error.filename, error.lineno or 0) if error.filename else where
        raise _cannot_be(function, error.msg, place_of_it) from None
    except (OSError, ValueError) as error:
        raise _cannot_be(function, str(error), where) from None
    converted: Callable[..., Any] = made.as_buildable
    return converted


def _cannot_be(function: Callable[..., Any], why: str, where: str) -> ConfigError:
    return ConfigError(
        f"{name_of(function)} cannot be converted: {why}",
        where=where,
        hint="annotate it `-> run.Config[...]` and return one",
    )


def _gives_call(function: Any) -> bool:
    """Whether a function is annotated as returning a Config or a Partial."""
    if not inspect.isroutine(function):
        return False
    annotation = getattr(function, "__annotations__", {}).get("return")
    if isinstance(annotation, str):
        return _CALL_NAME.fullmatch(annotation) is not None
    origin = typing.get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, Call)
