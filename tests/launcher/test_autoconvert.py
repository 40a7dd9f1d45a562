"""A function that builds objects gives their configuration instead."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sample_tasks import Optimizer, Precision, Schedule, Trainer, train

import launcher as run
from gemma_models import gemma3_1b
from launcher.config import Config, Partial, build, check, where
from launcher.errors import ConfigError
from launcher.serialization import dumps, from_yaml, loads, to_yaml

HERE = Path(__file__).name


@run.autoconvert
def small_trainer(max_steps: int = 10, folder: str = "x") -> Trainer:
    trainer = Trainer(max_steps=max_steps * 2, folder=Path(folder), precision=Precision("fp32"))
    trainer.modules = [name for name in ("a", "b") if name != "b"]
    if max_steps > 10:
        trainer.extra = {"long": 1}
    return trainer


@run.autoconvert(partial=True)
def task(lr: float = 1e-3) -> dict[str, Any]:
    return train(trainer=small_trainer(), optim=Optimizer(lr=lr, schedule=Schedule(min_lr=lr / 10)))


def test_a_function_gives_a_config_of_what_it_builds() -> None:
    config: Any = small_trainer(20)
    assert config == Config(Trainer, max_steps=40, folder=Path("x"), precision=Precision.FP32, modules=["a"],
                            extra={"long": 1})  # fmt: skip
    assert type(config) is Config
    config.max_steps = 7
    assert build(config).max_steps == 7
    assert small_trainer.__wrapped__(20) == build(small_trainer(20))  # type: ignore[attr-defined]
    assert f"{HERE}:" in (where(small_trainer(), "max_steps") or "")


def test_a_partial_is_a_task() -> None:
    made: Any = task(1e-2)
    assert type(made) is Partial
    assert (made.trainer.max_steps, made.optim.schedule.min_lr) == (20, 1e-3)
    assert type(made.optim) is Config
    made.optim.lr = 5
    check(made)
    assert run.run(made, direct=True)["lr"] == 5
    assert loads(dumps(made)) == made == from_yaml(to_yaml(made))
    assert task(1e-2).diff(made)[0].path == "optim.lr"


def test_our_own_rules_hold_for_what_is_converted() -> None:
    first: Any = task()
    first.trainer.modules.append("x")
    first.optim.schedule.warmup_steps = 0
    assert task().trainer.modules == ["a"]
    assert task().optim.schedule.warmup_steps == 10

    @run.autoconvert
    def misspelt() -> Trainer:
        return Trainer(max_stps=1)  # type: ignore[call-arg]

    with pytest.raises(ConfigError, match="Trainer has no parameter 'max_stps'") as caught:
        misspelt()
    assert HERE in (caught.value.where or "")


def test_what_gives_a_configuration_already_is_called_as_it_is() -> None:
    @run.autoconvert
    def given(steps: int) -> run.Config[Trainer]:
        try:
            config = run.Config(Trainer, max_steps=steps)
        finally:
            pass
        return config

    @run.autoconvert
    def named(steps: int) -> "run.Partial[Any]":
        return run.Partial(train, trainer=given(steps))

    @run.autoconvert
    def mixed() -> Any:
        return Schedule(warmup_steps=given(3).max_steps, min_lr=min(0.5, 1))

    @run.autoconvert
    def recipe() -> Any:
        recipe = gemma3_1b.pretrain_recipe(name="tiny".upper())
        recipe.trainer.max_steps = 3
        return recipe

    with pytest.raises(ConfigError, match="recipe cannot be converted: Cannot load attribute 'trainer'") as caught:
        recipe()  # what is no dataclass has no attributes before it is built
    assert "annotate it" in (caught.value.hint or "")
    assert given(3) == Config(Trainer, max_steps=3)
    assert named(3) == Partial(train, trainer=Config(Trainer, max_steps=3))
    made: Any = mixed()
    assert made == Config(Schedule, warmup_steps=3, min_lr=0.5)


def test_functools_partial_is_a_partial() -> None:
    @run.autoconvert
    def bound() -> Any:
        return Trainer(extra={"x": partial(train, scale=2)})  # type: ignore[dict-item]

    made: Any = bound()
    assert made.extra["x"] == Partial(train, scale=2)


def test_what_cannot_be_converted_is_one_clear_error() -> None:
    @run.autoconvert
    def tries() -> Trainer:
        try:
            return Trainer()
        finally:
            pass

    @run.autoconvert
    def counts() -> int:
        return len("abc")

    with pytest.raises(ConfigError, match=r"tries cannot be converted: Control flow \(Try\) is unsupported") as caught:
        tries()
    assert HERE in (caught.value.where or "")
    assert caught.value.hint == "annotate it `-> run.Config[...]` and return one"
    with pytest.raises(ConfigError, match=r"counts gives 3 \(int\), which is no configuration"):
        counts()

    @run.autoconvert
    def raises() -> Trainer:
        return Trainer(max_steps=int("many"))

    with pytest.raises(ValueError, match="invalid literal"):  # the body's own
        raises()
    typed = {}
    exec("def typed(): return dict()", typed)  # noqa: S102
    with pytest.raises(ConfigError, match="typed cannot be converted"):
        run.autoconvert(typed["typed"])()


def test_a_partial_is_given_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert type(task()) is Partial
    assert where(task(), "__fn_or_cls__") is not None
    assert caplog.text == ""


def test_wrong_arguments_and_what_is_no_function_are_refused_with_the_line() -> None:
    with pytest.raises(ConfigError, match=r"small_trainer does not take these arguments: .*'max_step'") as caught:
        small_trainer(max_step=3)  # type: ignore[call-arg]
    assert HERE in (caught.value.where or "")
    with pytest.raises(ConfigError, match=r"autoconvert takes a function, not .*Trainer"):
        run.autoconvert(Trainer)
