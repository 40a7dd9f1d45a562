"""What runs when: dependencies, groups, retries, room on the machine, and requests to end it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import sample_tasks
from processes import has_ended
from sample_tasks import fail_until, meet, note, report_rank

import launcher as run
from executors.base import Handle, JobState, Plan, Status
from experiments.graph import needs_in
from experiments.store import Store
from launcher.errors import ConfigError, ExecutorError
from launcher.worker import JobFiles
from tests.labs.machine import until

PATIENCE = 30.0
SAMPLES = str(Path(sample_tasks.__file__).parent)


@pytest.fixture(autouse=True)
def outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def statuses(experiment: run.Experiment) -> dict[str, str]:
    return {name: status.value for name, status in experiment.status().items()}


def noting(path: Path, text: str) -> run.Partial[None]:
    return run.Partial(note, path=str(path), text=text)


def test_a_task_runs_after_what_it_needs_whatever_the_order_they_were_added_in(tmp_path: Path) -> None:
    local, log = run.LocalExecutor(), tmp_path / "log"
    with run.Experiment("chain") as experiment:
        experiment.add(noting(log, "third"), executor=local, name="c", dependencies=["b"])
        experiment.add(noting(log, "second"), executor=local, name="b", dependencies=["a"])
        experiment.add(run.Script(inline=f"sleep 0.1; echo first >> '{log}'"), executor=local, name="a")
        experiment.run(progress=False)
    assert log.read_text().split() == ["first", "second", "third"]


def test_what_cannot_run_says_why_and_the_rest_runs(tmp_path: Path) -> None:
    local, log = run.LocalExecutor(), tmp_path / "log"
    with run.Experiment("broken") as experiment:
        experiment.add(noting(log, "never"), executor=local, name="last", dependencies=["middle"])
        experiment.add(noting(log, "never"), executor=local, name="middle", dependencies=["bad"])
        experiment.add(run.Script(inline="exit 7"), executor=local, name="bad")
        experiment.add(noting(log, "apart"), executor=local, name="apart")
        with pytest.raises(run.ExperimentFailed, match="task 'bad' failed on rank 0: exited with status 7"):
            experiment.run(progress=False)
    assert statuses(experiment) == {"last": "skipped", "middle": "skipped", "bad": "failed", "apart": "succeeded"}
    assert log.read_text() == "apart\n"
    record = Store().get(experiment.id)
    causes = [failure.cause for name in ("middle", "last") if (failure := record.task(name).failure)]
    assert causes == ["it needs task 'bad', which is failed", "it needs task 'middle', which is skipped"]


@pytest.mark.parametrize(
    ("dependencies", "said"),
    [
        ({"train": ["prepar"], "prepare": []}, r"'train' depends on 'prepar', which is no task(.|\n)*try: 'prepare'"),
        ({"a": ["b"], "b": ["c"], "c": ["a"]}, "wait for each other: 'a' -> 'b' -> 'c' -> 'a'"),
        ({"a": ["a"]}, "wait for each other: 'a' -> 'a'"),
        ({"x": ["a"], "a": ["b"], "b": ["a"]}, "wait for each other: 'a' -> 'b' -> 'a'"),
    ],
)
def test_dependencies_that_cannot_be_are_refused_before_anything_runs(
    dependencies: dict[str, list[str]], said: str, launcher_home: Path
) -> None:
    experiment = run.Experiment("impossible")
    for name, needs in dependencies.items():
        experiment.add(run.Partial(report_rank), executor=run.LocalExecutor(), name=name, dependencies=needs)
    for attempt in (experiment.run, experiment.dryrun):
        with pytest.raises(ConfigError, match=said):
            attempt()
    assert not launcher_home.exists()


def test_tasks_without_dependencies_run_at_the_same_time(tmp_path: Path) -> None:
    with run.Experiment("at once") as experiment:
        for name, other in (("a", "b"), ("b", "a")):
            task = run.Partial(meet, folder=str(tmp_path), name=name, others=[other])
            experiment.add(task, executor=run.LocalExecutor(gpus_per_node=0), name=name)
        experiment.run(progress=False)


def test_a_group_starts_together_and_is_needed_as_one(tmp_path: Path) -> None:
    local, names = run.LocalExecutor(), ["a", "b", "c"]  # more than this machine may have room for otherwise
    with run.Experiment("group") as experiment:
        tasks = [run.Partial(meet, folder=str(tmp_path), name=name, others=names) for name in names]
        group = experiment.add(tasks, executor=local, name="trio")
        experiment.add(noting(tmp_path / "log", "after"), executor=local, name="after", dependencies=[group])
        results = experiment.run(progress=False)
    assert [result.task for result in results] == ["trio-0", "trio-1", "trio-2", "after"]
    record = Store().get(experiment.id)
    ended = [task.events()[-1]["time"] for task in record.tasks]
    assert record.task("after").events()[1]["time"] >= max(ended[:3])


def test_a_group_on_executors_of_several_kinds_starts_together(tmp_path: Path) -> None:
    """Each asks for all the machine has: one after the other they would wait for each other for ever."""
    names, room = ["a", "b"], len(os.sched_getaffinity(0))
    tasks = [
        run.Script(inline=f"touch {name}; until [ -e {other} ]; do sleep 0.02; done")
        for name, other in zip(names, names[::-1], strict=True)
    ]
    executors = [
        run.LocalExecutor(ntasks_per_node=room, env_vars={"MARK": name}, packager=run.Packager()) for name in names
    ]
    with run.Experiment("kinds") as experiment:
        experiment.add(tasks, executor=executors)
        thread = threading.Thread(target=lambda: experiment.run(progress=False), daemon=True)
        thread.start()
        thread.join(PATIENCE)
    assert set(statuses(experiment).values()) == {"succeeded"}


def test_a_group_of_several_kinds_that_never_fits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    experiment = run.Experiment("too many")
    executors = [run.LocalExecutor(gpus_per_node=0), run.LocalExecutor(ntasks_per_node=2), run.LocalExecutor()]
    experiment.add([run.Partial(report_rank)] * 3, executor=executors)
    with pytest.raises(ExecutorError, match="3 tasks are to run together on 3 GPUs, and this machine shows 2"):
        experiment.run()


def test_one_that_fails_ends_its_group(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)
    holding = run.Partial(sample_tasks.hold, fifo=str(fifo))
    with run.Experiment("together") as experiment:
        failing = run.Script(inline=f"read line < '{fifo}'; exit 5")  # not before the other one runs
        experiment.add([holding, failing], executor=run.LocalExecutor(), name="two")
        with pytest.raises(run.ExperimentFailed, match="'two-1' failed on rank 0: exited with status 5"):
            experiment.run(progress=False)
    os.close(keep)
    assert statuses(experiment) == {"two-0": "cancelled", "two-1": "failed"}
    assert Store().get(experiment.id).task("two-0").events()[-1]["cause"].startswith("task 'two-1', which runs with it")


def test_retries_really_retry_and_keep_what_each_attempt_wrote(tmp_path: Path) -> None:
    task = run.Partial(fail_until, path=str(tmp_path / "count"), attempts=3)
    result = run.run(task, run.LocalExecutor(retries=4), progress=False)
    assert result.value == 3
    record = Store().get(result.experiment).task()
    assert [event["event"] for event in record.events()] == [
        "queued", "started", "retrying", "started", "retrying", "started", "succeeded",
    ]  # fmt: skip
    assert record.attempts == 3
    assert record.events()[2]["cause"] == "RuntimeError: not yet: 1"
    logs = [record.files.attempt(1), record.files.attempt(2), record.folder]
    assert [(folder / "rank_0.out").read_text() for folder in logs] == ["attempt 1\n", "attempt 2\n", "attempt 3\n"]
    assert not (record.folder / "rank_0.failure.json").exists()


def test_retries_end(tmp_path: Path) -> None:
    task = run.Partial(fail_until, path=str(tmp_path / "count"), attempts=9)
    with pytest.raises(run.ExperimentFailed, match="not yet: 3"):
        run.run(task, run.LocalExecutor(retries=2), progress=False)
    assert (tmp_path / "count").read_text().count("called") == 3


def test_a_group_is_retried_as_one(tmp_path: Path) -> None:
    count, mate = tmp_path / "count", tmp_path / "mate"
    failing = (
        f"echo >> {count}; n=$(wc -l < {count}); until [ $(cat {mate} | wc -l) = $n ]; do sleep 0.02; done; [ $n = 2 ]"
    )
    tasks = [run.Partial(note, path=str(mate)), run.Script(inline=failing)]
    with run.Experiment("retried") as experiment:
        experiment.add(tasks, executor=run.LocalExecutor(retries=1), name="pair")
        experiment.run(progress=False)
    assert len(count.read_text().splitlines()) == len(mate.read_text().splitlines()) == 2


def test_tasks_at_once_have_gpus_of_their_own_or_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    others = {"a": ["b"], "b": ["a"], "c": ["a", "b"]}
    with run.Experiment("gpus") as experiment:
        for name in others:
            task = run.Partial(meet, folder=str(tmp_path), name=name, others=others[name])
            experiment.add(task, executor=run.LocalExecutor(), name=name)
        big = run.Partial(meet, folder=str(tmp_path), name="big", others=[])
        experiment.add(big, executor=run.LocalExecutor(ntasks_per_node=2), name="big")
        alone = run.LocalExecutor(gpus_per_node=0, env_vars={"CUDA_VISIBLE_DEVICES": ""})
        experiment.add(big, executor=alone, name="none")
        values = {result.task: result.value for result in experiment.run(progress=False)}
    assert {values["a"], values["b"]} == {"5", "6"}
    assert (values["c"] in ("5", "6"), values["big"], values["none"]) == (True, "5,6", "")


def test_each_node_here_has_its_share_of_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    script = run.Script(inline="echo $RANK $CUDA_VISIBLE_DEVICES")
    result = run.run(script, run.LocalExecutor(nodes=2, ntasks_per_node=2), progress=False)
    shown = [(result.folder / f"rank_{rank}.out").read_text().split()[1] for rank in range(4)]
    assert shown == ["0,1", "0,1", "2,3", "2,3"]


def test_a_group_that_never_fits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    experiment = run.Experiment("too many")
    experiment.add([run.Partial(report_rank)] * 2, executor=run.LocalExecutor())
    with pytest.raises(ExecutorError, match="2 tasks are to run together on 2 GPUs, and this machine shows 1"):
        experiment.run()


HELD = """
import sys
sys.path.insert(0, {samples!r})
import launcher as run, sample_tasks
if __name__ == "__main__":
    with run.Experiment("held") as experiment:
        local = run.LocalExecutor(grace=0.3, retries=5)
        held = experiment.add(run.Partial(sample_tasks.hold, fifo={fifo!r}), executor=local, name="held")
        experiment.add(run.Partial(sample_tasks.report_rank), executor=local, name="after", dependencies=[held])
        experiment.add(run.Script(inline="exit 0"), executor=run.LocalExecutor(), name="apart")
        experiment.run()
"""


@pytest.fixture
def held(tmp_path: Path) -> subprocess.Popen[str]:
    """A launcher in another terminal; its first task runs and holds when this returns."""
    fifo, script = tmp_path / "fifo", tmp_path / "train.py"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)
    script.write_text(HELD.format(samples=SAMPLES, fifo=str(fifo)))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True, start_new_session=True)
    with os.fdopen(keep) as pipe:
        pipe.readline()
    experiment = run.Experiment.from_title("held")
    until(lambda: experiment.status()["held"] is Status.RUNNING, PATIENCE, "the task that holds")
    return process


def test_another_terminal_ends_an_experiment(held: subprocess.Popen[str]) -> None:
    experiment = run.Experiment.from_title("held")
    assert set(experiment.cancel().values()) <= {Status.CANCELLED, Status.SKIPPED, Status.SUCCEEDED}
    assert (statuses(experiment)["held"], statuses(experiment)["after"]) == ("cancelled", "cancelled")
    _, said = held.communicate(timeout=PATIENCE)
    assert held.returncode == 1  # and whoever waited for it hears of it
    assert "task 'held' failed: it was cancelled" in said


def test_one_task_is_ended_and_what_needed_it_is_skipped(held: subprocess.Popen[str]) -> None:
    experiment = run.Experiment.from_title("held")
    experiment.cancel("held")
    held.communicate(timeout=PATIENCE)
    assert statuses(experiment) == {"held": "cancelled", "after": "skipped", "apart": "succeeded"}


def test_nobody_is_there_to_end_it(held: subprocess.Popen[str]) -> None:
    held.kill()
    held.communicate()
    experiment = run.Experiment.from_title("held")
    assert statuses(experiment)["held"] == "lost"
    experiment.cancel()  # nothing to wait for
    held_by = Store().get(experiment.id).tasks[0]
    held_by.append("started")  # this process looks after it, it says, and never looks
    with pytest.raises(run.LaunchError, match=rf"has not ended in 0\.1 s; process {os.getpid()} on "):
        experiment.cancel(timeout=0.1)


def test_off_the_main_thread_an_experiment_runs_as_well() -> None:
    """Where no signal can be caught (a notebook's server, a web worker), and none need be."""
    results: list[run.Result] = []
    thread = threading.Thread(target=lambda: results.append(run.run(run.Partial(report_rank), progress=False)))
    thread.start()
    thread.join(PATIENCE)
    assert [result.task for result in results] == ["report_rank"]


def test_a_handler_of_the_users_own_stays(tmp_path: Path) -> None:
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        run.run(run.Script(inline=f"kill -TERM {os.getpid()}"), progress=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def is_running(*words: str) -> bool:
    """Whether there is a process with all of these in its command line."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_text()
        except OSError:  # ended meanwhile
            continue
        if all(word in line for word in words):
            return True
    return False


KILLED = """
import sys
sys.path.insert(0, {samples!r})
import launcher as run, sample_tasks
if __name__ == "__main__":
    with run.Experiment("killed") as experiment:
        last = []
        for name in "abcd":
            task = run.Partial(sample_tasks.note, path={log!r})
            last = [experiment.add(task, executor=run.LocalExecutor(), name=name, dependencies=last)]
        experiment.run(detach={detach})
"""


@pytest.mark.parametrize("detach", [False, True])
def test_a_launcher_killed_at_any_instant_runs_nothing_twice_and_corrupts_nothing(tmp_path: Path, detach: bool) -> None:
    script, log = tmp_path / "train.py", tmp_path / "log"
    script.write_text(KILLED.format(samples=SAMPLES, log=str(log), detach=detach))
    command, started = [sys.executable, str(script)], time.monotonic()
    subprocess.run(command, stderr=subprocess.DEVNULL, check=True)
    whole = time.monotonic() - started
    for part in range(8):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(whole * (part + 1) / 9)
        process.kill()
        process.wait()
    deadline = time.monotonic() + PATIENCE
    while is_running("detached.py", str(Store().folder)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    records = list(Store().all())
    for record in records:
        found = [task.status for task in record.tasks]
        assert set(found) <= {Status.SUCCEEDED, Status.LOST}, found
        if detach and any(task.attempts for task in record.tasks):  # taken over: it ran to its end
            assert set(found) == {Status.SUCCEEDED}
    noted = log.read_text().splitlines()
    assert len(noted) == len(set(noted)), "a task ran twice"
    ran = {str(task.folder) for record in records for task in record.tasks if task.status is Status.SUCCEEDED}
    assert ran <= set(noted)


def test_experiments_on_two_threads_leave_each_others_tasks_alone(tmp_path: Path) -> None:
    """A process dies with the thread that started it: no thread may start what another waits for."""
    errors: list[BaseException] = []

    def launch(title: str, seconds: float) -> None:
        try:
            with run.Experiment(title) as experiment:
                for number in range(4):
                    sleeping = run.Script(inline=f"sleep {seconds}")
                    experiment.add(sleeping, executor=run.LocalExecutor(), name=str(number))
                experiment.run(progress=False)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=launch, args=(title, seconds)) for title, seconds in (("a", 0.0), ("b", 0.3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []


def test_many_launchers_at_once(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import launcher as run\nif __name__ == '__main__':\n    run.run(run.Script(inline=':'), name='x')\n"
    )
    launched = [subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL) for _ in range(12)]
    assert [process.wait(PATIENCE) for process in launched] == [0] * 12
    records = list(Store().all())
    assert len({record.id for record in records}) == 12
    assert {record.status for record in records} == {Status.SUCCEEDED}


def test_a_disk_that_fills_up_ends_what_runs(tmp_path: Path) -> None:
    fifo, script = tmp_path / "fifo", tmp_path / "train.py"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)
    script.write_text(
        f"import resource, sys, threading\nsys.path.insert(0, {SAMPLES!r})\n"
        "import launcher as run, sample_tasks\n"
        "if __name__ == '__main__':\n"
        "    with run.Experiment('full') as experiment:\n"
        f"        held = run.Partial(sample_tasks.hold, fifo={str(fifo)!r})\n"
        "        experiment.add(held, executor=run.LocalExecutor(grace=0.2), name='held')\n"
        "        experiment.add(run.Script(inline='sleep 0.5'), executor=run.LocalExecutor(), name='other')\n"
        "        full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "        threading.Timer(0.3, full).start()\n"
        "        experiment.run(progress=False)\n"
    )
    launched = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    with os.fdopen(keep) as pipe:
        rank, child = (int(pid) for pid in pipe.readline().split())
    watches = [os.pidfd_open(pid) for pid in (rank, child)]
    _, said = launched.communicate(timeout=PATIENCE)
    assert launched.returncode == 1
    assert "File too large" in said
    for watch in watches:
        assert has_ended(watch)
        os.close(watch)


class InterruptedAtTheEnd(run.LocalExecutor):
    def clean(self, plan: Plan) -> None:
        super().clean(plan)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_ctrl_c_that_comes_when_all_is_over_is_not_lost() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with run.Experiment("late") as experiment, pytest.raises(KeyboardInterrupt):
            experiment.add(run.Script(inline="true"), executor=InterruptedAtTheEnd(), name="one")
            experiment.run(progress=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert statuses(experiment) == {"one": "succeeded"}


def test_a_chain_may_be_as_long_as_it_likes() -> None:
    experiment, number = run.Experiment("long"), 1100
    for index in reversed(range(number)):
        needs = [str(index - 1)] if index else []
        experiment.add(run.Script(inline="true"), executor=run.LocalExecutor(), name=str(index), dependencies=needs)
    assert len(needs_in(experiment._added)) == number


def test_a_task_that_runs_again_for_anothers_failure_says_so(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    fails_once = run.Script(inline=f"test -e '{flag}' || {{ touch '{flag}'; exit 4; }}")
    with run.Experiment("group") as experiment:
        experiment.add([run.Script(inline="true"), fails_once], executor=run.LocalExecutor(retries=1), name="pair")
        experiment.run(progress=False)
    retries = [task.events()[2] for task in Store().get(experiment.id).tasks]
    assert [(event["event"], event["rank"]) for event in retries] == [("retrying", None), ("retrying", 0)]
    assert retries[0]["cause"] == "task 'pair-1', which runs with it, failed: exited with status 4"


def test_a_tasks_secrets_go_when_it_ends() -> None:
    local = run.LocalExecutor(env_vars={"HF_TOKEN": "x"})
    with run.Experiment("secret") as experiment:
        experiment.add(run.Script(inline='test -e "$GEMMA_LAUNCHER_JOB_DIR/secrets.json"'), executor=local, name="one")
        gone = run.Script(inline='test ! -e "$GEMMA_LAUNCHER_JOB_DIR/../one/secrets.json"')
        experiment.add(gone, executor=local, name="two", dependencies=["one"])
        experiment.run(progress=False)


class CancelledMeanwhile(run.LocalExecutor):
    def prepare(self, plans: Sequence[Plan]) -> list[str]:
        said = super().prepare(plans)
        for plan in plans:
            JobFiles(plan.folder).cancel.touch()
        return said


def test_one_that_is_ended_before_it_starts_never_does() -> None:
    with run.Experiment("early") as experiment, pytest.raises(run.ExperimentFailed, match="it was cancelled"):
        experiment.add(run.Script(inline="true"), executor=CancelledMeanwhile(), name="one")
        experiment.run(progress=False)
    [task] = Store().get(experiment.id).tasks
    assert [event["event"] for event in task.events()] == ["queued", "cancelled"]


class OutOfReach(run.LocalExecutor):
    """A place that takes its time to be reached, and goes on by itself from then on."""

    looks: ClassVar[int] = 0

    @property
    def outlives(self) -> bool:
        return True

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        OutOfReach.looks += 1
        if OutOfReach.looks < 4:
            return [JobState(status=Status.QUEUED, detail="trying again", accepted=False) for _ in handles]
        return super().poll(handles)


def test_a_place_that_was_not_reached_yet_looks_after_nothing() -> None:
    with run.Experiment("far") as experiment:
        experiment.add(run.Script(inline="true"), executor=OutOfReach(), name="a")
        experiment.run(progress=False)
    owners = {event["event"]: event["owner"]["pid"] for event in Store().get(experiment.id).task().events()}
    assert owners["submitted"] == os.getpid()
    assert owners["started"] == 0


class StartedAgain(run.LocalExecutor):
    """A place that starts a task again by itself, and knows that it runs before it knows how often it was started."""

    said: ClassVar[list[JobState]] = []

    @property
    def outlives(self) -> bool:
        return True

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        return [self.said.pop(0)] if self.said else super().poll(handles)


def test_one_start_of_a_place_is_one_attempt() -> None:
    waiting, running = JobState(status=Status.QUEUED), JobState(status=Status.RUNNING)
    again = JobState(status=Status.RUNNING, attempt=2)
    StartedAgain.said = [waiting, running, waiting, running, again, again]
    with run.Experiment("again") as experiment:
        experiment.add(run.Script(inline="true"), executor=StartedAgain(), name="a")
        experiment.run(progress=False)
    task = Store().get(experiment.id).task()
    assert [event["event"] for event in task.events()] == ["queued", "started", "retrying", "started", "succeeded"]
    assert (task.attempts, task.attempt) == (2, 2)
