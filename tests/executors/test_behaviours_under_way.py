"""What happens while tasks are under way, and to them when their launcher ends: the same on every executor."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anywhere
import pytest
from command import COMMAND, gemma_launch

import launcher as run
from executors.base import Status
from experiments.store import ExperimentRecord, Store
from launcher.errors import ExecutorError, LaunchError
from tests.executors.behaviours import SAMPLES, Where
from tests.labs.machine import until

PATIENCE = 60.0
HOSTILE = ["a'b\"c", "two\nlines", "; touch x", "$(touch x) %j", "--help", "../../etc", "ünïcödé 実験" * 20]


def only() -> ExperimentRecord:
    [found] = Store().all()
    return found


def statuses() -> dict[str, str]:
    return {task.name: task.status.value for task in only().tasks}


def noted(folder: Path, name: str) -> list[str]:
    """The lines that tasks wrote to a file of the folder."""
    path = folder / name
    return path.read_text().splitlines() if path.exists() else []


def until_it_runs(folder: Path, count: int = 1) -> None:
    until(lambda: len(noted(folder, "runs")) == count, PATIENCE, "its start")


def until_nothing_is_left(folder: Path) -> None:
    """No process that holds, nor any that it started."""
    with open(folder / "lock") as lock:

        def free() -> bool:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        until(free, 30, "the end of what the task had started")


def holding(folder: Path, steps: int = 2) -> run.Partial[int]:
    return run.Partial(anywhere.hold, folder=str(folder), steps=steps)


def saying(folder: Path, name: str, line: str) -> run.Partial[None]:
    return run.Partial(anywhere.say, folder=str(folder), name=name, line=line)


LAUNCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background, where it is ignored
sys.path.insert(0, {samples!r})
import launcher as run, anywhere
if __name__ == "__main__":
    with run.Experiment("launched") as experiment:
        held = run.Partial(anywhere.hold, folder={folder!r})
        experiment.add(held, executor={executor}, name="held")
        experiment.add(run.Partial(anywhere.report), executor={executor}, name="after", dependencies=["held"])
        experiment.run(detach={detach}, progress=False)
"""


def start(script: Path, text: str) -> subprocess.Popen[str]:
    script.write_text(text)
    return subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture
def launched(where: Where, folder: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A launcher of its own, whose task runs and holds."""
    text = LAUNCH.format(samples=str(SAMPLES), folder=str(folder), executor=where.text(), detach=False)
    process = start(tmp_path / "launch.py", text)
    until(lambda: process.poll() is not None or bool(noted(folder, "runs")), PATIENCE, "its start")
    assert process.poll() is None, process.communicate()
    yield process
    process.kill()
    process.communicate()


# Before anything runs.


def test_a_dry_run_shows_what_would_run_and_changes_nothing(where: Where, launcher_home: Path, capsys: Any) -> None:
    executor = where(env_vars={"MARK": "a b", "HF_TOKEN": "hf_secret"}, ntasks_per_node=2)
    run.run(run.Partial(anywhere.report), executor, dryrun=True)
    said = capsys.readouterr().out
    assert "MARK='a b'" in said and "HF_TOKEN=(secret)" in said and "anywhere:report" in said
    assert "hf_secret" not in said
    assert not launcher_home.exists()


def test_a_misspelt_setting_is_refused_and_a_clone_is_apart(where: Where) -> None:
    executor = where(env_vars={"MARK": "1"})
    with pytest.raises(ExecutorError, match="no attribute 'ntasks_per_nod'"):
        executor.clone(ntasks_per_nod=2)
    with pytest.raises(ExecutorError, match="no attribute 'retrys'"):
        executor.retrys = 2  # type: ignore[attr-defined]
    other = executor.clone(ntasks_per_node=2)
    other.env_vars["MARK"] = "2"
    assert (executor.ranks, executor.env_vars, other.ranks) == (1, {"MARK": "1"}, 2)


def test_a_lambda_is_refused(where: Where, launcher_home: Path) -> None:
    with pytest.raises(LaunchError, match="lambda"):
        run.run(run.Partial(lambda: 1), where())
    assert not launcher_home.exists()


# Several tasks.


def test_tasks_run_after_what_they_need_and_not_if_that_failed(where: Where, folder: Path) -> None:
    with run.Experiment("chain") as experiment:
        experiment.add(saying(folder, "log", "third"), executor=where(), name="c", dependencies=["b"])
        experiment.add(saying(folder, "log", "second"), executor=where(), name="b", dependencies=["a"])
        experiment.add(saying(folder, "log", "first"), executor=where(), name="a")
        experiment.add(run.Script(inline="exit 7"), executor=where(), name="bad")
        experiment.add(saying(folder, "log", "never"), executor=where(), name="last", dependencies=["bad", "a"])
        with pytest.raises(run.ExperimentFailed, match="task 'bad' failed on rank 0: exited with status 7"):
            experiment.run(progress=False)
    assert noted(folder, "log") == ["first", "second", "third"]
    assert statuses() == dict.fromkeys("cba", "succeeded") | {"bad": "failed", "last": "skipped"}


def test_each_task_runs_as_its_own_executor_says(where: Where, folder: Path) -> None:
    with run.Experiment("differ") as experiment:
        for number in (1, 2):
            executor = where(ntasks_per_node=number, env_vars={"MARK": str(number)}, retries=number - 1)
            experiment.add(run.Partial(anywhere.variables, "MARK", "WORLD_SIZE"), executor=executor, name=str(number))
        results = experiment.run(progress=False)
    assert [result.value for result in results] == [["1", "1"], ["2", "2"]]


def test_one_that_fails_ends_its_group(where: Where, folder: Path) -> None:
    failing = run.Script(inline=f"until test -s '{folder}/runs'; do sleep 0.1; done; exit 5")
    with run.Experiment("together") as experiment:
        experiment.add([holding(folder), failing], executor=where(), name="two")
        with pytest.raises(run.ExperimentFailed, match="'two-1' failed on rank 0: exited with status 5"):
            experiment.run(progress=False)
    assert statuses() == {"two-0": "cancelled", "two-1": "failed"}
    until_nothing_is_left(folder)


def test_two_experiments_at_once(where: Where, folder: Path) -> None:
    def one(number: int) -> Any:
        with run.Experiment("the same title") as experiment:
            experiment.add(holding(folder), executor=where(), name="held")
            return experiment.run(progress=False)[0].value

    with ThreadPoolExecutor(2) as pool:
        found = pool.map(one, range(2))
        until_it_runs(folder, 2)
        (folder / "go").touch()
        assert list(found) == [2, 2]


def test_any_title_and_task_name_runs(where: Where) -> None:
    with run.Experiment(HOSTILE[0] + HOSTILE[1] + HOSTILE[3]) as experiment:
        for name in HOSTILE:
            experiment.add(run.Script(inline="true"), executor=where(), name=name)
        results = experiment.run(progress=False)
    assert [result.task for result in results] == HOSTILE
    assert [task.name for task in only().tasks] == HOSTILE


# Secrets.


def test_a_secret_is_given_and_never_shown(where: Where, capsys: Any) -> None:
    executor = where(env_vars={"HF_TOKEN": "hf_0123456789"})
    with run.Experiment("secret") as experiment:
        experiment.add(run.Partial(anywhere.backwards, "HF_TOKEN"), executor=executor, name="good", tail_logs=True)
        experiment.add(run.Partial(anywhere.job_dir), executor=executor, name="where")
        experiment.add(run.Partial(anywhere.fail_with, "HF_TOKEN"), executor=executor, name="bad", tail_logs=True)
        with pytest.raises(run.ExperimentFailed) as error:
            experiment.run(progress=False)
    assert error.value.cause == "RuntimeError: cannot log in with (HF_TOKEN)"
    assert "(HF_TOKEN)" in error.value.traceback
    record = only()
    assert record.task("good").result() == "9876543210_fh"
    assert not Path(record.task("where").result(), "secrets.json").exists()
    said, files = capsys.readouterr(), [path for path in record.folder.parent.parent.rglob("*") if path.is_file()]
    assert "bad rank_0.out| about to log in" in said.out
    assert not [path for path in files if path.name == "secrets.json" or b"hf_0123456789" in path.read_bytes()]
    assert "hf_0123456789" not in said.out + said.err + str(error.value)


# Its end.


def test_another_process_ends_it(launched: subprocess.Popen[str], folder: Path) -> None:
    done = gemma_launch("experiment", "cancel", only().id)
    assert "held: cancelled" in done.stdout, done.stderr
    _, said = launched.communicate(timeout=PATIENCE)
    assert launched.returncode == 1 and "task 'held' failed: it was cancelled" in said
    assert statuses()["held"] == "cancelled" and statuses()["after"] in ("cancelled", "skipped")
    until_nothing_is_left(folder)


def test_ctrl_c_ends_it(launched: subprocess.Popen[str], folder: Path) -> None:
    launched.send_signal(signal.SIGINT)
    _, said = launched.communicate(timeout=PATIENCE)
    assert launched.returncode in (130, -signal.SIGINT), said
    assert "cancelled" in said
    assert statuses() == {"held": "cancelled", "after": "cancelled"}
    until_nothing_is_left(folder)


def test_a_launcher_that_is_killed(launched: subprocess.Popen[str], where: Where, folder: Path) -> None:
    """Its task goes on where it can without, and is found again; elsewhere it is lost, and can be cleared away."""
    launched.kill()
    launched.communicate()
    experiment = run.Experiment.from_title("launched")
    if where().outlives:
        assert experiment.status()["held"] is Status.RUNNING
        (folder / "go").touch()
        until(lambda: experiment.status()["held"].final, PATIENCE, "its end")
        assert statuses()["held"] == "succeeded"
        until(lambda: experiment.status()["after"].final, PATIENCE, "the end of the other")
        assert only().task("held").result() == 2
    else:
        assert statuses() == {"held": "lost", "after": "lost"}
        experiment.cancel()  # what its ranks had started themselves
    until_nothing_is_left(folder)


# Looked at from elsewhere.


def test_detached_it_is_looked_at_and_waited_for_from_other_processes(where: Where, folder: Path) -> None:
    with run.Experiment("detached") as experiment:
        experiment.add(holding(folder), executor=where(), name="held")
        assert experiment.run(detach=True) == []
    until_it_runs(folder)
    until(lambda: "task held: running" in gemma_launch("experiment", "status", "detached").stdout, 30, "the word")
    (folder / "go").touch()
    [result] = run.Experiment.from_id(experiment.id).wait()
    assert result.value == 2
    assert "status   succeeded" in gemma_launch("experiment", "status", experiment.id).stdout


def test_its_log_and_metrics_come_while_it_runs_and_each_line_once(where: Where, folder: Path) -> None:
    with run.Experiment("followed") as experiment:
        experiment.add(holding(folder, steps=40), executor=where(), name="held")
        experiment.run(detach=True)
    argv = [*COMMAND, "experiment", "logs", experiment.id, "--follow", "--rank", "0"]
    follower = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert follower.stdout is not None
    before = [follower.stdout.readline() for _ in range(20)]
    until(
        lambda: "step 20/40" in gemma_launch("experiment", "status", experiment.id).stdout, 30, "the metrics of a step"
    )
    (folder / "go").touch()
    after = follower.communicate(timeout=PATIENCE)[0].splitlines(keepends=True)
    assert before + after == [f"rank_0.out| step {step}\n" for step in range(1, 41)]
    assert [line["step"] for line in experiment.wait()[0].metrics()] == list(range(1, 41))


# The code of a launch script.

EDITED = """
import json, sys, time
from pathlib import Path
import launcher as run
import helper

def work(folder):
    Path(folder, "runs").write_text("x\\n")
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    import late
    return [helper.VALUE, late.VALUE, __name__]

if __name__ == "__main__":
    executor = {executor}
    print(json.dumps(run.run(run.Partial(work, {folder!r}), executor, progress=False).value))
"""


def test_code_of_a_launch_script_runs_as_it_was_when_it_was_launched(
    where: Where, folder: Path, tmp_path: Path
) -> None:
    """With what no commit holds, and without what is edited later."""
    repository = tmp_path / "repository"
    repository.mkdir()

    def edit(value: str) -> None:
        for name in ("helper", "late"):
            (repository / f"{name}.py").write_text(f"VALUE = {value!r}\n")

    edit("committed")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    edit("dirty")
    text = EDITED.format(executor=where.text(packager=None), folder=str(folder))
    process = start(repository / "train.py", text)
    until(lambda: process.poll() is not None or bool(noted(folder, "runs")), PATIENCE, "its start")
    edit("later")
    (folder / "go").touch()
    said, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert json.loads(said) == ["dirty", "dirty", "launch_script"]
