"""A user's own package under one of our names."""

import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = "import launcher as run\nif __name__ == '__main__':\n    print(run.run(run.Script(inline='echo'))) \n"


@pytest.mark.parametrize("name", ["experiments", "executors", "gemma_models"])
@pytest.mark.parametrize("kind", ["package", "module"])
def test_it_is_named(name: str, kind: str, tmp_path: Path) -> None:
    own = tmp_path / name / "__init__.py" if kind == "package" else tmp_path / f"{name}.py"
    own.parent.mkdir(exist_ok=True)
    own.write_text("")
    (tmp_path / "train.py").write_text(LAUNCH)
    done = subprocess.run([sys.executable, str(tmp_path / "train.py")], capture_output=True, text=True, check=False)
    shown = own.parent if kind == "package" else own
    assert done.returncode == 1
    assert f"{shown} hides the launcher's own package {name!r}: {tmp_path} comes before it" in done.stderr


def test_a_folder_without_code_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "train.py").write_text(LAUNCH)
    done = subprocess.run([sys.executable, str(tmp_path / "train.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_inside_a_job_the_users_package_is_the_users(tmp_path: Path) -> None:
    """The worker needs none of ours: a task that only imports them there sees its own."""
    (tmp_path / "experiments.py").write_text("MINE = 7\n")
    (tmp_path / "task.py").write_text("def task():\n    from experiments import MINE\n    return MINE\n")
    elsewhere = tmp_path / "launch"
    elsewhere.mkdir()
    (elsewhere / "train.py").write_text(
        "import sys\nimport launcher as run\nfrom experiments import store\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\nfrom task import task\n"
        "if __name__ == '__main__':\n    print(run.run(run.Partial(task)).value)\n"
    )
    done = subprocess.run([sys.executable, str(elsewhere / "train.py")], capture_output=True, text=True, check=False)
    assert done.stdout == "7\n", done.stderr
