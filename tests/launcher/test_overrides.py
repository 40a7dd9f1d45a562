"""`a.b.c=value` changes exactly that, by its declared type; a mistake changes nothing and says what to type."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_tasks import Optimizer, Precision, Schedule, Trainer, anything, train

from launcher.config import Config, Partial, check, where
from launcher.errors import LaunchError, OverrideError
from launcher.overrides import apply, parse_value

HERE = Path(__file__).name


@dataclass(kw_only=True)
class Deep:
    names: list[str] = field(default_factory=lambda: ["a", "b"])
    sizes: dict[int, float] = field(default_factory=dict)
    rows: list[list[int]] = field(default_factory=list)
    kinds: set[str] = field(default_factory=lambda: {"x"})
    schedules: list[Schedule] = field(default_factory=lambda: [Schedule()])
    optional: Schedule | None = None
    folder: Path = Path("/data")
    steps: int = 512
    rate: float = 0.5
    name: str = "run"
    fast: bool = False
    loose: Any = 1


def work(deep: Deep, trainer: Any = None, /, optim: Optimizer = Optimizer(), **more: Any) -> None:  # noqa: B008
    """A task with every kind of parameter."""


def recipe() -> Any:
    return Partial(train, trainer=Config(Trainer), shared=Config(Deep))


CHANGES: list[tuple[str, str, Any]] = [
    ("trainer.max_steps=5", "trainer.max_steps", 5),
    ("trainer.max_steps=1e6", "trainer.max_steps", 1_000_000),
    ("trainer.folder=/a b/c=d", "trainer.folder", Path("/a b/c=d")),
    ("trainer.precision=FP32", "trainer.precision", Precision.FP32),
    ("trainer.modules=[x, 'y z']", "trainer.modules", ["x", "y z"]),
    ("optim.schedule.min_lr=1e-5", "optim.schedule.min_lr", 1e-5),
    ("optim={lr: 3}", "optim", Config(Optimizer, lr=3.0)),
    ("optim.betas=(0, 1)", "optim.betas", (0.0, 1.0)),
    ("optim.betas[1]=0.5", "optim.betas", (0.9, 0.5)),
    ("optim.betas[-1]=0.5", "optim.betas", (0.9, 0.5)),
    ("trainer.extra.a=1", "trainer.extra", {"a": 1}),
    ('trainer.extra["a b=c"]=1', "trainer.extra", {"a b=c": 1}),
    ("trainer.extra[a]=1", "trainer.extra", {"a": 1}),
    ("trainer.extra[5]=1", "trainer.extra", {"5": 1}),
    ("shared.sizes[5]=1", "shared.sizes", {5: 1.0}),
    ("shared.sizes['5']=1", "shared.sizes", {5: 1.0}),
    ("shared.sizes+={5: 1, 6: 2}", "shared.sizes", {5: 1.0, 6: 2.0}),
    ("shared.names[0]=c", "shared.names", ["c", "b"]),
    ("shared.names[-1]=c", "shared.names", ["a", "c"]),
    ("shared.names+=c", "shared.names", ["a", "b", "c"]),
    ("shared.names+=[c, 'd,e']", "shared.names", ["a", "b", "c", "d,e"]),
    ("shared.names-=a", "shared.names", ["b"]),
    ("shared.names-=[a, b]", "shared.names", []),
    ("shared.rows+=[1, 2]", "shared.rows", [[1, 2]]),
    ("shared.rows+=[[1], [2]]", "shared.rows", [[1], [2]]),
    ("shared.kinds+=y", "shared.kinds", {"x", "y"}),
    ("shared.kinds-=x", "shared.kinds", set()),
    ("shared.schedules[0].min_lr=2", "shared.schedules[0].min_lr", 2.0),
    ("shared.schedules+={min_lr: 2}", "shared.schedules", [Config(Schedule), Config(Schedule, min_lr=2.0)]),
    ("shared.optional=Schedule(min_lr=2)", "shared.optional", Config(Schedule, min_lr=2.0)),
    ("shared.folder/=sub dir", "shared.folder", Path("/data/sub dir")),
    ("shared.steps+=1_000", "shared.steps", 1512),
    ("shared.steps-=1e2", "shared.steps", 412),
    ("shared.steps*=0.5", "shared.steps", 256),
    ("shared.steps/=2", "shared.steps", 256),
    ("shared.rate*=4", "shared.rate", 2.0),
    ("shared.rate/=4", "shared.rate", 0.125),
    ("shared.loose/=4", "shared.loose", 0.25),
    ("shared.loose={a: [1, null]}", "shared.loose", {"a": [1, None]}),
    ("shared.name+= two", "shared.name", "run two"),
    ("shared.name=1e-4", "shared.name", "1e-4"),
    ("shared.name==", "shared.name", "="),
    ("shared.name=", "shared.name", ""),
    ("shared.name=a\nb", "shared.name", "a\nb"),
    ("shared=squad(names=[q])", "shared", Config(Deep, names=["q"])),
]


def squad(names: list[str]) -> Any:
    return Config(Deep, names=names)


def reached(config: Any, path: str) -> Any:
    for part in path.replace("[", ".[").split("."):
        config = config[int(part[1:-1])] if part.startswith("[") else getattr(config, part)
    return config


@pytest.mark.parametrize(("text", "path", "value"), CHANGES)
def test_a_change(text: str, path: str, value: Any) -> None:
    config = recipe()
    apply(config, [text], {"squad": squad})
    found = reached(config, path)
    assert (type(found), found) == (type(value), value)
    check(config)
    assert {row.path.partition("[")[0] for row in recipe().diff(config)} <= {
        path.partition("[")[0], *(f"{path}.{name}" for name in ("lr", "names"))
    }  # fmt: skip


def test_the_override_is_the_place_that_later_errors_name() -> None:
    config = recipe()
    apply(config, ["trainer.max_steps=5", "shared.names[0]=x", "shared.optional={min_lr: 2}", "optim.betas[0]=0"])
    assert where(config.trainer, "max_steps") == "`trainer.max_steps=5` on the command line"
    assert where(config.shared, "names") == "`shared.names[0]=x` on the command line"
    assert where(config.shared.optional, "min_lr") == "`shared.optional={min_lr: 2}` on the command line"
    assert where(config.optim, "betas") == "`optim.betas[0]=0` on the command line"
    assert HERE in (where(config, "trainer") or "")
    config.trainer.max_steps = "many"
    assert HERE in (where(config.trainer, "max_steps") or "")


def test_one_after_another() -> None:
    config = recipe()
    apply(config, ["shared.optional=Schedule", "shared.optional.min_lr=1", "shared.optional.min_lr*=3"])
    assert config.shared.optional.min_lr == 3.0


def test_what_is_shared_is_changed_in_both_places() -> None:
    one: Any = Config(Trainer)
    config: Any = Partial(train, trainer=one, shared=[one])
    names = one.modules
    apply(config, ["shared[0].max_steps=7", "trainer.modules+=x"])
    assert one.modules is names
    assert config.trainer is config.shared[0] is one
    assert (one.max_steps, one.modules) == (7, ["linear_qkv", "x"])


def test_positions_and_further_names() -> None:
    config: Any = Partial(work, Config(Deep), Config(Trainer))
    apply(config, ["extra=5", "optim.lr=1"])
    assert (config.extra, config.optim.lr) == (5, 1.0)
    with pytest.raises(OverrideError, match="'__class__' is Python's own"):
        apply(config, ["__class__=5"])
    with pytest.raises(OverrideError, match=r"<lambda> has no parameter 'deep'; it has steps"):
        strict: Any = Partial(lambda deep, /, steps=1: None, Config(Deep))
        apply(strict, ["deep.steps=5"])


def test_all_or_nothing() -> None:
    config = recipe()
    config.trainer.extra["a"] = 1
    before, place = config.clone(), where(config.trainer, "max_steps")
    names, extra, kinds = config.shared.names, config.trainer.extra, config.shared.kinds
    with pytest.raises(OverrideError, match=r"`trainer\.max_steps=abc`"):
        apply(
            config,
            ["trainer.max_steps=5", "shared.names+=c", "shared.names[0]=q", "trainer.extra-=a", "trainer.extra.b=2",
             "shared.kinds-=x", "shared.optional=Schedule", "shared.schedules[0].min_lr=3", "optim.betas[0]=0",
             "trainer.max_steps=abc"],
        )  # fmt: skip
    assert config == before
    assert (config.shared.names, config.trainer.extra, config.shared.kinds) == (names, extra, kinds)
    assert config.shared.names is names
    assert where(config.trainer, "max_steps") == place


REFUSED: list[tuple[str, str, str | None]] = [
    ("trainer.max_stps=5", "trainer has no parameter 'max_stps'; it has max_steps, folder, precision, accelerator, "
     "modules, extra", "trainer.max_steps=5"),
    ("max_steps=5", "train has no parameter 'max_steps'; it has trainer, optim, shared, scale", "trainer.max_steps=5"),
    ("min_lr=5", "train has no parameter 'min_lr'; it has trainer, optim, shared, scale",
     "optim.schedule.min_lr=5 or shared.schedules[0].min_lr=5"),
    ("optimm.lr=5", "train has no parameter 'optimm'; it has trainer, optim, shared, scale", "optim.lr=5"),
    ("trainer.max_steps=abc", "trainer.max_steps takes int, not 'abc'", None),
    ("trainer.precision=bf61", "trainer.precision takes Precision, not 'bf61'", "BF16 or FP32"),
    ("trainer.max_steps.x=1", "trainer.max_steps is 100 (int), which has nothing in it to set", None),
    ("shared.optional.min_lr=1", "shared.optional is None, so that nothing in it can be set",
     "shared.optional=Schedule, then min_lr in it; or Schedule(min_lr=...) at once"),
    ("shared.names[2]=c", "shared.names has 2 items, and no [2]", "shared.names+=value, to add one"),
    ("shared.names[-3]=c", "shared.names has 2 items, and no [-3]", "shared.names+=value, to add one"),
    ("shared.names.first=c", "shared.names is a list, whose items have numbers", "shared.names[0]"),
    ("shared.names-=q", "shared.names has no 'q'; it has a, b", None),
    ("shared.rows+=x", "shared.rows takes list[int], not 'x'", "[x]"),
    ("shared.rows+=[x]", "shared.rows[0] takes list[int], not 'x'", "[x]"),
    ("trainer.extra.a.b=1", "trainer.extra['a'] is not set, so that nothing in it can be", "trainer.extra['a']=..., "
     "first"),
    ("trainer.extra-=q", "trainer.extra has no 'q'; it has nothing", None),
    ("trainer.extra.a=x", "trainer.extra['a'] takes int, not 'x'", None),
    ("trainer.extra.a+=1", "trainer.extra['a'] is unset: there is nothing for += to change", "trainer.extra['a']=1"),
    ("shared.sizes.a=1", "shared.sizes takes int, not 'a'", None),
    ("trainer[0].x=1", "trainer has no parameter [0]; it has max_steps, folder, precision, accelerator, modules, "
     "extra", None),
    ("trainer.folder/=a", "trainer.folder is None: there is nothing for /= to change", "trainer.folder=a"),
    ("shared.steps/=0", "shared.steps is 512: division by zero", None),
    ("shared.steps/=1000", "shared.steps takes int, and 512 /= 1000 is 0.512", None),
    ("shared.steps*=x", "shared.steps is 512, and 'x' is no number", None),
    ("shared.rate*=1e308e", "shared.rate is 0.5, and '1e308e' is no number", None),
    ("shared.name*=2", "shared.name is 'run' (str), which *= cannot change", None),
    ("shared.fast+=1", "shared.fast is False (bool), which += cannot change", None),
    ("optim+={lr: 1}", "optim is a Config of Optimizer, which += cannot change", None),
    ("shared=sqad", "shared takes", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said", "instead"), REFUSED[:-1])
def test_what_is_refused(text: str, said: str, instead: str | None) -> None:
    config = recipe()
    before = config.clone()
    with pytest.raises(OverrideError) as caught:
        apply(config, [text], {"squad": squad})
    assert caught.value.message == f"`{text}` on the command line: {said}"
    assert caught.value.hint == instead
    assert config == before


def test_the_line_of_the_value_in_the_way_is_named() -> None:
    config = recipe()
    config.shared.optional = None
    with pytest.raises(OverrideError) as caught:
        apply(config, ["shared.optional.min_lr=1"], source="the last line")
    assert caught.value.message.startswith("`shared.optional.min_lr=1` on the last line: ")
    assert HERE in (caught.value.where or "")
    with pytest.raises(OverrideError) as caught:
        apply(config, ["shared.names=[a]", "shared.names[4]=b"])
    assert caught.value.where == "`shared.names=[a]` on the command line"


HOSTILE = [
    "", "=", "==", ".", "a", "a.b", "trainer.max_steps", "a..b=1", ".a=1", "a.=1", "trainer.=1", "a.b.", "[0]=1",
    "trainer[=1", "trainer[]=1", "trainer['a=1", "trainer.modules[99999999999]=x", "-x=1", "--trainer.max_steps=5",
    "- =1", "+trainer.max_steps=1", "trainer.max_steps =1", " trainer.max_steps=1", "trainer .max_steps=1",
    "__class__=1", "__init__.x=1", "trainer.__class__=1", "trainer.__dict__.x=1", "trainer.__init__.__globals__.x=1",
    "trainer.max_steps.__class__=1", "__arguments__.x=1", "trainer.__fn_or_cls__=os.system", "_arguments_set_value=1",
    "clone=1", "trainer.walk=1", "trainer.max_steps=$(touch hostile)", "trainer.max_steps=1; touch hostile",
    "trainer.max_steps=`touch hostile`", "trainer.max_steps=__import__('os').system('touch hostile')",
    "trainer.max_steps=9**9**9", "trainer.max_steps=1e400", "trainer.max_steps=1e999999999",
    "trainer.max_steps=" + "9" * 10_000, "shared.steps*=" + "9" * 900 + "e500", "trainer.max_steps*=1e999999999",
    "optim.lr=1e400", "optim.lr*=1e309", "trainer.max_steps=\x00", "trainer.max_steps=\u202e5",
    "trainer.max_steps=5\nx=1", "trainer\n.max_steps=5", "é" * 300 + "=1", "a" * 300 + "=1", "a." * 5000 + "b=1",
    "trainer." * 300 + "x=1", "trainer.modules" + "[0]" * 300 + "=1", "trainer.modules=" + "[" * 100_000,
    "trainer.modules=" + "[" * 100_000 + "]" * 100_000, "trainer=" + "{a: " * 50_000,
    "shared=" + "squad(names=" * 5000, "trainer=os:system", "trainer=os.system('touch hostile')",
    "trainer=!!python/object:os", "\ud800=1", "trainer.max_steps=\ud800", "💥=1", "trainer.💥=1", "trainer/max_steps=1",
    "trainer:max_steps=1", "%s=1",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_one_short_error_and_changes_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = recipe()
    before = config.clone()
    with pytest.raises(OverrideError) as caught:
        apply(config, [text], {"squad": squad})
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("`")
    assert len(lines) <= 3
    assert all(len(line) < 500 for line in lines)
    assert "".join(lines).encode("utf-8").decode().isprintable()
    assert config == before
    assert list(tmp_path.iterdir()) == []


def test_long_values_of_every_sign_are_kept_as_they_are() -> None:
    config = recipe()
    for value in ("x" * 300, "$(reboot); `x` && y", "-n", "--help", "a\nb\tc", "ünï 💥", "'", '"', "{}[]()=,:"):
        apply(config, [f"shared.name={value}"])
        assert config.shared.name == value


@given(st.text(max_size=60))
def test_any_text_is_applied_or_refused(text: str) -> None:
    config = recipe()
    try:
        apply(config, [text])
    except OverrideError:
        assert config == recipe()


@given(st.sampled_from(["trainer", "trainer.modules", "shared.loose", "optim.betas[0]"]), st.text(max_size=30))
def test_any_value_is_applied_or_refused(path: str, value: str) -> None:
    config = recipe()
    try:
        apply(config, [f"{path}={value}"])
    except OverrideError as error:
        assert "\n" not in error.message
        assert config == recipe()
    else:
        check(config)


def test_a_dtype_that_is_there_takes_another() -> None:
    torch = pytest.importorskip("torch")
    config: Any = Partial(anything, dtype=torch.float32)
    apply(config, ["dtype=bf16"])
    assert config.dtype is torch.bfloat16


def test_parse_value_stands_alone() -> None:
    assert parse_value("1e3", int, "max_steps") == 1000
    with pytest.raises(OverrideError, match=r"^max_steps takes int, not 'x'$"):
        parse_value("x", int, "max_steps")


def test_what_is_no_configuration_has_no_overrides() -> None:
    with pytest.raises(OverrideError, match=r"3 \(int\) is not a configuration"):
        apply(3, ["a=1"])  # type: ignore[arg-type]
    assert issubclass(OverrideError, LaunchError)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, launcher.overrides\nfrom launcher.config import Config, Partial\n"
        "from gemma_models import gemma3_1b\nrecipe = gemma3_1b.pretrain_recipe()\n"
        "launcher.overrides.apply(recipe, ['trainer.max_steps=5'])\n"
        "print({'torch', 'yaml', 'rich', 'libcst'} & set(sys.modules), recipe.trainer.max_steps)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "set() 5\n"


def texts(kind: type[int] = int, /, **more: str) -> Any:
    return kind, more


def test_what_stars_take_is_read_as_they_declare() -> None:
    config: Any = Partial(texts)
    apply(config, ["steps=7"])
    assert config.steps == "7"


def test_a_member_as_a_key_is_named_as_it_is_typed() -> None:
    def task(sizes: dict[Precision, dict[str, int]] = {}) -> Any:  # noqa: B006
        return sizes

    with pytest.raises(OverrideError, match="is not set") as caught:
        apply(Partial(task), ["sizes[BF16].a=1"])
    assert caught.value.hint == "sizes[BF16]=..., first"


def test_one_text_is_no_list() -> None:
    with pytest.raises(OverrideError, match="is one text, and overrides are a list") as caught:
        apply(Partial(texts), "steps=7")
    assert caught.value.hint == "['steps=7']"


def test_a_class_itself_cannot_be_typed() -> None:
    def task(kind: type[int] = int) -> Any:
        return kind

    with pytest.raises(OverrideError, match=r"kind takes type\[int\], not 'type'"):
        apply(Partial(task), ["kind=type"])
