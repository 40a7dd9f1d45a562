"""A task's code is that of its copy, however the user's Python found it."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from experiments.store import Store

SCRIPT = """
import launcher as run
from mine import code

if __name__ == "__main__":
    with run.Experiment("copied") as experiment:
        experiment.add(run.Partial(code.place), executor=run.LocalExecutor(), name="call")
        experiment.add(run.Script("scripts/plain.py"), executor=run.LocalExecutor(), name="script")
        results = experiment.run()
    print(results[0].value)
"""
CODE = """
import os

def place():
    return os.path.relpath(__file__, os.environ["GEMMA_LAUNCHER_JOB_DIR"])
"""
FILES = {
    "scripts/go.py": SCRIPT,
    "scripts/plain.py": "from mine import code\nprint(code.place())\n",
    "src/mine/__init__.py": "",
    "src/mine/code.py": CODE,
}
HOOK = """
import importlib.machinery, importlib.util, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "mine":
            return importlib.util.spec_from_file_location(name, {!r}, submodule_search_locations=[{!r}])
sys.meta_path.append(Finder)
"""


@pytest.mark.parametrize("how", ["PYTHONPATH", "pth", "hook"])
def test_the_copy_is_what_runs(how: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name, text in FILES.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", tree, *command], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    [site] = (tmp_path / "venv/lib").glob("*/site-packages")
    lines = [sysconfig.get_path("purelib"), str(Path(__file__).parents[2])]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if how == "PYTHONPATH":
        env["PYTHONPATH"] = "src"
    elif how == "pth":
        lines.append(str(tree / "src"))
    else:
        package = tree / "src/mine"
        (site / "hook.py").write_text(HOOK.format(str(package / "__init__.py"), str(package)))
        lines.append("import hook")
    (site / "test.pth").write_text("\n".join(lines))
    done = subprocess.run(
        [tmp_path / "venv/bin/python", "scripts/go.py"], cwd=tree, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "../code/src/mine/code.py\n"
    [record] = Store().all()
    assert record.task("script").files.stdout(0).read_text() == "../code/src/mine/code.py\n"
