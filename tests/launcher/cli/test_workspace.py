"""A person's own file: what in it is a recipe, a value, an executor; where; and that its functions run elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import WORKSPACE, gemma_launch

from launcher.cli import workspace
from launcher.cli.workspace import Workspace
from launcher.errors import LaunchError
from launcher.worker import SCRIPT_MODULE

KINDS = """
import fiddle
import launcher as run
from executors.local import LocalExecutor
from executors.base import Executor
from launcher import Config, Partial
from typing import Any, Optional, TYPE_CHECKING
if TYPE_CHECKING:
    from nowhere import Nothing

def plain() -> run.Partial: ...
def filled() -> "Partial[dict[str, int]]": ...
def quoted() -> "run.Partial[Any]": ...
def config() -> Config[dict]: ...
def executor() -> LocalExecutor: ...
def base() -> "Executor": ...
def number() -> int: ...
def unresolved() -> "Nothing": ...
def bare(): ...
def _private() -> run.Partial: ...
class Thing: ...
annotated: run.LocalExecutor = run.LocalExecutor()
first = second = run.LocalExecutor()
third = first.clone()
constant = 3
@run.autoconvert
def built() -> dict:
    return dict(a=1)
"""


@pytest.fixture(autouse=True)
def forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, SCRIPT_MODULE, raising=False)


def load(text: str) -> Workspace:
    Path("gemma_workspace.py").write_text(text)
    try:
        return workspace.load(None)
    finally:
        sys.modules.pop(SCRIPT_MODULE, None)


def test_what_a_function_returns_says_what_it_is() -> None:
    found = load(KINDS)
    assert set(found.recipes) == {"plain", "filled", "quoted"}
    assert set(found.values) == {"config", "built"}
    assert set(found.executors) == {"executor", "base", "annotated", "first", "second", "third"}
    assert set(found.unknown) == {"number", "unresolved", "bare"}


def test_where_each_is_defined() -> None:
    found = load(KINDS)
    lines = KINDS.splitlines()
    for named in [*found.recipes.values(), *found.executors.values(), *found.unknown.values()]:
        file, line = named.defined.split(":")
        assert file == "gemma_workspace.py"
        assert named.name in lines[int(line) - 1]


def test_a_recipe_may_come_from_another_module() -> None:
    Path("my_recipes.py").write_text("import launcher as run\n\ndef sft() -> run.Partial: ...\n")
    found = load("from my_recipes import sft\n")
    assert found.recipes["sft"].defined == "my_recipes.py:3"


def test_completion_reads_what_loading_finds() -> None:
    Path("gemma_workspace.py").write_text(KINDS)
    assert workspace.names(None) == {
        "recipe": ["plain", "filled", "quoted"],
        "value": ["config"],
        "executor": ["executor", "base", "annotated", "first", "second", "third"],
    }


@pytest.mark.parametrize("text", ["def x(:", "\0", "x = " + "(" * 500, "raise SystemExit"])
def test_completion_says_nothing_of_a_file_that_is_none(text: str) -> None:
    Path("gemma_workspace.py").write_text(text)
    assert workspace.names(None) == {"recipe": [], "value": [], "executor": []}
    assert workspace.names("nowhere.py")["recipe"] == []


def test_without_a_file_there_is_nothing() -> None:
    assert workspace.load(None) == Workspace()
    with pytest.raises(LaunchError, match=r"no workspace file 'other\.py'"):
        workspace.load("other.py")


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("x = 1\ny = x + None\n", "TypeError: unsupported operand", 2),
        ("import helper\n", "ZeroDivisionError", 1),
        ("import json\n\njson.loads('{')\n", "JSONDecodeError", 3),
        ("def f(:\n", "SyntaxError: invalid syntax", 1),
        ("import sys\n\nsys.exit()\n", "SystemExit", 3),
        ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all'", 1),
    ],
)
def test_a_file_that_fails_names_its_own_line(text: str, message: str, line: int) -> None:
    Path("helper.py").write_text("1 / 0\n")
    with pytest.raises(LaunchError, match=message) as raised:
        load(text)
    assert raised.value.where == f"gemma_workspace.py:{line}"


def test_its_functions_run_elsewhere_from_a_copy_of_its_code(tmp_path: Path) -> None:
    """Also where it is not tracked, and is named from another folder."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    (folder / "helper.py").write_text("WORD = 'helped'\n")
    subprocess.run([*git, "add", "helper.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    (folder / "mine.py").write_text(WORKSPACE + "\n\ndef tell() -> str:\n    import helper\n\n    return "
                                    "f'{helper.WORD} {__file__}'\n\n\ndef telling() -> run.Partial[str]:\n"
                                    "    return run.Partial(tell)\n")  # fmt: skip
    done = gemma_launch("train", "--workspace", "repository/mine.py", "--factory", "telling", "-y")
    assert done.returncode == 0, done.stderr
    assert "workspace repository/mine.py\n" in done.stderr
    word, file = done.stdout.split()
    assert word == "helped"
    assert Path(file).name == "mine.py" and folder not in Path(file).parents
    assert "/code/" in file


def test_a_recipe_of_ones_own_hides_a_built_in_one() -> None:
    Path("gemma_workspace.py").write_text(WORKSPACE.replace("def job(", "def gemma3_1b_pretrain("))
    done = gemma_launch("train", "--factory", "gemma3_1b_pretrain", "--direct", "-y")
    assert json.loads(done.stdout)["steps"] == 3
    assert "recipe    gemma3_1b_pretrain  (gemma_workspace.py:" in done.stderr
