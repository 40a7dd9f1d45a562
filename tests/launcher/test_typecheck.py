"""Which values fit which declared types."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
)

import pytest
from sample_tasks import Opaque, Optimizer, Precision, Schedule, Trainer, train

from launcher.config import Config, Partial
from launcher.typecheck import declared, describe, hints, matches, suggest

if TYPE_CHECKING:
    from nowhere import Unknown

T = TypeVar("T")
Steps = NewType("Steps", int)


class Sized(Protocol):
    def size(self) -> int: ...


class Row(TypedDict):
    text: str


class Sub(Schedule): ...


class Maker(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class Made(metaclass=Maker):
    def __init__(self, size: int) -> None:
        self.size = size


class Point(NamedTuple):
    x: int


@dataclasses.dataclass
class Fixed:
    size: Final[int]
    factor: dataclasses.InitVar[int]


FITS: list[tuple[Any, Any]] = [
    (1, int), (1.5, float), (1, float), (True, bool), ("a", str), (None, None), (None, type(None)),
    (Path("a"), Path), ("cpu", Literal["cpu", 1]), (1, Literal["cpu", 1]),
    (None, Optional[int]), (1, int | None), ("a", Union[int, str]),  # noqa: UP007, UP045
    ([1], list[int]), ([], list[int]), ((1, "a"), tuple[int, str]), ((1, 2, 3), tuple[int, ...]),
    ({"a": 1}, dict[str, int]), ({1}, set[int]), ([1], Sequence[int]), ([1], collections.abc.Iterable[int]),
    ([1], list), (Precision.BF16, Precision), (len, Callable[..., int]), (train, Callable), (int, type[int]),
    (Schedule(), Schedule), (Config(Schedule), Schedule), (Config(train), Schedule),
    (Partial(train), Callable[[], Any]),
    (Config(Schedule), Schedule | None), ([Config(Schedule)], list[Schedule]), (Config(Schedule), Any),
    (Opaque(), Sized), (object(), Any), (3, T), (3, object), (3, Steps), (3, Annotated[int, "steps"]), 
    ({"text": "a"}, Row), (Sub, type[Schedule]), ("a", Sequence[str]),
]  # fmt: skip

DOES_NOT_FIT: list[tuple[Any, Any]] = [
    ("1", int), (1.0, int), (True, int), (True, float), ("1.5", float), (1, bool), (1, str), (None, int), (0, None),
    ("a", Path), ("tpu", Literal["cpu", 1]), (True, Literal[1]), ("a", int | None), ([1.5], int | list[int]),
    (["a"], list[int]), ((1,), list[int]), ([1], tuple[int]), ((1,), tuple[int, int]), ((1, "a"), tuple[int, ...]),
    ({"a": "b"}, dict[str, int]), ({1: 1}, dict[str, int]), ({"a"}, set[int]), (["a"], Sequence[int]),
    ("bf16", Precision), (3, Callable[..., int]), (3, type[int]), (3, Schedule), ("a", Steps), (3, Row),
    (Config(Trainer), Schedule), (Config(Schedule), int), (Partial(train), int), ([Config(Trainer)], list[Schedule]),
    ("a", Annotated[int, "steps"]), ({}, Row), ({"text": 1}, Row), ({"text": "a", "more": 1}, Row),
    (Trainer, type[Schedule]), ("abc", Sequence[int]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "hint"), FITS)
def test_fits(value: Any, hint: Any) -> None:
    assert matches(value, hint)


@pytest.mark.parametrize(("value", "hint"), DOES_NOT_FIT)
def test_does_not_fit(value: Any, hint: Any) -> None:
    assert not matches(value, hint)


def half_known(known: int, unknown: Unknown, *rest: str, **more: float) -> Unknown: ...


class Plain:
    def __init__(self, size: int) -> None:
        self.size = size


def test_hints_leave_out_only_what_cannot_be_resolved() -> None:
    found = hints(half_known)
    assert found["known"] is int
    assert "unknown" not in found
    assert "return" not in found
    assert hints(Plain) == {"size": int}
    assert hints(Optimizer)["schedule"] is Schedule
    assert hints(dict) == {}
    assert hints(Point) == {"x": int}
    assert hints(Fixed) == {"size": int, "factor": int}
    assert hints(functools.partial(half_known, 1))["known"] is int


def test_the_type_of_what_has_no_name_of_its_own() -> None:
    config: Any = Config(half_known, 1, 2, "a", more=1.0, rest=2.0)
    keys: tuple[Any, ...] = ("known", "unknown", 2, "more", "rest")
    assert [declared(config, key) for key in keys] == [int, None, str, float, float]
    assert declared(Config(Made, size=1), "size") is int


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"),
        (int | None, "int | None"),
        (Path | None, "Path | None"),
        (list[int], "list[int]"),
        (Literal["a", "b"], "Literal['a', 'b']"),
        (Trainer, "Trainer"),
        (None, "None"),
    ],
)
def test_types_read_as_people_write_them(hint: Any, text: str) -> None:
    assert describe(hint) == text


@pytest.mark.parametrize(
    ("value", "hint", "text"),
    [
        ("a", Path | None, "Path('a')"),
        ("5", int, "5"),
        ("1e-4", float | None, "0.0001"),
        ("x", int, None),
        (500.0, int | None, "500"),
        (500.5, int, None),
        ("tpu", Literal["cpu", "gpu"], "'cpu' or 'gpu'"),
        ("tpu", Literal[Precision.BF16, "x"], "Precision.BF16 or 'x'"),
        ([1, 2], tuple[int, int], "(1, 2)"),
        ("a", list[str], "['a']"),
        (("a",), list[str], "['a']"),
    ],
)
def test_suggestions(value: Any, hint: Any, text: str | None) -> None:
    assert suggest(value, hint) == text
