"""Settings that people type: a misspelt name is refused, wherever it stands."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

from launcher.errors import LaunchError, nearest
from launcher.places import caller


class Strict:
    """Base of dataclasses: an argument or attribute that the class does not have is an error naming the nearest.

    strict_error: the class of that error.
    """

    strict_error: ClassVar[type[LaunchError]] = LaunchError

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        for name in kwargs:
            cls._require(name)
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        self._require(name)
        super().__setattr__(name, value)
        self.__dict__.setdefault("_lines", {})[name] = caller()

    @classmethod
    def _require(cls, name: str) -> None:
        valid = [known.name for known in dataclasses.fields(cls)]  # type: ignore[arg-type]  # what derives is a dataclass
        if name not in valid:
            raise cls.strict_error(
                f"{cls.__name__} has no attribute {name!r}; it has {', '.join(valid) or 'none'}",
                where=caller(),
                hint=nearest(name, valid),
            )

    def where(self, name: str) -> str | None:
        """file:line of the statement that last set an attribute, or made the object."""
        found: str | None = self.__dict__.get("_lines", {}).get(name)
        return found
