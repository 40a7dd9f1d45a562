"""The table of a task: every value, in a person's terms, with the line that set it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sample_tasks import Optimizer, Precision, Schedule, Trainer, anything, train

from launcher.config import Config, Partial
from launcher.overrides import apply
from launcher.preview import shown, table

HERE = "tests/launcher/test_preview.py"


def rows(task: Any) -> dict[str, tuple[str, str]]:
    """Value and place by name, split where the header's columns begin."""
    head, *lines = table(task).splitlines()
    value, place = head.index("value"), head.index("set at")
    return {line[:value].strip(): (line[value:place].strip(), line[place:].strip()) for line in lines}


def line_of(text: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    [number] = [number for number, line in enumerate(lines, start=1) if line.strip().startswith(text)]
    return f":{number}"


def test_every_value_is_there_with_its_line() -> None:
    task = Partial(train, trainer=Config(Trainer, folder=Path("a b")))
    task.trainer.max_steps = 5
    apply(task, ["optim.schedule.min_lr=0.5"])
    found = rows(task)
    assert list(found) == [
        "task", "trainer", "trainer.max_steps", "trainer.folder", "trainer.precision", "trainer.accelerator",
        "trainer.modules", "trainer.extra", "optim", "optim.lr", "optim.betas", "optim.schedule",
        "optim.schedule.warmup_steps", "optim.schedule.min_lr", "shared", "scale",
    ]  # fmt: skip
    assert found["task"] == ("train", "")
    assert found["trainer"][0] == "Trainer"
    assert found["trainer.max_steps"] == ("5", found["trainer.max_steps"][1])
    assert found["trainer.max_steps"][1].endswith(f"test_preview.py{line_of('task.trainer.max_steps = 5')}")
    assert found["trainer.folder"][0] == "Path('a b')"
    assert found["trainer.precision"] == ("Precision.BF16", "")
    assert found["trainer.modules"][0] == "['linear_qkv']"
    assert found["optim.betas"][0] == "(0.9, 0.95)"
    assert found["optim.schedule.min_lr"] == ("0.5", "`optim.schedule.min_lr=0.5` on the command line")
    assert found["scale"] == ("1.0", "")


def test_what_is_missing_and_what_is_shared() -> None:
    assert rows(Partial(train))["trainer"] == ("(missing)", "")
    trainer = Config(Trainer)
    found = rows(Partial(train, trainer=trainer, shared=trainer))
    assert found["shared"][0] == "= trainer"
    assert "shared.max_steps" not in found


def test_configurations_in_lists_and_dicts() -> None:
    task = Partial(anything, [Config(Schedule, warmup_steps=1)], named={"a": Config(Optimizer)})
    found = rows(task)
    assert found["[0][0].warmup_steps"][0] == "1"
    assert found["named['a'].lr"][0] == "0.0001"


def test_values_as_a_person_writes_them() -> None:
    values = [
        None,
        True,
        1,
        1e-5,
        float("nan"),
        "it's",
        Path("x"),
        Precision.FP32,
        train,
        Trainer,
        (1,),
        (),
        [],
        {},
        set(),
    ]
    assert [shown(value) for value in values] == [
        "None", "True", "1", "1e-05", "nan", '"it\'s"', "Path('x')", "Precision.FP32", "train", "Trainer", "(1,)", "()",
        "[]", "{}", "set()",
    ]  # fmt: skip
    assert shown({"a": [Path("x")]}) == "{'a': [Path('x')]}"


def test_nothing_in_a_value_breaks_the_table() -> None:
    hostile = "two\nlines\x1b[31m\u202e" + "x" * 300
    lines = table(Partial(train, trainer=Config(Trainer, extra={hostile: 1}), scale=2.0)).splitlines()
    assert len(lines) == 17
    assert all(char.isprintable() for line in lines for char in line)
    assert max(map(len, lines)) < 200
