"""Experiments on a real Slurm, over a real SSH connection; and what becomes of them when their launcher ends."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import on_cluster
import pytest
from click.testing import CliRunner

import launcher as run
from executors.base import Status
from experiments.store import ExperimentRecord, Store
from launcher.cli import cli as command
from launcher.errors import ExecutorError
from tests.labs.machine import until
from tests.labs.slurm.lab import SlurmLab

SCRIPT = str(Path(on_cluster.__file__))


def cluster(lab: SlurmLab, **settings: Any) -> run.SlurmExecutor:
    tunnel = run.SSHTunnel("lab", ssh_config=lab.sshd.ssh_config(), job_dir=lab.job_dir)
    code = run.PatternPackager(include_pattern=SCRIPT, relative_path=str(Path(SCRIPT).parent))
    given = {"account": "proj-a", "python": lab.python, "mem": "1G", "packager": code, "tunnel": tunnel}
    return run.SlurmExecutor(**given | settings)


def launch(lab: SlurmLab, home: Path, *flags: str, seconds: float = 0) -> subprocess.Popen[str]:
    argv = [sys.executable, SCRIPT, lab.sshd.ssh_config(), lab.job_dir, lab.python, str(seconds), *flags]
    return subprocess.Popen(
        argv,
        env={**os.environ, "GEMMA_LAUNCHER_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def only() -> ExperimentRecord:
    [found] = Store().all()
    return found


def ask(*arguments: str) -> str:
    done = CliRunner().invoke(command, ["experiment", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def jobs_of(lab: SlurmLab, record: ExperimentRecord) -> list[tuple[str, str]]:
    """Name and state of every job that the cluster ever had for an experiment, as root sees it."""
    everything = lab.command("sacct", "-aXnP", "-D", "-S", "now-1hours", "-o", "JobName,State").splitlines()
    queue = lab.command("squeue", "-ha", "-t", "all", "-o", "%j|%T").splitlines()
    found = dict(line.split("|", 1) for line in everything + queue if record.id in line)
    assert len([line for line in everything if record.id in line]) <= len(found), "a job was submitted twice"
    return sorted(found.items())


def test_tasks_run_in_order_and_what_they_leave_comes_here(slurm_lab: SlurmLab, capsys: Any) -> None:
    secret = secrets.token_hex(8)
    two = cluster(slurm_lab, nodes=2, ntasks_per_node=2, env_vars={"HF_TOKEN": secret, "MARK": "a 'b' $c"})
    with run.Experiment("two") as experiment:
        first = experiment.add(run.Partial(on_cluster.work, 0.0), executor=two, name="first", tail_logs=True)
        script = run.Script(inline='echo "$MARK $RANK $WORLD_SIZE"; test ${#HF_TOKEN} = 16')
        experiment.add(script, executor=two, name="second", dependencies=[first])
        results = experiment.run(progress=False)
    assert results[0].value["world"] == 4
    assert results[0].value["folder"].startswith(slurm_lab.job_dir)
    assert results[0].value["first"].startswith("198.18.77.")
    record = only()
    assert {task.status for task in record.tasks} == {Status.SUCCEEDED}
    said = capsys.readouterr()
    assert sorted(line for line in said.out.splitlines() if "| rank" in line) == [
        f"first rank_{rank}.out| rank {rank} of 4" for rank in range(4)
    ]
    second = record.task("second")
    assert [event["event"] for event in second.events()][-2:] == ["started", "succeeded"]
    experiment.logs("second", rank=3)
    assert "rank_3.out| a 'b' $c 3 4" in capsys.readouterr().out
    everything = b"".join(path.read_bytes() for path in record.folder.rglob("*") if path.is_file())
    assert secret.encode() not in everything and secret not in said.err
    there = Path(slurm_lab.job_dir, "experiments", record.id)
    assert not list(there.rglob("secrets.json")) and not list(there.rglob("environment.sh"))


def test_the_rank_that_failed_is_named_and_what_needs_its_task_is_skipped(slurm_lab: SlurmLab) -> None:
    with run.Experiment("bad") as experiment:
        bad = experiment.add(
            run.Partial(on_cluster.fail_on, 1), executor=cluster(slurm_lab, ntasks_per_node=2), name="bad"
        )
        experiment.add(run.Partial(print), executor=cluster(slurm_lab), name="never", dependencies=[bad])
        with pytest.raises(run.ExperimentFailed) as error:
            experiment.run(progress=False)
    assert error.value.rank == 1 and error.value.task == "bad"
    assert "on_cluster.py" in error.value.traceback
    assert only().task("never").status is Status.SKIPPED
    assert f"never.{only().id}" not in slurm_lab.command("squeue", "-ha", "-o", "%j")


def test_what_slurm_would_refuse_is_refused_in_its_own_words_before_anything_is_there(slurm_lab: SlurmLab) -> None:
    for settings, words in (
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"account": "proj-x"}, "Invalid account"),
        ({"nodes": 99}, "nodes?"),
        ({"time": "2-00:00:00"}, "time=2-00:00:00 is more than partition batch allows"),
    ):
        experiment = run.Experiment("refused")
        experiment.add(run.Partial(print), executor=cluster(slurm_lab, **settings))
        with pytest.raises(ExecutorError, match=f"(?i)would not run it(.|\n)*({words})"):
            experiment.run(progress=False)
        assert not list(Store().all())
        assert not Path(slurm_lab.job_dir, "experiments", experiment.id).exists()


def test_detached_nobody_here_looks_after_it_until_somebody_asks(slurm_lab: SlurmLab, launcher_home: Path) -> None:
    launcher = launch(slurm_lab, launcher_home, "detach", seconds=2)
    said = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 0, said
    record = only()
    assert ask("status", record.id).count("job ") >= 1
    until(lambda: "status   succeeded" in ask("status", record.id), 60, "its end")
    assert [task.status for task in record.tasks] == [Status.SUCCEEDED] * 2
    assert "rank 0 of 1" in ask("logs", record.id, "--task", "second")
    assert len(jobs_of(slurm_lab, record)) == 2


def test_detached_tasks_are_submitted_whatever_the_order_they_were_added_in(slurm_lab: SlurmLab) -> None:
    with run.Experiment("order") as experiment:
        for name, needs in (("last", ["middle"]), ("middle", ["first"]), ("first", [])):
            experiment.add(run.Script(inline="true"), executor=cluster(slurm_lab), name=name, dependencies=needs)
        assert experiment.run(detach=True) == []
    assert len(jobs_of(slurm_lab, only())) == 3
    assert len(experiment.wait()) == 3


def test_what_slurm_itself_takes_from_the_queue_is_skipped_and_what_somebody_does_is_cancelled(
    slurm_lab: SlurmLab,
) -> None:
    one = cluster(slurm_lab, additional_parameters={"kill-on-invalid-dep": "yes"})
    with run.Experiment("taken") as experiment:
        experiment.add(run.Script(inline="exit 3"), executor=one, name="bad")
        experiment.add(run.Script(inline="true"), executor=one, name="needs bad", dependencies=["bad"])
        experiment.add(run.Script(inline="sleep 300"), executor=one, name="long")
        experiment.add(run.Script(inline="true"), executor=one, name="needs long", dependencies=["long"])
        experiment.run(detach=True)
    until(lambda: _over(slurm_lab, "needs-bad"), 60, "its end")
    assert experiment.cancel("needs long")["needs long"] is Status.CANCELLED
    found = experiment.status()
    assert (found["needs bad"], found["bad"]) == (Status.SKIPPED, Status.FAILED)
    assert not found["long"].final
    experiment.cancel()


def _over(lab: SlurmLab, task: str) -> bool:
    return any(name.startswith(f"{task}.") and "CANCELLED" in state for name, state in jobs_of(lab, only()))


def test_each_task_waits_as_its_own_executor_says(slurm_lab: SlurmLab) -> None:
    needs = {"bad": [], "any": ["bad"], "not": ["bad"], "ok": ["bad"], "good": [], "not good": ["good"]}
    types = {"any": "afterany", "not": "afternotok", "not good": "afternotok"}
    with run.Experiment("types") as experiment:
        for name, needed in needs.items():
            script = run.Script(inline="exit 3" if name == "bad" else "true")
            executor = cluster(slurm_lab, dependency_type=types.get(name, "afterok"))
            experiment.add(script, executor=executor, name=name, dependencies=needed)
        with pytest.raises(run.ExperimentFailed):
            experiment.run(progress=False)
    found = {name: status.value for name, status in experiment.status().items()}
    ran = dict.fromkeys(("any", "not", "good"), "succeeded")
    assert found == {"bad": "failed", **ran, "ok": "skipped", "not good": "skipped"}


def test_wait_looks_after_it_too(slurm_lab: SlurmLab) -> None:
    with run.Experiment("waited for") as experiment:
        experiment.add(run.Partial(on_cluster.work, 1.0), executor=cluster(slurm_lab))
        assert experiment.run(detach=True) == []
    [result] = run.Experiment.from_id(experiment.id).wait()
    assert result.value["world"] == 1


@pytest.mark.parametrize("delay", [0.05, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.5, 2.5])
def test_a_launcher_that_is_killed_leaves_the_truth_and_no_job_twice(
    delay: float, slurm_lab: SlurmLab, launcher_home: Path
) -> None:
    launcher = launch(slurm_lab, launcher_home, seconds=1)
    time.sleep(delay)
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.communicate()
    records = [record for record in Store().all() if record.tasks[0].events()]
    if not records:
        return  # nothing was said to be under way
    [record] = records
    until(lambda: _settled(ask("status", record.id)), 60, "an end, or the word that there is none")
    statuses = [task.status for task in record.tasks]
    known = jobs_of(slurm_lab, record)
    names = [name.partition(".")[0] for name, _ in known]
    assert len(names) == len(set(names)), known
    for task, status in zip(record.tasks, statuses, strict=True):
        submitted = task.name in names
        assert status is (Status.SUCCEEDED if submitted else Status.LOST), (statuses, known)


def _settled(text: str) -> bool:
    return not any(f"task {name}: {status}" in text for name in ("first", "second") for status in ("queued", "running"))


def test_cancel_ends_what_nobody_looks_after(slurm_lab: SlurmLab, launcher_home: Path) -> None:
    assert launch(slurm_lab, launcher_home, "detach", seconds=300).wait(60) == 0
    record = only()
    until(lambda: "task first: running" in ask("status", record.id), 60, "its start")
    said = ask("cancel", record.id)
    assert "first: cancelled" in said
    assert {state.split()[0] for _, state in jobs_of(slurm_lab, record)} == {"CANCELLED"}
    assert not list(Path(slurm_lab.job_dir, "experiments", record.id).rglob("secrets.json"))


def test_a_closed_terminal_and_who_only_waits_leave_jobs_alone(slurm_lab: SlurmLab, launcher_home: Path) -> None:
    launcher = launch(slurm_lab, launcher_home, seconds=300)
    until(lambda: bool(list(Store().all())) and only().task("first").status is Status.RUNNING, 60, "its start")
    launcher.send_signal(signal.SIGHUP)
    launcher.communicate(timeout=30)
    waiting = subprocess.Popen(
        [sys.executable, "-c", f"import launcher as run; run.Experiment.from_id({only().id!r}).wait()"],
        env={**os.environ, "GEMMA_LAUNCHER_HOME": str(launcher_home)},
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(2)
    waiting.send_signal(signal.SIGINT)
    waiting.communicate(timeout=60)
    assert "task first: running" in ask("status", only().id)
    assert "first: cancelled" in ask("cancel", only().id)
    assert {state.split()[0] for _, state in jobs_of(slurm_lab, only())} == {"CANCELLED"}


def test_a_ctrl_c_ends_jobs(slurm_lab: SlurmLab, launcher_home: Path) -> None:
    launcher = launch(slurm_lab, launcher_home, seconds=300)
    until(lambda: bool(list(Store().all())) and only().task("first").status is Status.RUNNING, 60, "its start")
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=60)
    assert only().task("first").status is Status.CANCELLED
    assert {state.split()[0] for _, state in jobs_of(slurm_lab, only())} == {"CANCELLED"}


def test_a_third_ctrl_c_leaves_though_the_cluster_cannot_be_told(
    slurm_lab_alone: SlurmLab, launcher_home: Path
) -> None:
    launcher = launch(slurm_lab_alone, launcher_home, seconds=300)
    until(lambda: bool(list(Store().all())) and only().task("first").status is Status.RUNNING, 60, "its start")
    slurm_lab_alone.kill("sshd")
    for _ in range(3):
        time.sleep(1)
        launcher.send_signal(signal.SIGINT)
    said = launcher.communicate(timeout=30)[0]
    assert "they may go on" in said
    slurm_lab_alone.start("sshd")
    assert "first: cancelled" in ask("cancel", only().id)


def test_another_machine_takes_it_over(slurm_lab: SlurmLab, launcher_home: Path, monkeypatch: Any) -> None:
    assert launch(slurm_lab, launcher_home, "detach", seconds=2).wait(60) == 0
    record = only()
    monkeypatch.setenv("GEMMA_LAUNCHER_HOME", str(launcher_home.with_name("elsewhere")))
    reach = ["--host", "lab", "--ssh-config", slurm_lab.sshd.ssh_config(), "--job-dir", slurm_lab.job_dir]
    assert record.id in ask("attach", "on a cluster", *reach)
    assert "rank_0.out| rank 0 of 1" in ask("logs", record.id, "--follow")
    until(lambda: "status   succeeded" in ask("status", record.id), 60, "its end")
    assert len(jobs_of(slurm_lab, record)) == 2


def test_another_machine_takes_nothing_for_failed_that_is_still_to_come(
    slurm_lab: SlurmLab, launcher_home: Path, monkeypatch: Any
) -> None:
    executor = cluster(slurm_lab)
    with run.Experiment("to come") as experiment:
        experiment.add(run.Script(inline="sleep 4"), executor=executor, name="first")
        experiment.add(run.Script(inline="true"), executor=executor, name="second")
        experiment.run(sequential=True, detach=True)
    until(lambda: not experiment.status()["first"].final and len(jobs_of(slurm_lab, only())) == 1, 30, "the first job")
    monkeypatch.setenv("GEMMA_LAUNCHER_HOME", str(launcher_home.with_name("elsewhere")))
    assert executor.tunnel is not None
    there = run.Experiment.attach(executor.tunnel, experiment.id)
    assert there.status()["second"] is Status.LOST
    until(lambda: set(there.status().values()) == {Status.SUCCEEDED}, 60, "the end of both")


def test_two_clusters_in_one_experiment_are_not_mixed(slurm_lab: SlurmLab) -> None:
    other = run.SSHTunnel("lab", ssh_config=slurm_lab.sshd.ssh_config(), job_dir=f"{slurm_lab.job_dir}/other")
    places = {"here": cluster(slurm_lab), "there": cluster(slurm_lab, tunnel=other)}
    with run.Experiment("two clusters") as experiment:
        for name, where in places.items():
            experiment.add(run.Partial(on_cluster.work, 0.0), executor=where, name=name)
        experiment.add(run.Partial(on_cluster.work, 0.0), executor=places["there"], name="then", dependencies=["here"])
        results = {result.task: result.value["folder"] for result in experiment.run(progress=False)}
    for name, where in (("here", places["here"]), ("there", places["there"]), ("then", places["there"])):
        assert where.tunnel is not None
        top = Path(where.tunnel.job_dir, "experiments", experiment.id)
        assert results[name] == str(top / "code")
        assert (top / name / "job_id").exists()
    assert not Path(slurm_lab.job_dir, "experiments", experiment.id, "there").exists()


def test_what_no_commit_holds_travels_and_is_noted_there(
    slurm_lab: SlurmLab, tmp_path: Path, launcher_home: Path
) -> None:
    text = Path(SCRIPT).read_text().replace("        packager=", "        # packager=")
    (tmp_path / "train.py").write_text(text)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (tmp_path / "train.py").write_text(text.replace('"world":', '"changed": True, "world":'))
    argv = [sys.executable, "train.py", slurm_lab.sshd.ssh_config(), slurm_lab.job_dir, slurm_lab.python, "0"]
    done = subprocess.run(
        argv, cwd=tmp_path, env={**os.environ, "GEMMA_LAUNCHER_HOME": str(launcher_home)}, check=False
    )
    assert done.returncode == 0
    assert only().task("first").result()["changed"] is True
    diff = Path(slurm_lab.job_dir, "experiments", only().id, "code.diff").read_text()
    assert '"changed": True' in diff and diff == (only().folder / "code.diff").read_text()


def test_one_question_a_cluster_serves_all_its_experiments(slurm_lab: SlurmLab, monkeypatch: Any) -> None:
    from executors.tunnel import SSHTunnel

    for number in range(5):
        with run.Experiment(f"number {number}") as experiment:
            experiment.add(run.Partial(on_cluster.work, 20.0), executor=cluster(slurm_lab))
            experiment.run(detach=True)
    commands = []
    execute = SSHTunnel._execute
    monkeypatch.setattr(SSHTunnel, "_execute", lambda *given: commands.append(given) or execute(*given))
    listed = ask("list")
    assert listed.count("running") + listed.count("queued") == 5
    assert len(commands) <= 6  # find, files (again where they have grown meanwhile), question; whatever their number
    for record in Store().all():
        ask("cancel", record.id)
