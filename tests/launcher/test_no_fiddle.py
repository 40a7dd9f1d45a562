"""A node without fiddle and paramiko, which have no business there: real processes that cannot import those.

click, rich and yaml are no business of ours there either, but transformers has its own with them, and TensorBoard with
absl.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import gemma_runs
import pytest

from launcher import worker
from launcher.serialization import encode
from launcher.worker import JobFiles

ROOT = Path(worker.__file__).parents[1]
BARE = """
import sys

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("fiddle", "paramiko", "libcst", "graphviz"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
"""
SCRIPT = """
import launcher as run
from gemma_models import MockData, gemma3_270m

executor = run.LocalExecutor()

class Notes(run.Plugin):
    pass

def data(seed: int) -> run.Config[MockData]:
    return run.Config(MockData, vocab_size=seed)

@run.autoconvert
def converted(seed: int = 2) -> MockData:
    return MockData(vocab_size=seed)

def recipe():
    return gemma3_270m.finetune_recipe()

def task() -> str:
    return "ran"

def refused(name: str) -> None:
    globals()[name]()

if __name__ == "__main__":
    run.run(run.Partial(task))
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has none of them."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BARE)
    return {**os.environ, "PYTHONPATH": str(tmp_path / "bare")}


def run_worker(folder: Path, call: object, env: dict[str, str], sys_path: list[str]) -> int:
    spec = {"version": 1, "experiment": "e-1", "name": "t", "code": None, "folder": str(folder)}
    JobFiles(folder).task.write_text(json.dumps({**spec, "sys_path": sys_path, "moved": {}, "call": call}))
    command = [sys.executable, str(Path(worker.__file__)), str(JobFiles(folder).task)]
    return subprocess.run(command, env=env, check=False).returncode


def test_a_training_needs_none_of_them(tmp_path: Path, bare: dict[str, str]) -> None:
    recipe = gemma_runs.recipe(tmp_path, "run", steps=2, val_check_interval=2)
    samples = str(Path(gemma_runs.__file__).parent)
    status = run_worker(tmp_path, encode(recipe), bare, [samples, str(ROOT)])
    assert status == 0, JobFiles(tmp_path).stderr(0).read_text()
    assert json.loads(JobFiles(tmp_path).result.read_text())["step"] == 2
    assert list(gemma_runs.losses(tmp_path)) == [1, 2]


def test_training_looks_for_none_of_them(tmp_path: Path) -> None:
    """Neither does it take what stands in for fiddle where fiddle is there."""
    # wandb has click; Megatron imports it where it is there.
    code = "import sys; sys.modules['wandb'] = None; import gemma_models.training.fit; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = set(shown.stdout.split())
    assert "gemma_models.training.fit" in loaded
    assert not loaded & {"fiddle", "rich", "click", "paramiko", "launcher.config", "executors"}


def test_a_launch_script_loads_and_its_functions_run(tmp_path: Path, bare: dict[str, str]) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    call = {"$partial": {"file": str(tmp_path / "script.py"), "name": "task"}, "args": {}}
    assert run_worker(tmp_path, call, bare, [str(tmp_path), str(ROOT)]) == 0
    assert json.loads(JobFiles(tmp_path).result.read_text()) == "ran"


@pytest.mark.parametrize("name", ["data", "converted", "recipe"])
def test_making_a_configuration_says_what_to_install(tmp_path: Path, bare: dict[str, str], name: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("def data(seed: int)", "def data(seed: int = 1)"))
    call = {"$partial": {"file": str(script), "name": "refused"}, "args": {"name": name}}
    assert run_worker(tmp_path, call, bare, [str(tmp_path), str(ROOT)]) == 1
    report = json.loads(JobFiles(tmp_path).failure(0).read_text())
    text = SCRIPT.splitlines()
    line = {
        "data": text.index("    return run.Config(MockData, vocab_size=seed)"),
        "converted": text.index("    globals()[name]()"),
        "recipe": text.index("    return gemma3_270m.finetune_recipe()"),
    }[name]
    assert report["type"] == "ConfigError"
    assert report["message"].splitlines() == [
        "a configuration cannot be made here: No module named 'fiddle'",
        f"  set at: script.py:{line + 1}",
        '  try: pip install gemma-launcher; or, in a launch script, make it under `if __name__ == "__main__":`, '
        "which its job leaves out",
    ]
