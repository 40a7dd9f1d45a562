"""SubmititExecutor on a real Slurm: the launcher runs on the login node, as a user without rights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import on_login_node
import pytest

from executors.archive import own_package
from executors.base import Status
from experiments.store import ExperimentRecord, Store
from tests.labs.machine import until
from tests.labs.slurm.lab import SlurmLab

SAMPLES = Path(on_login_node.__file__).parent
COMMAND = ("-c", "from launcher.cli import main; main()", "experiment")
# The login node sees the packages of the Python that tests run with, as the nodes do.
LOGIN = 'mount --bind -o ro "$1" "$2"; shift 2; exec setpriv --reuid="$0" --regid="$0" --init-groups -- "$@"'


class Login:
    """Her login node, with our packages beside her scripts, and a state folder for each test."""

    def __init__(self, lab: SlurmLab, folder: Path) -> None:
        self.lab = lab
        self.home = folder / "state"
        self._folder = folder
        self._user = lab.sshd.user

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        argv = [self.lab.trainer, *arguments]
        env = {
            "PATH": f"{self._folder}/bin:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "HOME": str(self.lab.sshd.home),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        env |= {"PYTHONPATH": str(self._folder / "ours"), "GEMMA_LAUNCHER_HOME": str(self.home), **self.lab.env}
        packages = [sysconfig.get_path("purelib"), str(self.lab.folder / "packages")]
        return subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", LOGIN, self._user, *packages, *argv],
            cwd=self._folder / "scripts",
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def launch(self, *arguments: str) -> subprocess.Popen[str]:
        return self.start("on_login_node.py", *arguments)

    def ask(self, *arguments: str) -> str:
        asked = self.start(*COMMAND, *arguments)
        said: str = asked.communicate(timeout=90)[0]
        assert asked.returncode == 0, said
        return said

    def status(self) -> str:
        return self.ask("status", self.only().id)

    def command(self, name: str, line: str) -> None:
        """What she runs by that name from now on: a line of shell."""
        file = self._folder / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{line}\n")
        file.chmod(0o755)

    def only(self) -> ExperimentRecord:
        [found] = Store(self.home).all()
        return found

    def jobs(self) -> list[str]:
        """Names of all jobs that the cluster ever had for the only experiment."""
        lines = self.lab.command("sacct", "-aXnPD", "-S", "now-1hours", "-o", "JobIDRaw,JobName").splitlines()
        lines += self.lab.command("squeue", "-ha", "-t", "all", "-o", "%A|%j").splitlines()
        return sorted(line.partition("|")[2] for line in {line for line in lines if self.only().id in line})


@pytest.fixture
def login(slurm_lab: SlurmLab, lab_folder: Path, tmp_path: Path) -> Iterator[Login]:
    folder = lab_folder / tmp_path.name
    (folder / "scripts").mkdir(parents=True)
    own_package().copy_to(folder / "ours")
    for name in ("on_login_node.py", "on_cluster.py"):
        shutil.copy(SAMPLES / name, folder / "scripts")
    (folder / "state").mkdir()
    shutil.chown(folder / "state", slurm_lab.sshd.user)
    yield Login(slurm_lab, folder)
    for record in Store(folder / "state").all():
        for task in record.tasks:
            slurm_lab.command("scancel", f"--name={task.folder.name}.{record.id}")


def test_ranks_of_two_nodes_meet_and_the_value_comes_back(login: Login) -> None:
    launcher = login.launch("two", "tail")
    said = launcher.communicate(timeout=90)[0]
    assert launcher.returncode == 0, said
    values = json.loads(said.splitlines()[-1])
    assert [value["world"] for value in values] == [4, 1]
    assert values[0]["first"].startswith("node") and values[1]["first"] == "127.0.0.1"
    assert sorted(line for line in said.splitlines() if "| rank" in line) == [
        f"first rank_{rank}.out| rank {rank} of 4" for rank in range(4)
    ]
    everything = [path for path in login.home.rglob("*") if path.is_file() and path.suffix != ".py"]
    assert not [path for path in everything if b"hf_secret" in path.read_bytes()]
    assert len(login.jobs()) == 2
    assert login.only().task("first").detail.startswith("job ")


def test_the_rank_that_failed_is_named_and_what_needs_its_task_is_skipped(login: Login) -> None:
    said = login.launch("bad").communicate(timeout=50)[0]  # by itself, the other goes on for longer
    assert "task 'first' failed on rank 1: ValueError: rank 1 is broken" in said
    assert "on_cluster.py" in said
    assert login.only().task("second").status is Status.SKIPPED


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("refused", "invalid partition specified: nowhere"),
        ("misspelt", "try: 'slurm_account'"),
        ("broken", "init_fs_encoding"),
    ],
)
def test_why_nothing_ran_is_said_in_the_words_of_who_knows(login: Login, case: str, words: str) -> None:
    launcher = login.launch(case, "alone")
    said = launcher.communicate(timeout=90)[0]
    assert launcher.returncode == 1 and words in said, said


def test_its_time_limit_has_it_save_and_the_next_attempt_goes_on(login: Login) -> None:
    launcher = login.launch("limit", "alone")
    until(lambda: any(path.read_text() for path in login.home.rglob("rank_0.out")), 60, "its start")
    # As Slurm does at the end of a time limit, to within a minute.
    login.lab.command("scancel", "--signal=USR2", f"--name=first.{login.only().id}")
    said = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 0, said
    [retry] = [event for event in login.only().tasks[0].events() if event["event"] == "retrying"]
    assert retry["cause"] == "its time was over: it was asked to end, and saved step 7"
    assert len(login.jobs()) == 2


def test_detached_nobody_looks_after_it_until_somebody_asks(login: Login) -> None:
    assert login.launch("short", "alone", "detach").wait(60) == 0
    until(lambda: "status   succeeded" in login.status(), 60, "its end")
    assert not list(login.home.rglob("secrets.json"))


@pytest.mark.parametrize(
    ("sbatch", "left"),
    [
        ("kill -9 $PPID", (Status.LOST, 0)),
        ('/usr/bin/sbatch "$@"; kill -9 $PPID', (Status.SUCCEEDED, 1)),  # its answer reaches nobody
        ('/usr/bin/sbatch "$@"; (sleep 0.3; kill -9 $PPID) >/dev/null 2>&1 &', (Status.SUCCEEDED, 1)),
    ],
)
def test_a_launcher_that_is_killed_leaves_the_truth_and_no_job_twice(
    login: Login, sbatch: str, left: tuple[Status, int]
) -> None:
    login.command("sbatch", sbatch)
    login.launch("short", "alone").communicate()
    until(lambda: not any(f"first: {now}" in login.status() for now in ("queued", "running")), 60, "an end")
    assert (login.only().tasks[0].status, len(login.jobs())) == left


def test_an_answer_that_was_lost_is_asked_for(login: Login) -> None:
    login.command("sbatch", '/usr/bin/sbatch "$@" >/dev/null; echo Socket timed out >&2; exit 1')
    launcher = login.launch("short", "alone")
    said = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 0, said
    assert len(login.jobs()) == 1


def test_cancel_ends_what_nobody_looks_after(login: Login) -> None:
    launcher = login.launch("long", "alone")
    until(lambda: bool(list(Store(login.home).all())) and login.only().status is Status.RUNNING, 60, "its start")
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.communicate()
    assert "task first: running" in login.status()
    assert "first: cancelled" in login.ask("cancel", login.only().id)
    assert not list(login.home.rglob("secrets.json"))
