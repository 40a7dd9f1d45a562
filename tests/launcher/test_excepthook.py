"""How a launch script ends on an error that nobody caught."""

import subprocess
import sys
from pathlib import Path

import pytest


def last_words(folder: Path, text: str) -> str:
    (folder / "train.py").write_text("import sys\nimport launcher as run\n" + text)
    done = subprocess.run([sys.executable, "train.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


def test_a_launch_error_is_its_text_and_the_scripts_line(tmp_path: Path) -> None:
    said = last_words(tmp_path, "def launch():\n    run.Experiment.from_id('nobody')\nlaunch()\n")
    assert said.startswith("error: there is no experiment of the id 'nobody'")
    assert said.endswith("  at: train.py:4\n")
    assert "Traceback" not in said


def test_the_line_stands_there_once(tmp_path: Path) -> None:
    assert last_words(tmp_path, "run.Config(3)\n").count("train.py:3") == 1


@pytest.mark.parametrize("text", ["{}['x']\n", "sys.excepthook = lambda *e: print('mine', file=sys.stderr)\n1 / 0\n"])
def test_anything_else_is_shown_as_ever(tmp_path: Path, text: str) -> None:
    said = last_words(tmp_path, text)
    assert "KeyError: 'x'" in said or said == "mine\n"


def test_a_hook_of_the_users_own_stays(tmp_path: Path) -> None:
    (tmp_path / "hooked.py").write_text("import sys\nsys.excepthook = lambda *e: print('mine', file=sys.stderr)\n")
    (tmp_path / "train.py").write_text("import hooked\nimport launcher as run\nrun.Experiment.from_id('nobody')\n")
    done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == "mine\n"


def test_the_line_is_never_one_of_pythons_own(tmp_path: Path) -> None:
    text = (
        "import os\ndef plan():\n    found = type(one).plan(one)\n    os.unlink('gone.txt')\n    return found\n"
        "packager = run.PatternPackager(include_pattern='*.txt', relative_path='.')\n"
        "one = run.Experiment('e')\nopen('gone.txt', 'w').close()\n"
        "one.add(run.Script(inline='ls'), executor=run.LocalExecutor(packager=packager))\none.plan = plan\none.run()\n"
    )
    said = last_words(tmp_path, text)
    assert said.startswith("error: 'gone.txt' cannot be packaged: ")
    assert said.endswith("  at: train.py:13\n")


def test_the_line_is_never_one_of_gemmas_own(tmp_path: Path) -> None:
    text = "from gemma_models import import_checkpoint\nimport_checkpoint('nowhere', 'out')\n"
    said = last_words(tmp_path, text)
    assert said.startswith("error: the checkpoint folder 'nowhere' does not exist\n")
    assert said.endswith("  at: train.py:4\n")
    set_at = "def f(x: int): ...\ntask = run.Partial(f, x='a')\nrun.run(task, direct=True)\n"
    assert last_words(tmp_path, set_at).endswith("  set at: train.py:4\n")
