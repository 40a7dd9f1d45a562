"""What a task's function says of itself: known without fiddle, because a job imports the function, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_CHECK = "__launch_check__"
_KEEPS = "__launch_keeps__"


def checked_by(check: Callable[[Any, int], None]) -> Callable[[F], F]:
    """A decorator: before a task of this function runs, `check` sees the task and the number of its processes.

    It raises a LaunchError for what cannot work there, so that it is known before anything is queued.
    """

    def mark(function: F) -> F:
        function.__dict__[_CHECK] = check
        return function

    return mark


def check_of(function: Any) -> Callable[[Any, int], None] | None:
    """What `checked_by` gave this function."""
    found: Callable[[Any, int], None] | None = getattr(function, _CHECK, None)
    return found


def keeps(argument: str, *, variable: str | None = None, otherwise: str | None = None) -> Callable[[F], F]:
    """A decorator: the argument ("log.dir" is one of an argument's own) is the path of what a task leaves for good.

    Where the argument is None, the path is what the environment variable says where the task runs, else `otherwise`.
    """

    def mark(function: F) -> F:
        function.__dict__[_KEEPS] = Kept(argument, variable, otherwise)
        return function

    return mark


class Kept(NamedTuple):
    """See `keeps`."""

    argument: str
    variable: str | None
    otherwise: str | None


def kept_by(function: Any) -> Kept | None:
    """What `keeps` gave this function."""
    found: Kept | None = getattr(function, _KEEPS, None)
    return found
