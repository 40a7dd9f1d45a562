"""The front door: run.run, here and in processes of its own, from real launch scripts."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sample_tasks import Opaque, Trainer, anything, end_badly, leave, report_rank, train

import launcher as run
from launcher.errors import ConfigError, SerializationError, StoreError


def launch(tmp_path: Path, text: str, **options: Any) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "train.py"
    script.write_text(text)
    command = [sys.executable, str(script)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_direct_runs_here_and_returns_the_value() -> None:
    assert run.run(run.Partial(os.getpid), direct=True) == os.getpid()
    assert run.run(run.Config(Trainer, max_steps=3), direct=True) == Trainer(max_steps=3)
    live = Opaque()
    assert run.run(run.Partial(anything, live), direct=True) == [live]


def test_direct_raises_the_users_own_exception() -> None:
    with pytest.raises(ValueError, match="rank 1 gave up") as caught, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "1")
        run.run(run.Partial(end_badly, how="raise"), direct=True)
    assert type(caught.value) is ValueError
    with pytest.raises(SystemExit):
        run.run(run.Partial(leave, 3), direct=True)


def test_direct_stops_at_a_breakpoint(tmp_path: Path) -> None:
    done = launch(
        tmp_path,
        "import launcher as run\ndef f(x):\n    breakpoint()\n    return x\n"
        "print(run.run(run.Partial(f, x=6), direct=True))\n",
        input="p x * 7\ncontinue\n",
    )
    assert "42" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("6")


def test_direct_and_an_executor_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="in this process, and an executor elsewhere"):
        run.run(run.Partial(report_rank), run.LocalExecutor(), direct=True)  # type: ignore[call-overload]


def test_a_dry_run_shows_what_would_run_and_starts_nothing(
    launcher_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = run.Partial(report_rank)
    run.run(task, run.LocalExecutor(ntasks_per_node=2), name="shown", dryrun=True)
    shown = capsys.readouterr()
    assert shown.out.startswith("experiment shown-")
    assert "ranks   2 (1 x 2)" in shown.out
    assert shown.err == ""
    assert not (launcher_home / "experiments").exists()
    with pytest.raises(ConfigError, match="no dry run"):
        run.run(task, direct=True, dryrun=True)  # type: ignore[call-overload]


def test_a_result_names_its_experiment_and_folder(launcher_home: Path) -> None:
    result = run.run(run.Partial(train, trainer=run.Config(Trainer, max_steps=7)), name="a title", progress=False)
    assert result.value == {"max_steps": 7, "lr": 1e-4, "same": False, "scale": 1.0}
    assert result.folder == launcher_home / "experiments" / result.experiment / "train"
    assert result.experiment.startswith("a-title-")
    assert json.loads((result.folder / "result.json").read_text()) == result.value


def test_a_function_of_the_launch_script_runs_with_its_interpreter(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("FACTOR = 7\n")
    done = launch(
        tmp_path,
        "import sys\nimport launcher as run\nfrom helper import FACTOR\n"
        "def task(x):\n    return [x * FACTOR, sys.executable, sys.path[0]]\n"
        "if __name__ == '__main__':\n    print(run.run(run.Partial(task, x=6)).value)\n",
    )
    assert done.stdout.strip() == str([42, sys.executable, str(tmp_path.resolve())])


def test_a_script_without_a_guard_does_not_launch_itself_for_ever(tmp_path: Path, launcher_home: Path) -> None:
    done = launch(tmp_path, "import launcher as run\ndef task():\n    return 1\nrun.run(run.Partial(task))\n")
    assert done.returncode == 1
    assert "launches while a job is loading it" in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr
    assert len(list((launcher_home / "experiments").iterdir())) == 1


def test_a_failure_raises_with_the_traceback_and_the_script_exits_1(tmp_path: Path) -> None:
    done = launch(
        tmp_path,
        "import launcher as run\ndef task():\n    raise KeyError('lost')\n"
        "if __name__ == '__main__':\n    run.run(run.Partial(task))\n",
    )
    assert done.returncode == 1
    assert "task 'task' failed on rank 0: KeyError: 'lost'" in done.stderr
    assert "raise KeyError('lost')" in done.stderr


def test_what_cannot_run_leaves_no_experiment(launcher_home: Path) -> None:
    with pytest.raises(ConfigError, match="max_steps is 'abc'"):
        run.run(run.Partial(train, trainer=run.Config(Trainer, max_steps="abc")))
    with pytest.raises(SerializationError, match="live object"):
        run.run(run.Partial(anything, Opaque()))
    with pytest.raises(ConfigError, match="is not a task"):
        run.run(report_rank)  # type: ignore[call-overload]
    assert not launcher_home.exists()


ANSWER = """
import launcher as run
def answer():
    return 42
if __name__ == "__main__":
    print(run.run(run.Partial(answer)).value)
"""


def start(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["train", "a b.txt", "app/__main__.py"])
def test_a_launch_script_may_be_called_anything(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(ANSWER)
    done = start(name.removesuffix("/__main__.py"), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


def test_what_stands_in_an_archive_cannot_be_loaded_again(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "app.pyz", "w") as archive:
        archive.writestr("__main__.py", ANSWER)
    done = start("app.pyz", cwd=tmp_path)
    assert "/app.pyz/__main__.py, which is not a file that can be loaded again" in done.stderr


def test_a_folder_that_was_deleted_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(ANSWER)
    (tmp_path / "gone").mkdir()
    command = ["sh", "-c", 'rmdir ../gone; exec "$0" "$1"', sys.executable, str(tmp_path / "train.py")]
    done = subprocess.run(command, cwd=tmp_path / "gone", capture_output=True, text=True, check=False)
    assert done.stderr.startswith("error: the folder that this was started in has been deleted")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_LAUNCHER_HOME", "~nobody-of-this-name/state")
    with pytest.raises(StoreError, match="there is no state folder at '~nobody-of-this-name/state'"):
        run.Experiment("e")
