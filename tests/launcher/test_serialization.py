"""Our JSON is exact: what is read back equals what was saved, with the same things shared."""

import dataclasses
import functools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sample_tasks
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sample_tasks import Opaque, Optimizer, Precision, Trainer, anything, train

from launcher.config import Config, Partial, build, check, where
from launcher.errors import ConfigError, LaunchError, SerializationError
from launcher.serialization import dumps, encode, from_yaml, loads, to_yaml
from launcher.worker import Reader

try:
    import torch

    DTYPES = [torch.bfloat16, torch.float32]
except ImportError:
    DTYPES = []

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([Precision.BF16, train, Trainer, len, Path("a"), Path("/b c/ü"), *DTYPES])
)
keys = st.text() | st.integers() | st.booleans() | st.sampled_from(["$config", "$", Precision.FP32, Path("k")])
hashable = st.none() | st.booleans() | st.integers() | st.text()


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.dictionaries(st.sampled_from(["a", "b_c", "ünï"]), inner, max_size=2)
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.sets(hashable, max_size=3),
        st.frozensets(hashable, max_size=3),
        st.builds(lambda given: Config(anything, **given), named),
        st.builds(lambda given: Partial(anything, *given.values(), **given), named),
        st.builds(lambda value: [value, {"again": value}], inner),  # shared
        st.builds(lambda value: Config(train, trainer=Config(Trainer), shared=value), inner),
    )


@settings(max_examples=150, deadline=None)
@given(st.recursive(leaves, containers, max_leaves=12))
def test_what_is_read_back_equals_what_was_saved(value: Any) -> None:
    config = Config(anything, value, value=value)
    text = dumps(config)
    assert loads(text) == config
    assert dumps(loads(text)) == text


def shape(value: Any) -> Any:
    """What a value is, with the types that == overlooks (1 and True) and the partials that it cannot compare."""
    if isinstance(value, functools.partial):
        return value.func, shape(value.args), shape(value.keywords)
    if isinstance(value, dict):
        return dict, [(shape(key), shape(item)) for key, item in value.items()]
    if isinstance(value, set | frozenset):
        return type(value), {shape(item) for item in value}
    if isinstance(value, list | tuple):
        return type(value), [shape(item) for item in value]
    return type(value), repr(value) if isinstance(value, float) else value  # NaN differs from itself


@settings(max_examples=60, deadline=None)
@given(st.recursive(leaves, containers, max_leaves=12))
def test_the_worker_builds_what_this_process_builds(value: Any) -> None:
    config = Config(anything, value, value=value)
    built = Reader().read(json.loads(json.dumps(encode(config))))
    assert shape(built) == shape(build(config))


def test_numbers_keep_their_kind() -> None:
    for value in (1, 1.0, True, -0.0, 1e300, 0.1, 2**70):
        read = loads(dumps(value))
        assert (type(read), repr(read)) == (type(value), repr(value))
    read = loads(dumps([math.nan, math.inf, -math.inf]))
    assert math.isnan(read[0])
    assert read[1:] == [math.inf, -math.inf]
    json.loads(dumps([math.nan]), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_sharing_is_kept_and_not_invented() -> None:
    trainer, names = Config(Trainer), ["a"]
    config: Any = Partial(anything, trainer, trainer, Config(Trainer), names, names, ["a"])
    read = loads(dumps(config))
    assert read[0] is read[1]
    assert read[0] is not read[2]
    assert read[3] is read[4]
    assert read[3] is not read[5]


def test_every_value_is_in_the_file_defaults_too() -> None:
    node = encode(Partial(train, trainer=Config(Trainer)))
    assert node["args"]["trainer"]["args"]["max_steps"] == 100
    assert node["args"]["optim"]["args"]["schedule"]["args"]["warmup_steps"] == 10
    assert node["args"]["scale"] == 1.0


def test_a_change_to_a_default_is_saved() -> None:
    config: Any = Partial(train, trainer=Config(Trainer))
    config.optim.schedule.warmup_steps = 7
    config.trainer.modules.append("x")
    for read in (loads(dumps(config)), from_yaml(to_yaml(config))):
        assert (read.optim.schedule.warmup_steps, read.trainer.modules) == (7, ["linear_qkv", "x"])


def test_a_dtype_is_saved_by_name_and_torch_is_not_imported_for_the_rest() -> None:
    torch = pytest.importorskip("torch")
    assert encode([torch.bfloat16]) == [{"$dtype": "torch.bfloat16"}]
    assert loads(dumps(torch.float32)) is torch.float32


def local_function() -> Any:
    def inner() -> None: ...

    return inner


class Real(float):
    """As numpy's are."""


@pytest.mark.parametrize(
    ("value", "said", "hint"),
    [
        (Opaque(), "is a live object of sample_tasks.Opaque", "run.Config(Opaque, ...)"),
        (lambda: 1, "is a lambda", "def, at top level"),
        (local_function(), "is local to a function", "move it to the top level of its file"),
        (functools.partial(train), "is a live object of functools.partial", "run.Partial(train, ...)"),
        (Config(functools.partial(train)), "has no name to find it by", "train, with the arguments given here"),
        (Path("a").exists, "is Path.exists of a live object", "a function that is given a run.Config(PosixPath, ...)"),
        (Real(1.5), "is a live object of", "float(...)"),
        (Opaque().__str__, "is a live object of builtins.method-wrapper", "run.Config(method-wrapper, ...)"),
    ],
)
def test_what_cannot_be_found_again_is_refused_with_its_line(value: Any, said: str, hint: str | None) -> None:
    config: Any = Partial(train, trainer=Config(Trainer))
    config.shared = [value]
    with pytest.raises(SerializationError) as caught:
        dumps(config)
    assert caught.value.message.startswith("shared[0] ")
    assert said in caught.value.message
    assert Path(__file__).name in (caught.value.where or "")
    assert caught.value.hint == hint


def test_a_name_that_means_something_else_now_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = sample_tasks.leave
    monkeypatch.setattr(sample_tasks, "leave", sample_tasks.anything)
    with pytest.raises(SerializationError, match="is something else"):
        encode(Partial(old))


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(SerializationError, match="contains itself"):
        dumps(loop)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a configuration"),
        ("[]", "not a configuration"),
        ("{}", "not a configuration"),
        ('{"version": 99, "value": 1}', "of version 99"),
        ('{"version": 1, "value": {"$config": "nowhere:f", "args": {}}}', "No module named 'nowhere'"),
        ('{"version": 1, "value": {"$config": "sample_tasks:gone", "args": {}}}', "has no attribute 'gone'"),
        ('{"version": 1, "value": {"$config": "sample_tasks:Trainer", "args": {"x": 1}}}', "no parameter 'x'"),
        ('{"version": 1, "value": {"$config": {"file": "/nowhere.py", "name": "f"}, "args": {}}}', "No such file"),
        ('{"version": 1, "value": {"$config": ":f", "args": {}}}', "Empty module name"),
        ('{"version": 1, "value": {"$set": [[1]]}}', "unhashable"),
        ('{"version": 1, "value": ' + "[" * 100_000, "not a configuration"),
    ],
)
def test_a_bad_document_is_refused(text: str, said: str) -> None:
    with pytest.raises(SerializationError, match=said):
        loads(text)


def test_the_launch_scripts_own_functions_travel_as_file_and_name(tmp_path: Path) -> None:
    script = tmp_path / "a script's.py"
    script.write_text(
        "from launcher.config import Partial\nfrom launcher.serialization import encode, loads, dumps\n"
        "def task(): ...\n"
        "print(encode(Partial(task))['$partial'])\nassert loads(dumps(Partial(task))) == Partial(task)\n"
    )
    shown = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str({"file": str(script.resolve()), "name": "task"})
    piped = subprocess.run([sys.executable], input=script.read_text(), capture_output=True, text=True, check=False)
    assert "typed into an interactive session" in piped.stderr


YAML = """\
# gemma-launcher configuration 1
_target_: sample_tasks:train
_partial_: true
trainer: &id001
  _target_: sample_tasks:Trainer
  max_steps: 100
  folder: !path /x
  precision: !enum sample_tasks:Precision.BF16
  accelerator: gpu
  modules:
  - linear_qkv
  extra: {}
optim:
  _target_: sample_tasks:Optimizer
  lr: 1.0e-05
  betas: !tuple [0.9, 0.95]
  schedule:
    _target_: sample_tasks:Schedule
    warmup_steps: 10
    min_lr: 0.0
shared:
  ünï: !tuple
  - 1
  - !set [2]
  fn: !ref sample_tasks:train
  text:
  - '1e-4'
  - 'true'
  - a text of several words
  3: *id001
scale: 1.0
"""


def test_yaml_is_for_people() -> None:
    config: Any = Partial(train, trainer=Config(Trainer, folder=Path("/x")), optim=Config(Optimizer, lr=1e-5))
    config.shared = {"ünï": (1, {2}), "fn": train, "text": ["1e-4", "true", "a text of several words"],
                     3: config.trainer}  # fmt: skip
    assert to_yaml(config) == YAML
    assert from_yaml(YAML) == config


@settings(max_examples=200, deadline=None)
@given(st.recursive(leaves, containers, max_leaves=12))
def test_what_is_read_back_from_yaml_equals_what_was_written(value: Any) -> None:
    config = Config(anything, value, value=value)
    text = to_yaml(config)
    read = from_yaml(text)
    assert read == config
    assert shape(build(read)) == shape(build(config))
    assert to_yaml(read) == text


@example("\x85")  # a line break to YAML, which folds it
@given(st.floats() | st.integers() | st.text(st.characters()) | st.sampled_from(["_target_", "<<", "=", "1:30", "~"]))
def test_every_scalar_keeps_its_kind_in_yaml(value: Any) -> None:
    read = from_yaml(to_yaml([value, {value: 1} if value == value else 1]))
    assert (type(read[0]), repr(read[0])) == (type(value), repr(value))
    assert value != value or read[1] == {value: 1}


def test_yaml_of_a_dict_that_looks_like_a_call() -> None:
    value = {"_target_": "os:system", "_args_": ["reboot"], 3: {"_partial_": 1}}
    assert "!dict" in to_yaml(value)
    assert from_yaml(to_yaml(value)) == value
    with pytest.raises(SerializationError, match="an argument named '_target_'"):
        to_yaml(Config(anything, _target_=1))


def test_yaml_edited_by_hand(tmp_path: Path) -> None:
    edited = (
        YAML.replace("100", "5e2")
        .replace("1.0e-05", "3e-4")
        .replace("  precision: !enum sample_tasks:Precision.BF16\n", "")
    )
    read = from_yaml(edited.replace("5e2", "500"), "recipe.yaml")
    check(read)
    assert (read.trainer.max_steps, read.optim.lr, read.trainer.precision) == (500, 3e-4, Precision.BF16)
    assert read.shared[3] is read.trainer
    assert where(read.trainer, "max_steps") == "recipe.yaml:6"
    with pytest.raises(ConfigError) as caught:
        check(from_yaml(edited, tmp_path / "recipe.yaml"))
    assert str(caught.value) == (
        f"trainer.max_steps is 500.0 (float), but Trainer takes int\n  set at: {tmp_path / 'recipe.yaml'}:6\n  try: 500"
    )
    assert from_yaml(YAML.partition("\n")[2]) == from_yaml(YAML)  # a program that rewrites YAML drops comments


@pytest.mark.parametrize(
    ("old", "new", "said", "line", "hint"),
    [
        ("max_steps", "max_stps", "Trainer has no parameter 'max_stps'; it has max_steps, ", 6, "'max_steps'"),
        ("configuration 1", "configuration 2", "of version 2; this launcher reads version 1", 1, None),
        ("!path", "!pth", "!pth cannot be read here", 7, None),
        ("!path /x", "!!python/object/apply:os.system [x]", "!!python/object/apply:os.system cannot be read", 7, None),
        ("Precision.BF16", "Precision.BF61", "Precision has no member 'BF61'; it has BF16, FP32", 8, "'BF16'"),
        ("sample_tasks:Schedule", "sample_tasks:Gone", "AttributeError: module 'sample_tasks' has no", 18, None),
        ("sample_tasks:Schedule", "sample_tasks:Shedule", "module 'sample_tasks' has no", 18, "'Schedule'"),
        ("sample_tasks:Schedule", "[sample_tasks]", "a name is expected here: module:name", 18, None),
        ("!enum sample_tasks:Precision", "!enum sample_tasks:Trainer", "Trainer is no enumeration", 8, None),
        ("_partial_: true", "_partial_: perhaps", "_partial_ is 'perhaps', which is no bool", 3, None),
        ("_partial_: true", "_args_: {trainer: 1}", "_args_ is {'trainer': 1}, which is no list", 3, None),
        ("_partial_: true", "_args_: [1]", "'trainer' is given by _args_ already", 4, None),
        ("extra: {}", "extra: !ref os:environ", "os:environ is neither a function nor a class", 12, None),
        ("extra: {}", "extra: !dtype torch.nn", "this cannot be read here: ", 12, None),
        ("sample_tasks:Schedule", "nowhere:Schedule", "ModuleNotFoundError: No module named 'nowhere'", 18, None),
        ("sample_tasks:Schedule", "Schedule", "'Schedule' names nothing: it is module:name", 18, None),
        ("  - linear_qkv", "  - linear_qkv: [", "this is not YAML: expected ',' or ']'", 13, None),
        ("*id001", "*id002", "this is not YAML: found undefined alias 'id002'", 30, None),
        ("min_lr: 0.0", "min_lr: 0.0\n    min_lr: 1.0", "a name is expected here, each once", 21, None),
        ("min_lr: 0.0", "? [a]\n    : 1.0", "a name is expected here, each once", 20, None),
        ("- linear_qkv", "- *id001", "this contains itself", 4, None),
        ("!set [2]", "!set [[2]]", "TypeError: unhashable type: 'list'", 24, None),
        ("extra: {}", "extra: !dict {a: 1, a: 2}", "'a' stands here twice", 12, None),
    ],
)  # fmt: skip
def test_yaml_with_a_mistake_names_the_line(old: str, new: str, said: str, line: int, hint: str | None) -> None:
    assert old in YAML
    with pytest.raises(LaunchError) as caught:
        from_yaml(YAML.replace(old, new), "a recipe.yaml")
    assert said in caught.value.message
    assert (caught.value.where, caught.value.hint) == (f"a recipe.yaml:{line}", hint)


@pytest.mark.parametrize("text", ["", "# nothing", "a: b: c", "[" * 5000, "\x00", "--- 1\n--- 2", "!!binary aGk="])
def test_what_is_no_yaml_of_ours_is_one_clear_error(text: str) -> None:
    with pytest.raises(SerializationError) as caught:
        from_yaml(text, "recipe.yaml")
    assert (caught.value.where or "").startswith("recipe.yaml")
    assert len(str(caught.value)) < 300


def test_a_dtype_in_yaml() -> None:
    torch = pytest.importorskip("torch")
    config = Config(anything, dtype=torch.bfloat16)
    assert "dtype: !dtype torch.bfloat16" in to_yaml(config)
    assert from_yaml(to_yaml(config)) == config


def test_the_launch_scripts_own_functions_in_yaml(tmp_path: Path) -> None:
    script = tmp_path / "a script's.py"
    script.write_text(
        "import enum, pathlib\nfrom launcher.config import Config, Partial\n"
        "from launcher.serialization import dumps, from_yaml, loads, to_yaml\n"
        "class Kind(enum.Enum):\n    A = 1\n"
        "def task(x=None, kind=Kind.A): ...\n"
        "config = Partial(task, x=[Config(task, x=pathlib.Path('a')), task], kind=Kind.A)\n"
        "assert from_yaml(to_yaml(config)) == config == loads(dumps(config))\nprint(to_yaml(config))"
    )
    shown = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert f"kind: !enum {script.resolve()}:Kind.A" in shown.stdout


def by_place(a: int, b: int = 2, /, c: int = 3, *rest: int, d: int = 4, **more: int) -> list[Any]:
    return [a, b, c, rest, d, more]


@pytest.mark.parametrize(
    "task",
    [
        Partial(by_place, 1),
        Partial(by_place, 1, c=5, e=6),
        Partial(by_place, 1, 2, 3, 4, 5, d=6, e=7),
        Config(by_place, 1, 9),
        Partial(by_place, c=5),  # whoever calls it gives a
    ],
)
def test_what_is_given_by_position_keeps_its_place(task: Any) -> None:
    assert loads(dumps(task)) == task == from_yaml(to_yaml(task))
    here, there = build(task), Reader().read(encode(task))
    if isinstance(task, Partial):
        missing = () if 0 in task.__arguments__ else (8,)
        here, there = here(*missing), there(*missing)
    assert here == there
    assert here[2] == task.c


LOADED = """
import sys
from launcher.serialization import from_yaml, loads
def fails(*args, **kwargs): sys.exit("loading called something")
read = from_yaml("_target_: os:system\\ncommand: echo called")
assert (read.command, str(read)) == ("echo called", "<Config[system(command='echo called')]>")
read = from_yaml("_target_: __main__:fails\\n_args_: [1]\\nx: {_target_: __main__:fails}")
read = loads('{"version": 1, "value": {"$config": "__main__:fails", "positional": [1], "args": {"x": 2}}}')
"""


def test_loading_calls_nothing(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(LOADED)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Loader:
    @classmethod
    def load(cls, path: str = "p") -> str:
        return f"{cls.__name__} {path}"

    @staticmethod
    def plain() -> str:
        return "plain"


class SubLoader(Loader): ...


@pytest.mark.parametrize("target", [Loader.load, SubLoader.load, SubLoader.plain])
def test_methods_of_classes_travel_by_name(target: Any) -> None:
    task: Any = Config(target)
    assert loads(dumps(task)) == task == from_yaml(to_yaml(task))
    assert Reader().read(encode(task)) == target()


@pytest.mark.parametrize("save", [dumps, encode, to_yaml, Config.clone])
def test_what_is_nested_too_deep_is_one_clear_error(save: Any) -> None:
    config: Any = Config(anything)
    for _ in range(sys.getrecursionlimit()):
        config = Config(anything, config)
    with pytest.raises(LaunchError, match="nested too deep to be"):
        save(config)


@dataclasses.dataclass
class Scaled:
    size: int
    factor: dataclasses.InitVar[int] = 2

    def __post_init__(self, factor: int) -> None:
        self.size *= factor


def scale(scaled: Scaled = Scaled(2), times: int = 1) -> int:  # noqa: B008
    return scaled.size * times


def test_a_default_that_cannot_be_made_is_not_needed_where_the_file_gives_another() -> None:
    task: Any = Config(scale, scaled=Config(Scaled, 2, 5))
    read = from_yaml(to_yaml(task), "scale.yaml")
    assert loads(dumps(task)) == task == read
    assert (where(read, "times"), build(read)) == ("scale.yaml:7", 10)
    with pytest.raises(ConfigError, match="has a default that must be given, scaled"):
        from_yaml(f"_target_: {__name__}:scale")
