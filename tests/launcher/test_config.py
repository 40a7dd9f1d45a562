"""Config and Partial: changing one recipe changes no other, and mistakes are found where they are made."""

import collections
import copy
import dataclasses
import math
import threading
from pathlib import Path
from typing import Any

import pytest
from sample_tasks import Opaque, Optimizer, Precision, Schedule, Trainer, anything, train

import launcher
from launcher.checks import checked_by
from launcher.config import Config, Partial, build, check, check_task, task_name, where
from launcher.errors import ConfigError
from launcher.lazy_fiddle import fiddle

HERE = Path(__file__).name


def recipe() -> Any:
    return Partial(train, trainer=Config(Trainer))


def test_dataclass_defaults_become_configs_of_their_own() -> None:
    first, second = recipe(), recipe()
    first.optim.lr = 5e-5
    first.optim.schedule.warmup_steps = 3
    first.trainer.modules.append("linear_proj")
    assert (second.optim.lr, second.optim.schedule.warmup_steps) == (1e-4, 10)
    assert second.trainer.modules == ["linear_qkv"]
    assert (Optimizer().lr, Trainer().modules) == (1e-4, ["linear_qkv"])
    assert build(first)()["lr"] == 5e-5


def test_defaults_that_are_containers_or_configs_are_not_shared() -> None:
    lock, given = threading.Lock(), Config(Schedule)

    def task(names: list[Any] = [[lock]], schedule: Any = given) -> Any:  # noqa: B006
        return names, schedule

    config: Any = Partial(task)
    config.names[0].append("x")
    config.schedule.warmup_steps = 1
    assert config.names[0][0] is lock
    assert build(Partial(task))() == ([[lock]], Schedule())
    assert given == Config(Schedule)


def test_a_given_dataclass_becomes_a_config_and_stays_the_givers() -> None:
    mine = Trainer(modules=["a"])
    config: Any = Partial(train, trainer=mine)
    config.trainer.max_steps = 7
    config.trainer.modules.append("b")
    assert (mine.max_steps, mine.modules) == (100, ["a"])
    config.optim = Optimizer(schedule=Schedule(min_lr=0.5))
    assert config.optim.schedule.min_lr == 0.5
    config.shared = [Schedule(), {"x": Schedule()}]
    config.shared[1]["x"].warmup_steps = 1
    assert build(config.shared)[1]["x"] == Schedule(warmup_steps=1)


def test_one_instance_given_twice_is_one_object() -> None:
    trainer = Trainer()
    assert build(Partial(train, trainer=trainer, shared=trainer))()["same"]
    config = Config(Trainer)
    assert build(Partial(train, trainer=config, shared=config))()["same"]
    assert not build(Partial(train, trainer=Config(Trainer), shared=Config(Trainer)))()["same"]
    assert build(copy.deepcopy(Partial(train, trainer=config, shared=config)))()["same"]


def test_a_copy_shares_nothing() -> None:
    first = recipe()
    second = copy.deepcopy(first)
    second.trainer.max_steps = 1
    second.trainer.modules.append("x")
    assert (first.trainer.max_steps, first.trainer.modules) == (100, ["linear_qkv"])
    assert first != second


@pytest.mark.parametrize(
    ("wrong", "said", "hint"),
    [
        (lambda: setattr(recipe().trainer, "max_stps", 1), "Trainer has no parameter 'max_stps'", "max_steps"),
        (lambda: recipe().optim.schedule.warmup, "Schedule has no parameter 'warmup'", "warmup_steps"),
        (lambda: Config(Trainer, max_step=1), "Trainer has no parameter 'max_step'", "max_steps"),
        (lambda: setattr(recipe(), "trainr", 1), "train has no parameter 'trainr'", "trainer"),
    ],
)
def test_a_misspelt_name_names_the_nearest_and_the_line(wrong: Any, said: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wrong()
    assert said in caught.value.message
    assert repr(hint) in (caught.value.hint or "")
    assert HERE in (caught.value.where or "")


def test_a_required_value_that_is_not_set_cannot_be_read_or_run() -> None:
    config: Any = Partial(train)
    with pytest.raises(ConfigError, match=r"train\.trainer is not set"):
        config.trainer  # noqa: B018
    with pytest.raises(ConfigError, match="trainer is missing: train requires it") as caught:
        check(config)
    assert HERE in (caught.value.where or "")


def test_hasattr_and_copy_protocols_still_work() -> None:
    assert not hasattr(recipe(), "nothing")
    assert not hasattr(recipe(), "__len__")


def test_where_is_the_line_that_set_it_last() -> None:
    config = recipe()
    config.trainer.max_steps = 1
    config.trainer.max_steps = "abc"
    line = int((where(config.trainer, "max_steps") or ":0").rpartition(":")[2])
    assert 'max_steps = "abc"' in Path(__file__).read_text().splitlines()[line - 1]
    with pytest.raises(ConfigError) as caught:
        check(config)
    assert str(caught.value).splitlines() == [
        "trainer.max_steps is 'abc' (str), but Trainer takes int",
        f"  set at: {where(config.trainer, 'max_steps')}",
    ]


def test_wrong_values_deep_in_containers_are_found() -> None:
    config = recipe()
    config.shared = {"inner": [Config(Trainer, max_steps=1.5)]}
    with pytest.raises(ConfigError, match=r"^shared\['inner'\]\[0\]\.max_steps is 1.5 \(float\)"):
        check(config)


def test_right_values_pass() -> None:
    config = recipe()
    config.trainer.folder = Path("x")
    config.trainer.precision = Precision.FP32
    config.optim.lr = 1
    config.scale = 2
    check(config)


def test_what_is_no_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a task") as caught:
        check_task(train)
    assert caught.value.hint == "run.Partial(train, ...)"
    with pytest.raises(ConfigError, match="is not a task"):
        check_task(3)
    with pytest.raises(ConfigError, match="neither a function nor a class"):
        Config(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a configuration already"):
        Config(Config(Trainer))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="does not take these arguments"):
        Config(Trainer, 1)
    assert task_name(recipe()) == "train"


def test_build_keeps_positions_names_and_the_users_exception() -> None:
    assert build(Partial(anything, 1, Config(Schedule), key=(Config(Schedule),)))() == [1, Schedule(), (Schedule(),)]
    live = Opaque()
    assert build(Config(anything, live)) == [live]

    class Odd(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(a, b)

    def fails() -> None:
        raise Odd(1, 2)

    with pytest.raises(Odd) as caught:
        build(Config(anything, Config(fails)))
    assert type(caught.value) is Odd
    assert str(caught.value) == "(1, 2)"


def test_equality() -> None:
    assert Config(Trainer) == Config(Trainer, max_steps=100)
    assert Config(Trainer) != Partial(Trainer)
    assert Config(Trainer) != Config(Schedule)
    assert Config(Trainer) != Trainer()
    assert Config(Schedule, min_lr=math.nan) == Config(Schedule, min_lr=float("nan"))
    assert Config(anything, [1, (2, {"a": 3})]) == Config(anything, [1, (2, {"a": 3})])
    assert Config(anything, [1, (2, {"a": 3})]) != Config(anything, [1, (2, {"a": 4})])
    shared = Config(Trainer)
    assert Config(anything, shared, shared) == copy.deepcopy(Config(anything, shared, shared))
    assert Config(anything, shared, shared) != Config(anything, Config(Trainer), Config(Trainer))
    assert Config(anything, Config(Trainer), Config(Trainer)) != Config(anything, shared, shared)


def crowded(walk: int = 1, clone: str = "mine", broadcast: Any = None, diff: float = 0.5) -> None: ...


def test_a_clone_shares_nothing_that_can_be_changed() -> None:
    names = ["a"]
    first: Any = Partial(train, trainer=Config(Trainer, modules=names), shared={"x": [names]})
    second = first.clone(scale=3)
    assert (first.scale, second.scale) == (1.0, 3)
    assert second.trainer.modules is second.shared["x"][0]
    second.trainer.modules.append("b")
    second.shared["x"].append(1)
    second.optim.schedule.warmup_steps = 0
    assert first == Partial(train, trainer=Config(Trainer, modules=(kept := ["a"])), shared={"x": [kept]})
    assert (where(second, "scale") or "").startswith(str(Path(__file__).relative_to(Path.cwd())))
    with pytest.raises(ConfigError, match="train has no parameter 'scal'"):
        first.clone(scal=1)
    with pytest.raises(ConfigError, match=r"a live object in this configuration cannot be copied: .*lock"):
        Partial(train, shared=threading.Lock()).clone()


def test_broadcast_sets_a_value_wherever_it_is_taken() -> None:
    config: Any = Partial(anything, Config(Schedule), [Config(Trainer)], {"x": Config(Optimizer)}, warmup_steps=1)
    assert config.broadcast(warmup_steps=7) is config
    assert (config[0].warmup_steps, config.warmup_steps, config[2]["x"].schedule.warmup_steps) == (7, 7, 7)
    assert HERE in (where(config[0], "warmup_steps") or "")
    before = config.clone()
    with pytest.raises(ConfigError, match="nothing in this configuration takes an argument 'warmup_step'") as caught:
        config.broadcast(warmup_steps=1, warmup_step=1)
    assert (caught.value.hint or "").startswith("'warmup_steps'")
    assert config == before


def test_walk_visits_every_configuration_once_and_sets_by_function() -> None:
    trainer: Any = Config(Trainer)
    config: Any = Partial(train, trainer=trainer, shared=[trainer, {"s": Config(Schedule)}])
    met = []
    assert config.walk(lambda path, nested: met.append((path, nested))) is config
    assert [path for path, _ in met] == ["", "trainer", "optim", "optim.schedule", "shared[1]['s']"]
    assert met[1][1] is trainer
    config.walk(lr=lambda optim: optim.lr / 10, max_steps=lambda trainer: trainer.max_steps + 1)
    assert (config.optim.lr, config.trainer.max_steps) == (1e-5, 101)
    with pytest.raises(ConfigError, match="takes an argument 'max_stps'"):
        config.walk(max_stps=lambda _: 1)


def test_walk_wants_functions() -> None:
    with pytest.raises(ConfigError, match=r"walk takes a function for lr, not 3 \(int\)") as caught:
        recipe().walk(lr=3)
    assert caught.value.hint == "broadcast(lr=3)"


def test_diff_gives_a_row_a_value() -> None:
    first: Any = recipe()
    second = first.clone()
    assert first.diff(second) == []
    second.trainer.max_steps = 500
    second.optim.schedule = None
    second.trainer.modules.append("linear_proj")
    second.trainer.extra["a"] = 1
    assert list(map(str, first.diff(second))) == [
        "trainer.max_steps: 100 -> 500",
        "trainer.modules: ['linear_qkv'] -> ['linear_qkv', 'linear_proj']",
        "trainer.extra['a']: unset -> 1",
        "optim.schedule: a Config of Schedule -> None",
    ]
    assert first.diff(second)[0] == ("trainer.max_steps", 100, 500)
    assert str(first.diff(Config(Schedule))[0]) == "the whole: a Partial of train -> a Config of Schedule"
    second = first.clone()
    second.shared = second.trainer
    third = first.clone(shared=Config(Trainer))
    [row] = second.diff(third)
    assert str(row) == "shared: the same object as trainer -> a Config of Trainer"


def test_a_parameter_of_a_methods_name_hides_the_method() -> None:
    config: Any = Config(crowded, diff=0.75)
    config.walk = 2
    assert (config.walk, config.clone, config.broadcast, config.diff) == (2, "mine", None, 0.75)
    free: Any = Config(anything, clone=3)
    assert free.clone == 3
    assert free.diff(Config(anything, clone=3)) == []
    assert copy.deepcopy(config) == config
    assert build(Config(dict, walk=1)) == {"walk": 1}


def refuse_more_than_two(task: Any, ranks: int) -> None:
    if ranks > 2:
        raise ConfigError(f"{task.steps} steps on {ranks} ranks")


@checked_by(refuse_more_than_two)
def watched(steps: int = 1) -> None: ...


def test_a_task_with_a_check_of_its_own_is_asked_before_it_runs() -> None:
    task = Partial(watched, steps=7)
    check_task(task, 2)
    with pytest.raises(ConfigError, match="7 steps on 3 ranks"):
        launcher.run(task, executor=launcher.LocalExecutor(ntasks_per_node=3))


def by_place(a: int, b: int = 2, /, c: int = 3, *rest: int, d: int = 4, **more: int) -> Any:
    return a, b, c, rest, d, more


def test_what_is_given_by_position_is_checked_and_stays_in_its_place() -> None:
    config: Any = Partial(by_place, 1, 2, 3, 4, 5, e=6)
    assert build(config)() == (1, 2, 3, (4, 5), 4, {"e": 6})
    del config.c  # its default, and nothing moves up
    assert build(config)() == (1, 2, 3, (4, 5), 4, {"e": 6})
    for wrong, said in (
        (Partial(by_place, "x"), r"^\[0\] is 'x' \(str\), but by_place takes int"),
        (Partial(by_place, 1, 2, 3, "x"), r"^\[3\] is 'x'"),
        (Partial(by_place, 1, e="x"), r"^e is 'x'"),
        (Partial(by_place), "^a is missing: by_place requires it, by position"),
    ):
        with pytest.raises(ConfigError, match=said):
            check(wrong)
    with pytest.raises(ConfigError, match="'a' by position alone"):
        config.a = 3
    config[0] = Trainer(max_steps=7)
    assert isinstance(config[0], Config)

    def lists(names: list[str] = [], /) -> list[str]:  # noqa: B006
        return names

    changed: Any = Config(lists)
    changed[0].append("a")
    assert (build(changed), build(Config(lists))) == (["a"], [])


def test_a_deleted_value_is_its_default_again_and_no_other_recipes() -> None:
    first: Any = Config(Trainer, max_steps=5)
    first.modules.append("linear_proj")
    del first.modules, first.max_steps, first.precision
    assert first == Config(Trainer)
    first.modules.append("linear_proj")
    assert Config(Trainer).modules == ["linear_qkv"] == Trainer().modules
    with pytest.raises(ConfigError, match="no parameter 'moduls'") as caught:
        del first.moduls
    assert caught.value.hint == "'modules'"


def test_lists_in_tuples_and_dicts_of_other_kinds_are_not_shared_either() -> None:
    def task(names: Any = ([],), counts: Any = collections.Counter()) -> Any:  # noqa: B006
        return names, counts

    first: Any = Partial(task)
    first.names[0].append("a")
    first.counts["a"] += 1
    assert build(Partial(task))() == (([],), {})


def test_fiddles_own_configurations_become_ours() -> None:
    inner = fiddle.Partial(Schedule, warmup_steps=3)
    config: Any = Partial(anything, [inner], value=fiddle.Config(Trainer))
    assert config == Partial(anything, [Partial(Schedule, warmup_steps=3)], value=Config(Trainer))
    with pytest.raises(ConfigError, match="no parameter 'max_stps'"):
        config.value.max_stps = 3
    assert build(config)()[0][0]() == Schedule(warmup_steps=3)
    with pytest.raises(ConfigError, match="fiddle's own ArgFactory of Trainer has no equal here"):
        config.value = fiddle.ArgFactory(Trainer)
    with pytest.raises(ConfigError, match="fiddle's own Partial of Schedule is not a task"):
        check_task(inner)
    config[0].append(inner)  # behind our back
    with pytest.raises(ConfigError, match=r"^\[0\]\[1\] is fiddle's own Partial"):
        check(config)


@dataclasses.dataclass
class Scaled:
    size: int
    factor: dataclasses.InitVar[int] = 2

    def __post_init__(self, factor: int) -> None:
        self.size *= factor


def test_an_instance_that_forgot_an_argument_is_refused() -> None:
    with pytest.raises(ConfigError, match="this Scaled cannot be taken apart: it does not keep its argument 'factor'"):
        Config(anything, Scaled(2, 5))
    with pytest.raises(ConfigError, match="factor is 'x' "):
        check(Config(Scaled, 1, factor="x"))

    def task(scaled: Scaled = Scaled(2)) -> Scaled:  # noqa: B008
        return scaled

    with pytest.raises(ConfigError, match="task has a default that must be given, scaled: this Scaled") as caught:
        Config(task)
    assert caught.value.hint == "scaled=run.Config(Scaled, ...)"
    assert build(Config(task, scaled=Config(Scaled, 2, 5))).size == 10


@dataclasses.dataclass
class Doubled:
    lr: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        self.lr *= 2
        self.name = self.name or "doubled"


def test_an_instance_that_would_change_again_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"made again from its fields, its lr is 4.0 and not 2.0\n"):
        Config(anything, Doubled())
    assert build(Config(anything, Doubled(0.0))) == [Doubled(0.0)]
    assert build(Config(Doubled)).lr == 2.0


def test_what_contains_itself_and_what_has_no_signature_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ConfigError, match="this list contains itself"):
        Config(anything, endless)
    config: Any = Partial(anything, value=[])
    config.value.append(config)
    with pytest.raises(ConfigError, match="contains itself"):
        build(config)
    with pytest.raises(ConfigError, match="max does not say what arguments it takes"):
        Config(max, 1, 2)
