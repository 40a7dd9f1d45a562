"""Experiments on a real Docker engine; and what becomes of them when something there, or their launcher, ends."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import in_containers
import pytest
from click.testing import CliRunner

import launcher as run
from executors.base import Status
from executors.docker.containers import EXPERIMENT
from experiments.store import ExperimentRecord, Store
from launcher.cli import cli as command
from tests.labs.containers.lab import ContainerLab
from tests.labs.machine import until

SCRIPT = str(Path(in_containers.__file__))


def containers(lab: ContainerLab, **settings: Any) -> run.DockerExecutor:
    code = run.PatternPackager(include_pattern=SCRIPT, relative_path=str(Path(SCRIPT).parent))
    return run.DockerExecutor(**{"container_image": lab.image, "packager": code} | settings)


def trainers(lab: ContainerLab, **settings: Any) -> run.DockerExecutor:
    """Containers with torch in them."""
    env = {"PYTHONPATH": "/packages", "OMP_NUM_THREADS": "1"}
    return containers(lab, volumes=lab.packages, env_vars=env, **settings)


def only() -> ExperimentRecord:
    [found] = Store().all()
    return found


def left(lab: ContainerLab, experiment_id: str) -> list[str]:
    """What the engine has of an experiment."""
    label = f"label={EXPERIMENT}={experiment_id}"
    asked = (["ps", "-a", "--format={{.Names}}"], ["volume", "ls", "-q"], ["network", "ls", "--format={{.Name}}"])
    return [name for words in asked for name in lab.command(*words, "--filter", label).split()]


def test_a_task_runs_in_a_container_and_what_it_leaves_comes_here(container_lab: ContainerLab, capsys: Any) -> None:
    with run.Experiment("one") as experiment:
        experiment.add(run.Partial(in_containers.work, 0.0), executor=containers(container_lab), tail_logs=True)
        [result] = experiment.run(progress=False)
    assert result.value == {"world": 1, "user": 0, "folder": f"/gemma-launcher/experiments/{experiment.id}/code"}
    [task] = only().tasks
    image = json.loads((task.folder / "image.json").read_text())
    assert image["id"] == container_lab.command("inspect", "-f", "{{.Id}}", container_lab.image).strip()
    assert task.files.stdout(0).read_text() == "rank 0 of 1\n"
    assert "rank_0.out| rank 0 of 1" in capsys.readouterr().out
    assert json.loads(task.files.environment.read_text())["world_size"] == 1
    assert left(container_lab, experiment.id) == []


def test_the_engine_makes_what_was_asked_for(container_lab: ContainerLab, tmp_path: Path) -> None:
    (tmp_path / "read").write_text("here")
    tmp_path.chmod(0o755)
    executor = containers(
        container_lab,
        memory="300m",
        cpus=0.5,
        shm_size="64m",
        ulimits=["nofile=512:1024", "core=0"],
        ipc_mode="private",
        user="1000:1000",
        volumes=[f"{tmp_path}:/data:ro"],
        additional_kwargs={"cap_drop": ["NET_RAW"], "pids_limit": 200, "sysctls": {"net.ipv4.ip_forward": "0"}},
    )
    looks = (
        "df -m /dev/shm | tail -1; ulimit -Sn; ulimit -Hn; ulimit -c; id -u; cat /data/read; touch /data/x || echo ro"
    )
    with run.Experiment("settings") as experiment:
        experiment.add(run.Script(inline=looks), executor=executor, name="all")
        with ThreadPoolExecutor(1) as pool:
            ran = pool.submit(experiment.run, progress=False)
            until(lambda: left(container_lab, experiment.id) != [], 30, "its container")
            [made] = json.loads(container_lab.command("inspect", f"all.{experiment.id}.0"))
            ran.result()
    said = only().task("all").files.stdout(0).read_text().split()
    assert said[1] == "64" and said[6:] == ["512", "1024", "0", "1000", "herero"], said
    host = made["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (300 * 2**20, 300 * 2**20, 500_000_000)
    assert (host["IpcMode"], host["Privileged"], host["PidsLimit"]) == ("private", False, 200)
    assert host["CapDrop"] == ["NET_RAW"] and host["Sysctls"] == {"net.ipv4.ip_forward": "0"}


def test_a_network_that_is_there_and_what_is_the_hosts(container_lab: ContainerLab) -> None:
    name = f"mine-{secrets.token_hex(4)}"
    container_lab.command("network", "create", name)
    try:
        executor = containers(container_lab, nodes=2, network=name, ipc_mode="host")
        with run.Experiment("network") as experiment:
            experiment.add(run.Script(inline='getent hosts "$MASTER_ADDR"; sleep 1'), executor=executor, name="all")
            with ThreadPoolExecutor(1) as pool:
                ran = pool.submit(experiment.run, progress=False)
                until(lambda: len(left(container_lab, experiment.id)) == 3, 30, "its containers and volume")
                [made] = json.loads(container_lab.command("inspect", f"all.{experiment.id}.1"))
                ran.result()
        assert made["HostConfig"]["IpcMode"] == "host"
        assert list(made["NetworkSettings"]["Networks"]) == [name]
        assert left(container_lab, experiment.id) == []
    finally:
        container_lab.command("network", "rm", name)


def test_a_first_process_that_has_no_memory(container_lab: ContainerLab) -> None:
    """Nobody in the container is left to say why: the engine's own flag does, unless it is set after the end."""
    with pytest.raises(run.ExperimentFailed, match=r"(?s)was killed .*for want of memory.*try: memory="):
        run.run(run.Script(inline="true"), executor=containers(container_lab, memory="6m"))


@pytest.mark.parametrize("network", [None, "host"])
@pytest.mark.parametrize("launcher", [None, "torchrun"])
def test_two_containers_of_two_tasks_reduce_together(container_lab: ContainerLab, launcher: Any, network: Any) -> None:
    two = trainers(container_lab, nodes=2, ntasks_per_node=2, launcher=launcher, network=network)
    with run.Experiment("two") as experiment:
        experiment.add(run.Partial(in_containers.all_reduce), executor=two)
        [result] = experiment.run(progress=False)
    assert result.value == [6.0] * 4
    assert left(container_lab, experiment.id) == []


def launch(home: Path, image: str, *flags: str, seconds: float = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SCRIPT, image, str(seconds), *flags],
        env={**os.environ, "GEMMA_LAUNCHER_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ask(*arguments: str) -> str:
    done = CliRunner().invoke(command, ["experiment", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def failure_of(task: Any, executor: run.DockerExecutor) -> run.ExperimentFailed:
    experiment = run.Experiment("fails")
    experiment.add(task, executor=executor)
    with pytest.raises(run.ExperimentFailed) as error:
        experiment.run(progress=False)
    return error.value


def test_tasks_run_in_order_and_secrets_are_nowhere_to_be_seen(container_lab: ContainerLab, capsys: Any) -> None:
    secret = secrets.token_hex(8)
    hostile = "a 'b' $c\n;`d`"
    executor = containers(
        container_lab, ntasks_per_node=2, env_vars={"HF_TOKEN": secret, "MARK": hostile}, user="runner"
    )
    with run.Experiment('a "title"; $(rm)') as experiment:
        first = experiment.add(run.Partial(in_containers.work, 1.0), executor=executor, name="first")
        script = run.Script(
            inline='echo "$MARK $RANK $WORLD_SIZE"; test ${#HF_TOKEN} = 16; id -un >&2; '
            "stat -c %a $GEMMA_LAUNCHER_JOB_DIR/secrets.json >&2; sleep 1"
        )
        experiment.add(script, executor=executor, name="second", dependencies=[first])
        with ThreadPoolExecutor(1) as pool:
            ran = pool.submit(experiment.run, progress=False)
            until(lambda: len(left(container_lab, experiment.id)) == 4, 30, "its containers")
            names = [name for name in left(container_lab, experiment.id) if name.endswith(".0")]
            inspected = container_lab.command("inspect", *names)
            until(lambda: only().task("second").status is Status.RUNNING, 30, "the second")
            inspected += container_lab.command("inspect", *left(container_lab, experiment.id)[:1])
            [result, _] = ran.result()
    assert result.value["user"] == 1000
    assert "MARK=a 'b'" in inspected and secret not in inspected
    second = only().task("second")
    assert second.files.stdout(1).read_text() == f"{hostile} 1 2\n"
    assert second.files.stderr(0).read_text() == "runner\n600\n"
    everything = b"".join(path.read_bytes() for path in only().folder.rglob("*") if path.is_file())
    said = capsys.readouterr()
    assert secret.encode() not in everything and secret not in said.err + said.out
    assert left(container_lab, experiment.id) == []


def test_the_rank_that_failed_is_named_and_its_group_ends(container_lab: ContainerLab) -> None:
    error = failure_of(run.Partial(in_containers.fail_on, 2), containers(container_lab, nodes=2, ntasks_per_node=2))
    assert (error.rank, error.cause) == (2, "ValueError: rank 2 is broken")
    assert "in_containers.py" in error.traceback
    assert left(container_lab, error.experiment_id) == []


@pytest.mark.parametrize("launcher", [None, "torchrun"])
def test_want_of_memory_is_told_from_a_kill(container_lab: ContainerLab, launcher: Any) -> None:
    small = trainers(container_lab, ntasks_per_node=2, memory="500m", launcher=launcher)
    error = failure_of(run.Partial(in_containers.fill_memory_on, 1), small)
    assert error.rank == 1
    assert error.cause.splitlines() == [
        "killed for want of memory",
        "  try: memory='...' for more, or a smaller micro_batch_size",
    ]
    error = failure_of(run.Partial(in_containers.killed_on, 1), small)
    assert error.rank == 1 and error.cause.startswith("killed by SIGKILL (by kill -9")


def test_a_failed_task_runs_again_with_its_secrets_and_nothing_of_the_first_attempt(
    container_lab: ContainerLab,
) -> None:
    executor = containers(container_lab, retries=1, env_vars={"HF_TOKEN": "abc"})
    with run.Experiment("again") as experiment:
        experiment.add(run.Partial(in_containers.fail_first), executor=executor)
        [result] = experiment.run(progress=False)
    assert result.value == "cba"
    [task] = only().tasks
    assert task.attempts == 2
    assert "not yet" in (task.files.attempt(1) / "rank_0.err").read_text()
    assert task.files.stderr(0).read_text() == ""
    assert left(container_lab, experiment.id) == []


def test_a_container_that_somebody_kills(container_lab: ContainerLab) -> None:
    with run.Experiment("killed") as experiment:
        experiment.add(run.Partial(in_containers.work, 60.0), executor=containers(container_lab, nodes=2), name="t")
        with ThreadPoolExecutor(1) as pool:
            ran = pool.submit(experiment.run, progress=False)
            until(lambda: "running" in ask("list"), 30, "its start")
            container_lab.command("kill", "--signal=KILL", f"t.{experiment.id}.1")
            error = ran.exception()
    assert isinstance(error, run.ExperimentFailed)
    assert f"container t.{experiment.id}.1 was killed by SIGKILL, from outside (docker kill)" in error.cause
    assert left(container_lab, experiment.id) == []


def test_cancel_ends_what_nobody_looks_after(container_lab: ContainerLab, launcher_home: Path) -> None:
    with run.Experiment("left alone") as experiment:
        experiment.add(run.Partial(in_containers.work, 300.0), executor=containers(container_lab), name="t")
        experiment.run(detach=True)
    until(lambda: "task t: running" in ask("status", experiment.id), 30, "its start")
    assert "t: cancelled" in ask("cancel", experiment.id)
    assert left(container_lab, experiment.id) == []


def test_several_experiments_at_once(container_lab: ContainerLab) -> None:
    def one(number: int) -> Any:
        with run.Experiment(f"number {number}") as experiment:
            executor = containers(container_lab, nodes=2, network="host" if number % 2 else None)
            experiment.add(run.Partial(in_containers.work, 0.5), executor=executor)
            return experiment.run(progress=False)[0].value["world"]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [2] * 4
    assert all(left(container_lab, record.id) == [] for record in Store().all())


@pytest.mark.parametrize("delay", [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.6, 2.5])
def test_a_launcher_that_is_killed_leaves_the_truth_and_nothing_else(
    delay: float, container_lab: ContainerLab, launcher_home: Path
) -> None:
    launcher = launch(launcher_home, container_lab.image, seconds=1)
    time.sleep(delay)
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.communicate()
    records = list(Store().all())
    if not records:
        return
    [record] = records
    first = f"first.{record.id}.0"
    ran = first in left(container_lab, record.id) and container_lab.command(
        "inspect", "-f", "{{.State.Status}}", first
    ).strip() in ("running", "exited")
    until(lambda: _settled(ask("status", record.id)), 60, "an end, or the word that there is none")
    statuses = [task.status for task in record.tasks]
    assert statuses[0] is (Status.SUCCEEDED if ran else Status.LOST), statuses
    assert statuses[1] is Status.LOST
    if ran:
        assert record.task("first").files.stdout(0).read_text() == "rank 0 of 1\n"
    assert left(container_lab, record.id) == []


def _settled(text: str) -> bool:
    return not any(f"task {name}: {status}" in text for name in ("first", "second") for status in ("queued", "running"))


def test_prune_takes_away_what_is_left_and_says_what(container_lab: ContainerLab) -> None:
    with run.Experiment("kept") as kept:
        kept.add(run.Partial(in_containers.work, 300.0), executor=containers(container_lab), name="t")
        kept.run(detach=True)
    with run.Experiment("forgotten") as experiment:
        experiment.add(run.Partial(in_containers.work, 300.0), executor=containers(container_lab, nodes=2), name="t")
        experiment.run(detach=True)
    until(lambda: "task t: running" in ask("status", experiment.id), 30, "its start")
    record = experiment.folder / "experiment.json"
    record.rename(record.with_suffix(".aside"))  # one that cannot be read, or was launched a moment ago
    assert ask("prune") == "nothing is left of experiments that are over\n"
    shutil.rmtree(experiment.folder)
    job = f"t.{experiment.id}"
    assert sorted(ask("prune").splitlines()) == sorted(
        f"removed {name}" for name in (f"container {job}.0", f"container {job}.1", f"network {job}", f"volume {job}")
    )
    assert left(container_lab, experiment.id) == []
    assert ask("prune") == "nothing is left of experiments that are over\n"
    assert "t: cancelled" in ask("cancel", kept.id)
