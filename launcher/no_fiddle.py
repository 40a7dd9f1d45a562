"""Stands in for fiddle on a machine that has none: a node, where jobs run what was configured elsewhere.

Names and types can be imported there, so that a launch script loads; making a configuration is refused.
"""

from __future__ import annotations

from typing import Any, Generic, NoReturn, TypeVar

from launcher.errors import ConfigError
from launcher.places import caller

T = TypeVar("T")

why = ""
"""What fiddle's import said."""


def refuse() -> NoReturn:
    raise ConfigError(
        f"a configuration cannot be made here: {why}",
        where=caller(),
        hint="pip install gemma-launcher; or, in a launch script, make it under "
        '`if __name__ == "__main__":`, which its job leaves out',
    )


class Buildable(Generic[T]):
    def __new__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        refuse()


class Config(Buildable[T]): ...


class Partial(Buildable[T]): ...


def add_exclude_location(file: str) -> None:
    """Of fiddle.history: there is no history here."""
