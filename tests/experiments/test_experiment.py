"""Whole experiments: what is left in the folder, and what is said when a launcher is interrupted or killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import sample_tasks
from processes import has_ended
from sample_tasks import Trainer, end_badly, report_rank, train

import launcher as run
from executors.base import Status
from experiments.store import ExperimentRecord, Store
from launcher.errors import ConfigError, ExecutorError, SerializationError

HOSTILE = ["a'b\"c", "two\nlines", "; touch x", "$(touch x)", "--help", "ünïcödé 実験", "../../etc", "x" * 300]
HOLD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background, where it is ignored
sys.path.insert(0, {samples!r})
import launcher as run, sample_tasks
if __name__ == "__main__":
    with run.Experiment("held") as experiment:
        held = run.Partial(sample_tasks.hold, fifo={fifo!r}, stubborn={stubborn})
        executor = run.LocalExecutor(ntasks_per_node=2, grace=0.3, launcher={launcher!r}, env_vars={{"HF_TOKEN": "x"}})
        experiment.add(held, executor=executor, name="one")
        experiment.add(run.Partial(sample_tasks.report_rank), executor=run.LocalExecutor(), name="two")
        experiment.run()
"""


class Launched:
    """A launch script whose two ranks hold, each with a child of its own."""

    def __init__(self, folder: Path, *, stubborn: bool = False, launcher: str | None = None) -> None:
        fifo, script = folder / "fifo", folder / "train.py"
        os.mkfifo(fifo)
        samples = str(Path(sample_tasks.__file__).parent)
        script.write_text(HOLD.format(samples=samples, fifo=str(fifo), stubborn=stubborn, launcher=launcher))
        keep = os.open(fifo, os.O_RDWR)
        command = [sys.executable, str(script)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        with os.fdopen(keep) as pipe:
            self.pids = [int(pid) for _ in range(2) for pid in pipe.readline().split()]
        self.watches = [os.pidfd_open(pid) for pid in self.pids]

    def wait_until_gone(self, pids: slice = slice(None)) -> None:
        for watch in self.watches[pids]:
            assert has_ended(watch), f"one of {self.pids} outlived its launcher"
        for watch in self.watches:
            os.close(watch)


def only_experiment() -> ExperimentRecord:
    [record] = Store().all()
    return record


def test_the_folder_can_be_read_with_a_pager(launcher_home: Path) -> None:
    recipe = run.Partial(train, trainer=run.Config(Trainer, folder=Path("/data")))
    result = run.run(recipe, run.LocalExecutor(ntasks_per_node=2), name="My run", progress=False)
    assert {path.name for path in result.folder.iterdir()} == {
        "task.json", "task.yaml", "plan.json", "executor.json", "events.jsonl", "environment.json", "result.json",
        "launch.log", "rank_0.out", "rank_0.err", "rank_1.out", "rank_1.err",
    }  # fmt: skip
    assert "folder: !path /data" in (result.folder / "task.yaml").read_text()
    assert len(json.loads((result.folder / "plan.json").read_text())["processes"]) == 2
    assert json.loads((result.folder / "task.json").read_text())["experiment"] == result.experiment
    environment = json.loads((result.folder / "environment.json").read_text())
    assert environment["packages"]["fiddle"]
    assert environment["code"] is None or len(environment["code"]["commit"]) == 40
    assert only_experiment().status is Status.SUCCEEDED
    assert [event["event"] for event in only_experiment().task().events()] == ["queued", "started", "succeeded"]


@pytest.mark.parametrize("title", HOSTILE)
def test_any_title_and_task_name_runs(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with run.Experiment(title) as experiment:
        experiment.add(run.Partial(report_rank), executor=run.LocalExecutor(env_vars={"MARK": title}), name=title)
        [result] = experiment.run(progress=False)
    assert result.value["MARK"] == title
    assert (only_experiment().title, only_experiment().task().name) == (title, title)
    assert {path.name for path in tmp_path.iterdir()} == {"launcher_home"}


def test_in_sequence_tasks_run_in_order_and_one_failure_is_raised_after_all_have_run() -> None:
    executor = run.LocalExecutor(ntasks_per_node=2)
    with run.Experiment("several") as experiment:
        assert experiment.add(run.Partial(report_rank), executor=executor) == "report_rank"
        experiment.add(run.Partial(end_badly, how="raise"), executor=executor, name="bad")
        experiment.add(run.Partial(report_rank), executor=executor, name="Bad")
        with pytest.raises(run.ExperimentFailed, match="task 'bad' failed on rank 1: ValueError: rank 1") as caught:
            experiment.run(sequential=True, progress=False)
    assert (caught.value.experiment_id, caught.value.task, caught.value.rank) == (experiment.id, "bad", 1)
    assert "in end_badly" in caught.value.traceback
    record = only_experiment()
    assert [task.status for task in record.tasks] == [Status.SUCCEEDED, Status.FAILED, Status.SUCCEEDED]
    assert [task.folder.name for task in record.tasks] == ["report-rank", "bad", "bad-2"]
    started = [task.events()[1]["time"] for task in record.tasks]
    ended = [task.events()[2]["time"] for task in record.tasks]
    assert ended[0] <= started[1]
    assert ended[1] <= started[2]


def test_what_is_added_is_taken_as_it_is_then() -> None:
    recipe: Any = run.Partial(train, trainer=run.Config(Trainer, max_steps=1))
    executor = run.LocalExecutor(env_vars={"MARK": "then"})
    with run.Experiment("as it was") as experiment:
        experiment.add(recipe, executor=executor)
        experiment.add(run.Partial(report_rank), executor=executor)
        recipe.trainer.max_steps = 2
        executor.env_vars["MARK"] = "later"
        first, second = experiment.run(progress=False)
    assert (first.value["max_steps"], second.value["MARK"]) == (1, "then")


def test_mistakes_are_refused_when_they_are_added(launcher_home: Path) -> None:
    experiment = run.Experiment("mistakes")
    experiment.add(run.Partial(report_rank), executor=run.LocalExecutor(), name="same")
    with pytest.raises(ConfigError, match="has a task 'same' already"):
        experiment.add(run.Partial(report_rank), executor=run.LocalExecutor(), name="same")
    with pytest.raises(ConfigError, match="max_steps is 'x'"):
        experiment.add(run.Partial(train, trainer=run.Config(Trainer, max_steps="x")), executor=run.LocalExecutor())
    with pytest.raises(ExecutorError, match="ntasks_per_node is 0"):
        experiment.add(run.Partial(report_rank), executor=run.LocalExecutor(ntasks_per_node=0))
    with pytest.raises(SerializationError, match=r"shared is a live object of _thread\.lock"):
        lock = threading.Lock()
        experiment.add(run.Partial(train, trainer=run.Config(Trainer), shared=lock), executor=run.LocalExecutor())
    with pytest.raises(ConfigError, match="has no task"):
        run.Experiment("empty").run()
    assert not launcher_home.exists()


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda e: e.add(run.Partial(report_rank), None), "takes 2 positional arguments"),
        (lambda e: e.add(run.Partial(report_rank), executor="local"), "'local' is not an executor"),
        (lambda e: e.add(report_rank, executor=run.LocalExecutor()), "is not a task"),
        (lambda e: e.add("python train.py", executor=run.LocalExecutor()), "is not a task"),
        (lambda e: e.add([], executor=run.LocalExecutor()), "0 tasks"),
        (lambda e: e.add([run.Partial(report_rank)], executor=[run.LocalExecutor()] * 2), "1 tasks .* 2 executors"),
        (lambda e: e.add(run.Partial(report_rank), executor=run.LocalExecutor(), name=3), "name is a str, not 3"),
        (
            lambda e: e.add(run.Partial(report_rank), executor=run.LocalExecutor(), dependencies="prepare"),
            "dependencies is 'prepare'; it is a list",
        ),
        (lambda e: run.Experiment(3), "title is a str, not 3"),  # type: ignore[arg-type]
        (lambda e: run.Experiment("t", log_level="LOUD"), "log_level is 'LOUD'"),  # type: ignore[arg-type]
        (lambda e: e.status(), "has not run yet"),
        (lambda e: e.cancel(), "has not run yet"),
        (lambda e: run.Experiment.from_id("../../etc"), "no experiment of the id '../../etc'"),
        (lambda e: run.Experiment.from_title("nobody's"), 'no experiment titled "nobody\'s"'),
    ],
)
def test_wrong_use_is_explained_and_leaves_nothing(mistake: Any, said: str, launcher_home: Path) -> None:
    with pytest.raises((run.LaunchError, TypeError), match=said):
        mistake(run.Experiment("wrong"))
    assert not launcher_home.exists()


def test_an_experiment_runs_once(tmp_path: Path) -> None:
    experiment = run.Experiment("once")
    experiment.add(run.Partial(report_rank))  # here, without a word about where
    experiment.run(progress=False)
    with pytest.raises(ConfigError, match="has run already"):
        experiment.run()
    with pytest.raises(ConfigError, match="has run already"):
        experiment.add(run.Partial(report_rank), executor=run.LocalExecutor())


def test_it_is_found_again_and_tells_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    ids = []
    for _ in range(2):
        with run.Experiment("found") as experiment:
            two = run.LocalExecutor(ntasks_per_node=2)
            experiment.add(run.Script(inline="echo out $RANK; echo err $RANK >&2"), executor=two, name="both")
            experiment.run(progress=False)
        ids.append(experiment.id)
    run.run(run.Script(inline="exit 0"), name="another", progress=False)
    assert run.Experiment.catalog("found") == ids[::-1]
    assert len(run.Experiment.catalog()) == 3
    found = run.Experiment.from_title("found")
    assert (found.id, found.title, found.status()) == (ids[1], "found", {"both": Status.SUCCEEDED})
    assert run.Experiment.from_id(ids[0]).wait()[0].task == "both"
    capsys.readouterr()
    found.logs()
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "rank_0.err| err 0", "rank_0.out| out 0", "rank_1.err| err 1", "rank_1.out| out 1",
    ]  # fmt: skip
    found.logs("both", rank=1)
    assert sorted(capsys.readouterr().out.splitlines()) == ["rank_1.err| err 1", "rank_1.out| out 1"]
    with pytest.raises(run.LaunchError, match="has no task 'bot'"):
        found.logs("bot")


def test_a_store_from_a_newer_version_is_not_touched(launcher_home: Path) -> None:
    folder = launcher_home / "experiments/later-20990101-000000-abcd"
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text('{"version": 99}')
    with pytest.raises(run.LaunchError, match="is of version 99; this launcher reads up to 1"):
        run.Experiment.from_id(folder.name)


TAILED = """
import launcher as run
if __name__ == "__main__":
    with run.Experiment("tailed") as experiment:
        shown = run.Script(inline="echo before; read line < '{fifo}'; echo after; printf unended")
        experiment.add(shown, executor=run.LocalExecutor(), name="shown", tail_logs=True)
        experiment.add(run.Script(inline="echo hidden"), executor=run.LocalExecutor(), name="other")
        experiment.run(progress=False)
"""


def test_logs_are_shown_while_a_task_runs(tmp_path: Path) -> None:
    fifo, script = tmp_path / "fifo", tmp_path / "train.py"
    os.mkfifo(fifo)
    script.write_text(TAILED.format(fifo=fifo))
    launched = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert launched.stdout is not None
    assert launched.stdout.readline() == "shown rank_0.out| before\n"
    fifo.write_text("go on\n")  # it waits for this: what came before was shown meanwhile
    rest = launched.communicate()[0]
    assert rest == "shown rank_0.out| after\nshown rank_0.out| unended\n"


def test_a_quiet_experiment_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with run.Experiment("quiet", log_level="WARNING") as experiment:
        experiment.add(run.Partial(report_rank), executor=run.LocalExecutor())
        experiment.run(progress=False)
    assert capfd.readouterr() == ("", "")


class Marked(run.Plugin):
    def setup(self, task: Any, executor: Any) -> None:
        executor.env_vars["MARK"] = "by a plugin"
        task.trainer.max_steps += 1


def test_plugins_change_the_experiments_own_copies() -> None:
    recipe: Any = run.Partial(train, trainer=run.Config(Trainer, max_steps=1))
    executor = run.LocalExecutor()
    with run.Experiment("plugged") as experiment:
        experiment.add(recipe, executor=executor, plugins=[Marked(), Marked()])
        [plan] = experiment.plan()
        [result] = experiment.run(progress=False)
    assert (result.value["max_steps"], plan.env) == (3, {"MARK": "by a plugin"})
    assert (recipe.trainer.max_steps, executor.env_vars) == (1, {})
    assert run.run(recipe, plugins=[Marked()], progress=False).value["max_steps"] == 2

    class Wrong(run.Plugin):
        def setup(self, task: Any, executor: Any) -> None:
            task.trainer.max_steps = "many"

    with pytest.raises(ConfigError, match="max_steps is 'many'"):
        run.Experiment("e").add(recipe, executor=executor, plugins=[Wrong()])


def test_an_experiment_that_is_left_without_a_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with run.Experiment("forgotten") as experiment:
        experiment.add(run.Script(inline="true"))
    assert capsys.readouterr().err == (
        "warning: experiment 'forgotten' was left without a run: none of its tasks starts\n  try: experiment.run()\n"
    )
    with run.Experiment("shown") as experiment:
        experiment.add(run.Script(inline="true"))
        experiment.dryrun()
    with run.Experiment("empty"), contextlib.suppress(ZeroDivisionError), run.Experiment("broken") as experiment:
        experiment.add(run.Script(inline="true"))
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_a_dry_run_prints_what_would_run_and_does_nothing(
    launcher_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = run.Experiment("a\ntitle")
    executor = run.LocalExecutor(ntasks_per_node=2, env_vars={"WANDB_API_KEY": "abc123", "A": "b c"})
    experiment.add(run.Partial(train, trainer=run.Config(Trainer)), executor=executor)
    experiment.dryrun()
    shown = capsys.readouterr().out
    assert not launcher_home.exists()
    assert "abc123" not in shown
    command = f"{sys.executable} {Path(run.__file__).parent / 'worker.py'} {experiment.folder / 'train' / 'task.json'}"
    ranks = "WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1"
    assert shown.splitlines()[:10] == [
        f"experiment {experiment.id}: a\\ntitle",
        "",
        "task train on LocalExecutor",
        f"folder  {experiment.folder / 'train'}",
        "ranks   2 (1 x 2)",
        "code    where it lies, not copied",
        "env     A='b c'",
        "env     WANDB_API_KEY=(secret)",
        f"run     RANK=0 LOCAL_RANK=0 NODE_RANK=0 {ranks} {command}",
        f"run     RANK=1 LOCAL_RANK=1 NODE_RANK=0 {ranks} {command}",
    ]
    assert "max_steps: 100" in shown


def test_no_secret_is_left_on_disk_or_shown(
    launcher_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # the copy of this repository would hold this test's own text
    executor = run.LocalExecutor(ntasks_per_node=2, env_vars={"HF_TOKEN": "hf_abcdef", "SHOWN": "shown-value"})
    run.run(run.Partial(sample_tasks.echo_variable, "HF_TOKEN"), executor, progress=False)
    with pytest.raises(run.ExperimentFailed) as caught:
        run.run(run.Partial(sample_tasks.fail_with_variable, "HF_TOKEN"), executor, progress=False)
    assert "cannot log in with (HF_TOKEN)" in str(caught.value)
    files = [path for path in launcher_home.rglob("*") if path.is_file()]
    assert any("shown-value" in path.read_text() for path in files)
    assert not [path for path in files if "hf_abcdef" in path.read_text()]
    assert "hf_abcdef" not in str(caught.value) + capfd.readouterr().err


def test_a_launch_that_cannot_start_says_so_in_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with run.Experiment("no python") as experiment:
        experiment.add(run.Partial(report_rank), executor=run.LocalExecutor(), name="one")
        experiment.add(run.Partial(report_rank), executor=run.LocalExecutor(), name="two")
        with pytest.raises(run.ExperimentFailed, match="could not be started"):
            experiment.run(progress=False)
    first, second = only_experiment().tasks
    assert (first.status, second.status) == (Status.FAILED, Status.FAILED)
    assert first.failure is not None
    assert "/nowhere/python" in first.failure.cause


@pytest.mark.parametrize(("stubborn", "launcher"), [(False, None), (True, None), (True, "torchrun")])
def test_ctrl_c_ends_everything_and_says_cancelled(tmp_path: Path, stubborn: bool, launcher: str | None) -> None:
    launched = Launched(tmp_path, stubborn=stubborn, launcher=launcher)
    assert not only_experiment().task("one").status.final
    launched.process.send_signal(signal.SIGINT)
    _, shown = launched.process.communicate()
    assert launched.process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in shown
    launched.wait_until_gone()
    assert [task.status for task in only_experiment().tasks] == [Status.CANCELLED, Status.CANCELLED]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_launcher_told_to_end_does_as_after_ctrl_c(tmp_path: Path, number: signal.Signals) -> None:
    """`kill`, a scheduler's notice, a terminal that is closed: nothing lost, and no secret left behind."""
    launched = Launched(tmp_path)
    secrets = only_experiment().task("one").files.secrets
    assert secrets.exists()
    launched.process.send_signal(number)
    launched.process.communicate()
    launched.wait_until_gone()
    assert not secrets.exists()
    assert [task.status for task in only_experiment().tasks] == [Status.CANCELLED, Status.CANCELLED]


@pytest.mark.parametrize("launcher", [None, "torchrun"])
def test_a_killed_launcher_leaves_no_ranks_and_no_lie(tmp_path: Path, launcher: str | None) -> None:
    launched = Launched(tmp_path, stubborn=True, launcher=launcher)
    launched.process.kill()
    launched.process.communicate()
    for watch in launched.watches[::2]:
        assert has_ended(watch)
    assert only_experiment().tasks[0].files.secrets.exists()
    run.Experiment.from_title("held").cancel()  # what the ranks had started themselves, and had no chance to end
    launched.wait_until_gone()
    assert not only_experiment().tasks[0].files.secrets.exists()
    assert [task.status for task in only_experiment().tasks] == [Status.LOST, Status.LOST]
    assert only_experiment().status is Status.LOST
