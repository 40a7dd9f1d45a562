"""What a typed text means for each declared type."""

from __future__ import annotations

import enum
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, TypedDict, TypeVar, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_tasks import Optimizer, Precision, Schedule, Trainer

from launcher.config import Config, Partial
from launcher.errors import ConfigError
from launcher.typecheck import matches
from launcher.values import Mismatch, read

Steps = NewType("Steps", int)
T = TypeVar("T")


class Row(TypedDict):
    text: str
    size: int


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


READ: list[tuple[str, Any, Any]] = [
    ("5", int, 5), (" 5 ", int, 5), ("-1_000", int, -1000), ("1e3", int, 1000), ("1.5e3", int, 1500), ("+7", Steps, 7),
    ("1e22", int, 10**22), ("0010", int, 10),
    ("5", float, 5.0), ("1e-4", float, 1e-4), ("-inf", float, -math.inf), (".5", Annotated[float, "share"], 0.5),
    ("true", bool, True), ("False", bool, False), ("None", None, None), ("null", int | None, None),
    ("5", str, "5"), ("true", str, "true"), ("", str, ""), (" a b ", str, " a b "), ("'a'", str, "'a'"),
    ("a=b", str, "a=b"), ("[a", str, "[a"), ("None", str, "None"),
    ("None", str | None, None), ("'None'", str | None, "None"), ("a b", Optional[str], "a b"),  # noqa: UP045
    ("/a b/ü", Path, Path("/a b/ü")), ("x", str | Path, "x"), ("x", Path | str, Path("x")), ("null", Path | None, None),
    ("BF16", Precision, Precision.BF16), ("Precision.FP32", Precision, Precision.FP32), ("bf16", Precision,
    Precision.BF16), ("2", Level, Level.HIGH),
    ("cpu", Literal["cpu", "gpu"], "cpu"), ("'cpu'", Literal["cpu", 1], "cpu"), ("1", Literal["cpu", 1], 1),
    ("None", Literal["a", None], None),
    ("5", float | int, 5), ("5.5", int | float, 5.5), ("true", str | bool, True), ("5", int | str, 5),
    ("'5'", int | str, "5"), ("five", Union[int, str], "five"), ("5", bool | int | str, 5),  # noqa: UP007
    ("[a, b]", list[str], ["a", "b"]), ("[]", list[int], []), ("[1, 2,]", Sequence[int], [1, 2]),
    ("['1', true]", list[str], ["1", "true"]), ("[1, a, null, 2.5]", list, [1, "a", None, 2.5]),
    ("[[1], [2, 3]]", list[list[int]], [[1], [2, 3]]), ("null", list[int] | None, None), ("[1]", list[int] | None, [1]),
    ("(1, a)", tuple[int, str], (1, "a")), ("[0.9, 0.95]", tuple[float, float], (0.9, 0.95)), ("()", tuple[()], ()),
    ("(1, 2, 3)", tuple[int, ...], (1, 2, 3)), ("(1,)", tuple, (1,)),
    ("[1, 1]", set[int], {1}), ("[a]", frozenset[str], frozenset("a")),
    ("{a: 1}", dict[str, int], {"a": 1}), ('{"a b": [1]}', Mapping[str, list[int]], {"a b": [1]}),
    ("{1: x}", dict[int, str], {1: "x"}), ("{a: {b: null}}", dict, {"a": {"b": None}}), ("{}", dict[str, int], {}),
    ("{text: 5, size: 5}", Row, {"text": "5", "size": 5}),
    ("{warmup_steps: 3}", Schedule, Config(Schedule, warmup_steps=3)), ("Schedule", Schedule | None, Config(Schedule)),
    ("Schedule(min_lr=1e-5)", Any | Schedule, Config(Schedule, min_lr=1e-5)), ("null", Schedule | None, None),
    ("{schedule: {warmup_steps: 1e2}, betas: (0, 1)}", Optimizer,
     Config(Optimizer, betas=(0.0, 1.0), schedule=Config(Schedule, warmup_steps=100))),
    ("[Schedule, {min_lr: 1}]", list[Schedule], [Config(Schedule), Config(Schedule, min_lr=1.0)]),
    ("5", Any, 5), ("-5", Any, -5), ("1e-4", Any, 1e-4), ("true", object, True), ("null", T, None), ("a b", Any, "a b"),
    ("'5'", Any, "5"), ("[1, {a: b}, (c, 2)]", Any, [1, {"a": "b"}, ("c", 2)]), ("", Any, ""), ("nan", Any, "nan"),
    ("f(x) and more", Any, "f(x) and more"), ("hf://a:b/c", Any, "hf://a:b/c"), ("9**9", Any, "9**9"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "hint", "value"), READ)
def test_what_a_text_means(text: str, hint: Any, value: Any) -> None:
    found = read(text, hint, "x")
    assert (type(found), found) == (type(value), value)
    assert matches(found, hint)


def squad(seq_length: int = 128, path: Path | None = None) -> Any:
    return Config(Trainer, max_steps=seq_length, folder=path)


def task() -> Any:
    return Partial(squad)


def broken() -> Any:
    raise ConfigError("no such data", hint="'squad'")


def angry() -> Any:
    raise ZeroDivisionError("never")


FACTORIES: dict[str, Callable[..., Any]] = {"squad": squad, "task": task, "broken": broken, "angry": angry,
                                            "plain": Trainer}  # fmt: skip


def test_a_factory_is_named_and_given_literals() -> None:
    made = Config(Trainer, max_steps=512, folder=Path("a, b"))
    for hint in (Trainer, Trainer | None, Any, object):
        assert read("squad(seq_length=512, path='a, b')", hint, "data", FACTORIES) == made
        assert read("squad", hint, "data", FACTORIES) == Config(Trainer, max_steps=128)
    assert read("[squad, plain()]", list[Trainer], "data", FACTORIES) == [squad(), Config(Trainer)]
    assert read("task", Callable[..., Any], "data", FACTORIES) == Partial(squad)
    assert read("squad", str, "data", FACTORIES) == "squad"
    assert read("'squad'", Any, "data", FACTORIES) == "squad"


REFUSED: list[tuple[str, Any, str, str | None]] = [
    ("abc", int, "x takes int, not 'abc'", None),
    ("1.5", int, "x takes int, not '1.5'", None),
    ("true", int, "x takes int, not 'true'", None),
    ("'5'", int, "x takes int, not \"'5'\"", None),
    ("1__0", int, "x takes int, not '1__0'", None),
    ("9**9", int, "x takes int, not '9**9'", None),
    ("1e400", float, "x takes float, not '1e400'", None),
    ("1e99999999999", int, "x takes int, not '1e99999999999'", None),
    ("9" * 5000, int, f"x takes int, not {'9' * 56!r}"[:-1] + "...", None),
    ("yes", bool, "x takes bool, not 'yes'", "true or false"),
    ("1", bool, "x takes bool, not '1'", "true or false"),
    ("none", None, "x takes None, not 'none'", None),
    ("'None'", int | None, "x takes int | None, not 'None'", None),
    ("bf61", Precision, "x takes Precision, not 'bf61'", "BF16 or FP32"),
    ("BF61", Precision, "x takes Precision, not 'BF61'", "'BF16'"),
    ("tpu", Literal["cpu", "gpu"], "x takes Literal['cpu', 'gpu'], not 'tpu'", "'cpu' or 'gpu'"),
    ("abc", int | None, "x takes int | None, not 'abc'", None),
    ("a, b", list[str], "x takes list[str], not 'a, b'", "[a, b]"),
    ("(a)", list[str], "x takes list[str], not a list", None),
    ("[a, 5.5]", list[int], "x[0] takes int, not 'a'", None),
    ("[a", list[str], "x cannot be read: expected ',' or ']' after '[a'", None),
    ("(1, 2, 3)", tuple[int, int], "x takes 2 values, not 3", None),
    ("5", tuple[int, ...], "x takes tuple[int, ...], not '5'", "(5)"),
    ("[[1]]", set[Any], "x cannot hold this: unhashable type: 'list'", None),
    ("a", dict[str, int], "x takes dict[str, int], not 'a'", "{name: value}"),
    ("{a: b}", dict[str, int], "x['a'] takes int, not 'b'", None),
    ("{a: 1, a: 2}", dict[str, int], "x has 'a' twice", None),
    ("{text: a, sise: 1}", Row, "x has no parameter 'sise'; it has text, size", "'size'"),
    ("{max_stps: 1}", Trainer | None, "x has no parameter 'max_stps'; it has max_steps, folder, precision, "
     "accelerator, modules, extra", "'max_steps'"),
    ("{max_steps: many}", Trainer | None, "x.max_steps takes int, not 'many'", None),
    ("Trainr", Trainer, "x takes Trainer, not 'Trainr'", "'Trainer'"),
    ("sqad", Trainer | Schedule, "x takes Trainer | Schedule, not 'sqad'", "'squad'"),
    ("squad", Schedule, "x takes Schedule, and squad makes a Config of Trainer", None),
    ("squad(seq_len=5)", Trainer, "x has no parameter 'seq_len'; it has seq_length, path", "'seq_length'"),
    ("squad(seq_length=long)", Any, "x.seq_length takes int, not 'long'", None),
    ("squad(512)", Trainer, "x cannot be read: expected a name after 'squad(', not '512)'", None),
    ("[sqad(a=1)]", Any, "sqad is no factory", "'squad'"),
    ("broken", Trainer, "broken: no such data", "'squad'"),
    ("angry", Trainer, "angry failed: ZeroDivisionError: never", None),
    ("[" * 5000, Any, "x cannot be read: it is nested more than 40 deep", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "hint", "said", "instead"), REFUSED)
def test_what_is_refused(text: str, hint: Any, said: str, instead: str | None) -> None:
    with pytest.raises(Mismatch) as caught:
        read(text, hint, "x", FACTORIES)
    assert (caught.value.message, caught.value.hint) == (said, instead)


@given(st.text())
def test_a_text_is_itself_where_a_text_belongs(text: str) -> None:
    assert read(text, str, "x") == text


@given(st.text(max_size=30), st.sampled_from([int, float | None, Any, list[int], dict[str, Any], Trainer, Precision]))
def test_any_text_has_a_value_of_the_type_or_is_refused(text: str, hint: Any) -> None:
    try:
        found = read(text, hint, "x")
    except Mismatch as error:
        assert error.message
    else:
        assert matches(found, hint)


def test_a_dtype_by_name() -> None:
    torch = pytest.importorskip("torch")
    for text in ("bf16", "bfloat16", "torch.bfloat16"):
        assert read(text, torch.dtype, "x") is torch.bfloat16
        assert read(text, torch.dtype | None, "x") is torch.bfloat16
    assert read("torch.float32", Any, "x") is torch.float32
    assert read("torch.compile", Any, "x") == "torch.compile"
    assert read("null", torch.dtype | None, "x") is None
    with pytest.raises(Mismatch, match=r"x takes torch.dtype, not 'bfloat61'") as caught:
        read("bfloat61", torch.dtype, "x")
    assert (caught.value.hint or "").startswith("'bfloat16'")


def test_a_dtype_without_torch_is_one_clear_error() -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom launcher.config import Partial\n"
        "from launcher.overrides import apply\n"
        "def task(dtype: 'torch.dtype' = None): ...\n"
        "try: apply(Partial(task), ['dtype=bf16'])\n"
        "except Exception as error: print(error)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "`dtype=bf16` on the command line: bf16 is a value of torch, which is not installed here\n"
