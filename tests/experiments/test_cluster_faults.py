"""What breaks while an experiment runs on a cluster: the line, the scheduler, accounting; and what is broken before."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import on_cluster
import pytest

import launcher as run
from executors.base import Status
from executors.slurm import watch
from experiments.store import ExperimentRecord, Store
from launcher.errors import LaunchError
from tests.experiments.test_cluster import cluster, jobs_of, only
from tests.labs.machine import until
from tests.labs.slurm.lab import SlurmLab

COUNT = 'for n in $(seq 1 60); do echo "line $n"; sleep 0.1; done'


def during(meanwhile: Callable[[], None]) -> threading.Thread:
    """Do it as soon as the only task runs."""

    def wait() -> None:
        until(lambda: bool(list(Store().all())) and only().task().status is Status.RUNNING, 60, "its start")
        meanwhile()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def run_counting(lab: SlurmLab, meanwhile: Callable[[], None], **settings: Any) -> None:
    with run.Experiment("counts") as experiment:
        experiment.add(run.Script(inline=COUNT), executor=cluster(lab, **settings), name="count", tail_logs=True)
        thread = during(meanwhile)
        experiment.run(progress=False)
        thread.join()


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.partition("| ")[2] for line in capsys.readouterr().out.splitlines() if "rank_0.out" in line]


EVERY_LINE = [f"line {n}" for n in range(1, 61)]


def test_lines_that_are_cut_again_and_again_show_every_line_of_a_log_once(
    slurm_lab_alone: SlurmLab, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut() -> None:
        for _ in range(6):
            slurm_lab_alone.drop_ssh()
            threading.Event().wait(0.7)

    run_counting(slurm_lab_alone, cut)
    assert shown(capsys) == EVERY_LINE


def test_an_sshd_that_is_away_for_a_while(slurm_lab_alone: SlurmLab, capsys: pytest.CaptureFixture[str]) -> None:
    def away() -> None:
        slurm_lab_alone.kill("sshd")
        threading.Event().wait(4)
        slurm_lab_alone.start("sshd")

    run_counting(slurm_lab_alone, away)
    assert shown(capsys) == EVERY_LINE
    assert any("trying again" in event.get("detail", "") for event in only().task().events())


def test_a_scheduler_that_dies_and_comes_back(slurm_lab_alone: SlurmLab, capsys: pytest.CaptureFixture[str]) -> None:
    def restart() -> None:
        threading.Event().wait(6)  # until it has saved what it knows of the job
        slurm_lab_alone.kill("slurmctld")
        threading.Event().wait(1)
        slurm_lab_alone.start("slurmctld")

    with run.Experiment("survives") as experiment:
        experiment.add(run.Partial(on_cluster.work, 12.0), executor=cluster(slurm_lab_alone), name="work")
        thread = during(restart)
        [result] = experiment.run(progress=False)
        thread.join()
    assert result.value["world"] == 1
    assert len(jobs_of(slurm_lab_alone, only())) == 1


def test_accounting_that_is_down(slurm_lab_alone: SlurmLab) -> None:
    slurm_lab_alone.kill("slurmdbd")
    with run.Experiment("unaccounted") as experiment:
        first = experiment.add(run.Partial(on_cluster.work, 1.0), executor=cluster(slurm_lab_alone), name="first")
        experiment.add(
            run.Partial(on_cluster.work, 0.0), executor=cluster(slurm_lab_alone), name="next", dependencies=[first]
        )
        experiment.run(progress=False)
    assert {task.status for task in only().tasks} == {Status.SUCCEEDED}


def test_a_folder_that_may_not_be_written_to_is_refused_before_anything_is_queued(slurm_lab: SlurmLab) -> None:
    tunnel = run.SSHTunnel("lab", ssh_config=slurm_lab.sshd.ssh_config(), job_dir="/root/jobs")
    with (
        run.Experiment("forbidden") as experiment,
        pytest.raises(LaunchError, match=r"Permission denied(.|\n)*job_dir"),
    ):
        experiment.add(run.Partial(print), executor=cluster(slurm_lab, tunnel=tunnel))
        experiment.run(progress=False)
    assert not list(Store().all())


def test_a_full_disk_is_said_and_nothing_half_is_left(slurm_lab: SlurmLab, lab_folder: Path) -> None:
    disk = lab_folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=1777", "tmpfs", str(disk)], check=True)
    try:
        tunnel = run.SSHTunnel("lab", ssh_config=slurm_lab.sshd.ssh_config(), job_dir=str(disk / "jobs"))
        with run.Experiment("full") as experiment, pytest.raises(LaunchError, match=r"No space left(.|\n)*make room"):
            experiment.add(run.Partial(print), executor=cluster(slurm_lab, tunnel=tunnel))
            experiment.run(progress=False)
        assert not list(disk.rglob("*.tar.gz")) and not list(disk.rglob("*.part"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert not list(Store().all())


def test_a_node_without_python_says_which_one_was_asked_for(slurm_lab: SlurmLab) -> None:
    with run.Experiment("bare") as experiment, pytest.raises(run.ExperimentFailed, match="no-such-python"):
        experiment.add(run.Partial(print), executor=cluster(slurm_lab, python="no-such-python"))
        experiment.run(progress=False)


def test_a_job_that_the_scheduler_forgot_is_submitted_again_and_runs_once(
    slurm_lab_alone: SlurmLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = slurm_lab_alone
    monkeypatch.setattr(watch, "LOST_AFTER", 2.0)
    lost = []

    def crash() -> None:  # it saves its state with the first job, and only seconds later with the next ones
        until(lambda: bool(list(Store().all())) and submitted(only()), 60, "the submission")
        lab.kill("slurmctld")
        lab.start("slurmctld")
        known = lab.command("squeue", "-h", "-t", "all", "-o", "%j").splitlines()
        lost.extend(task.name for task in only().tasks if f"{task.folder.name}.{only().id}" not in known)

    later = cluster(lab, additional_parameters={"begin": "now+6"})
    with run.Experiment("forgotten") as experiment:
        for name in ("a", "b", "c", "d"):
            experiment.add(run.Partial(on_cluster.work, 0.0), executor=later, name=name)
        thread = threading.Thread(target=crash)
        thread.start()
        experiment.run(progress=False)
        thread.join()
    assert lost, "slurmctld had saved them all"
    done = [name for name, state in jobs_of(lab, only()) if state == "COMPLETED"]
    assert sorted(name.partition(".")[0] for name in done) == ["a", "b", "c", "d"]
    assert {name.rpartition(".")[2] for name in done if name.partition(".")[0] in lost} == {"2"}


def submitted(record: ExperimentRecord) -> bool:
    return all("submitted" in [event["event"] for event in task.events()] for task in record.tasks)
