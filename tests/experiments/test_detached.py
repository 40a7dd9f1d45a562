"""Experiments whose launcher has ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sample_tasks
from processes import has_ended
from sample_tasks import echo_variable, end_badly, hold, report_rank

import launcher as run
from executors.base import Status
from experiments import detached
from experiments.store import Store
from launcher.errors import ExecutorError
from tests.labs.machine import until

SAMPLES = str(Path(sample_tasks.__file__).parent)
LAUNCH = """
import sys
sys.path.insert(0, {samples!r})
import launcher as run, sample_tasks
class Mine(run.LocalExecutor):
    "An executor of the launch script's own."
def compute():
    return 42
if __name__ == "__main__":
    with run.Experiment("detached") as experiment:
        hold = experiment.add(run.Partial(sample_tasks.hold, fifo={fifo!r}), executor=run.LocalExecutor(), name="hold")
        experiment.add(run.Partial(compute), executor=Mine(env_vars={{"WANDB_API_KEY": "k-12345"}}), name="compute")
        experiment.run(detach=True, tail_logs=True)
    print(experiment.id)
"""


@pytest.fixture(autouse=True)
def outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_survives_its_launcher_and_its_terminal(tmp_path: Path, launcher_home: Path) -> None:
    fifo, script = tmp_path / "fifo", tmp_path / "train.py"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)
    script.write_text(LAUNCH.format(samples=SAMPLES, fifo=str(fifo)))
    launcher = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    experiment_id = launcher.communicate()[0].strip()  # returns: nobody holds the launcher's stdout open
    with pytest.raises(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGHUP)  # nothing of its session is left to hear that its terminal closed
    with os.fdopen(keep) as pipe:
        held, _ = (int(pid) for pid in pipe.readline().split())
    experiment = run.Experiment.from_id(experiment_id)
    until(lambda: experiment.status()["hold"] is Status.RUNNING, 30, "its start")
    secrets = launcher_home / "experiments" / experiment_id / "compute" / "secrets.json"
    while not (status := experiment.status()["compute"]).final:
        continue
    assert status is Status.SUCCEEDED
    assert (Store().get(experiment_id).task("compute").result(), secrets.exists()) == (42, False)
    watch = os.pidfd_open(held)
    assert experiment.cancel() == {"hold": Status.CANCELLED, "compute": Status.SUCCEEDED}
    assert has_ended(watch)
    os.close(watch)


def test_the_detached_have_their_secrets_which_are_gone_after(launcher_home: Path) -> None:
    executor = run.LocalExecutor(env_vars={"HF_TOKEN": "hf_abcdef"}, retries=1)
    experiment = run.run(run.Partial(echo_variable, "HF_TOKEN"), executor, detach=True)
    [result] = experiment.wait()
    assert result.value == "fedcba_fh"
    while has_conductor(experiment):  # it deletes them after the last event
        continue
    files = [path for path in launcher_home.rglob("*") if path.is_file()]
    assert not [path for path in files if "hf_abcdef" in path.read_text()]


def has_conductor(experiment: run.Experiment) -> bool:
    owner = Store().get(experiment.id).tasks[0].events()[-1]["owner"]
    try:
        state = Path(f"/proc/{owner['pid']}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_waiting_for_it_raises_what_went_wrong() -> None:
    experiment = run.run(run.Partial(end_badly, how="raise"), run.LocalExecutor(ntasks_per_node=2), detach=True)
    with pytest.raises(run.ExperimentFailed, match="rank 1: ValueError: rank 1 gave up"):
        experiment.wait()


def test_what_looks_after_it_is_killed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)
    experiment = run.run(run.Partial(hold, fifo=str(fifo)), detach=True)
    with os.fdopen(keep) as pipe:
        rank, child = (int(pid) for pid in pipe.readline().split())
    watch = os.pidfd_open(rank)
    owner = Store().get(experiment.id).tasks[0].events()[-1]["owner"]
    os.kill(owner["pid"], signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    assert has_ended(watch)
    os.close(watch)
    with pytest.raises(run.ExperimentFailed, match="nobody looks after it any more"):
        experiment.wait()


def test_one_that_nobody_takes_over_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ExecutorError, match="nobody took over experiment"):
        run.run(run.Partial(report_rank), run.LocalExecutor(env_vars={"HF_TOKEN": "x"}), detach=True)
    [record] = Store().all()
    assert record.status is Status.FAILED
    assert not record.tasks[0].files.secrets.exists()
    assert detached.LOG in os.listdir(record.folder)


def test_it_leaves_no_zombie_with_a_launcher_that_stays() -> None:
    experiment = run.run(run.Script(inline="true"), name="short", detach=True)
    owner = Store().get(experiment.id).tasks[0].events()[-1]["owner"]["pid"]
    experiment.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{owner}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_ctrl_c_before_it_is_taken_over_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\necho $$ > '{tmp_path}/pid'\nkill -INT {os.getpid()}\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.run(run.Script(inline="true"), run.LocalExecutor(env_vars={"HF_TOKEN": "x"}), detach=True)
    finally:
        signal.signal(signal.SIGINT, before)
    [record] = Store().all()
    assert (record.status, record.tasks[0].files.secrets.exists()) == (Status.CANCELLED, False)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
