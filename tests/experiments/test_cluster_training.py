"""Gemma trains on several nodes of a real Slurm, and goes on where it was when it is started again."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import gemma_runs
import pytest
import torch
from click.testing import CliRunner
from gemma_runs import HeldData, SlowData, UnevenData

import launcher as run
from experiments.store import Store, TaskRecord
from gemma_models.settings import MegatronStrategy
from launcher.cli import cli as command
from launcher.script import Script
from tests.labs.machine import until
from tests.labs.slurm.lab import SlurmLab

SAMPLES = Path(gemma_runs.__file__).parent
STEPS = 10
HELD = 5  # where a run is disturbed
SECONDS = 90  # four processes that import torch at once take their time
Launcher = Literal["torchrun"] | None
LAUNCHERS = pytest.mark.parametrize("launcher", ["torchrun", None], ids=["torchrun", "a process a task"])


def cluster(lab: SlurmLab, each: int = 2, **settings: Any) -> run.SlurmExecutor:
    """Two nodes, with so many tasks on each."""
    return run.SlurmExecutor(
        account="proj-a",
        python=lab.trainer,
        nodes=2,
        ntasks_per_node=each,
        mem="1G",
        env_vars={"OMP_NUM_THREADS": "1"},
        packager=run.PatternPackager(include_pattern=str(SAMPLES / "gemma_runs.py"), relative_path=str(SAMPLES)),
        tunnel=run.SSHTunnel("lab", ssh_config=lab.sshd.ssh_config(), job_dir=lab.job_dir),
        **settings,
    )


def recipe(folder: Path | str, name: str, data: type[UnevenData] = UnevenData, **options: Any) -> run.Partial[Any]:
    made = gemma_runs.recipe(Path(folder), name, steps=STEPS, **options)
    made.data = run.Config(data, global_batch_size=8)
    return made


def spread(
    lab: SlurmLab, name: str, data: type[UnevenData] = UnevenData, each: int = 2, **options: Any
) -> run.Partial[Any]:
    return recipe(f"{lab.job_dir}/runs", name, data, devices=each, num_nodes=2, **options)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process, which nobody disturbs."""
    root = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_LAUNCHER_HOME", str(root / "home"))
        run.run(recipe(root, "run"), direct=True)
    found = [line["loss"] for line in gemma_runs.metrics(root / "run")]
    assert len(set(found)) == STEPS
    return found


def steps_and_losses(task: TaskRecord) -> tuple[list[int], list[float]]:
    lines = [line for line in task.metrics() if "loss" in line]
    return [line["step"] for line in lines], [line["loss"] for line in lines]


def disturbed(experiment: run.Experiment, lab: SlurmLab, disturb: Callable[[str], object]) -> Any:
    """What the experiment's task `train` returns, when something happens to its job (whose id is given) at HELD."""
    files = Path(lab.job_dir, "experiments", experiment.id, "train")

    def when_held() -> None:
        until(lambda: f'"step": {HELD - 1},' in _read(files / "metrics.jsonl"), SECONDS, f"step {HELD - 1}")
        disturb(_read(files / "job_id").strip())

    with ThreadPoolExecutor(1) as pool:
        happened = pool.submit(when_held)
        [result] = experiment.run(progress=False)
        happened.result()
    return result.value


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def check_second_attempt(task: TaskRecord) -> None:
    events = task.events()
    told = [event["event"] for event in events if event["event"] not in ("queued", "submitted", "waiting", "running")]
    assert told == ["started", "retrying", "started", "succeeded"], events
    assert task.attempts == 2
    said = CliRunner().invoke(command, ["experiment", "status", task.folder.parent.name], catch_exceptions=False)
    assert f"task {task.name}: succeeded (attempt 2)" in said.output


@LAUNCHERS
def test_four_ranks_on_two_nodes_train_as_one_process_does(
    slurm_lab: SlurmLab, launcher: Launcher, alone: list[float]
) -> None:
    sharded = MegatronStrategy(tensor_model_parallel_size=2)
    runs = [spread(slurm_lab, f"{launcher}-dp4"), spread(slurm_lab, f"{launcher}-tp2-dp2", strategy=sharded)]
    with run.Experiment("four") as experiment:
        experiment.add(run.Partial(gemma_runs.together, tasks=runs), executor=cluster(slurm_lab, launcher=launcher))
        [result] = experiment.run(progress=False)
    assert result.value["sum"] == 0 + 1 + 2 + 3
    first, second, third, fourth = result.value["places"]
    assert first.endswith(":0") and second == first[:-1] + "1"
    assert third.endswith(":0") and fourth == third[:-1] + "1" and third != first
    [task] = Store().find(experiment.id).tasks
    steps, losses = steps_and_losses(task)
    assert steps == 2 * list(range(1, STEPS + 1))
    assert losses == pytest.approx(2 * alone, abs=1e-4)


@LAUNCHERS
def test_a_job_whose_time_is_nearly_over_goes_on_at_the_exact_step(
    slurm_lab: SlurmLab, launcher: Launcher, alone: list[float]
) -> None:
    task = spread(slurm_lab, f"{launcher}-warned", HeldData, each=1)
    task.data.held = HELD
    experiment = run.Experiment("warned")
    experiment.add(task, executor=cluster(slurm_lab, each=1, launcher=launcher, retries=1), name="train")
    # As Slurm does it before the time limit.
    value = disturbed(experiment, slurm_lab, lambda job: slurm_lab.command("scancel", "--batch", "--signal=USR1", job))
    assert value["step"] == STEPS
    [record] = Store().find(experiment.id).tasks
    steps, losses = steps_and_losses(record)
    assert steps == list(range(1, STEPS + 1))
    assert losses == pytest.approx(alone, abs=1e-4)
    check_second_attempt(record)


def test_a_node_fails(slurm_lab_alone: SlurmLab, alone: list[float]) -> None:
    """Who may be started again goes on from the last checkpoint; who may not has failed of it."""
    lab = slurm_lab_alone
    hopeless = run.Experiment("hopeless")
    hopeless.add(Script(inline="sleep 1000"), executor=cluster(lab), name="sleeper")
    hopeless.run(detach=True)
    task = spread(lab, "failed", HeldData, each=1)
    task.data.held = HELD
    task.log.ckpt.every_n_train_steps = 3
    experiment = run.Experiment("goes on")
    experiment.add(task, executor=cluster(lab, each=1, retries=1), name="train")
    shared: list[str] = []

    def fail(job: str) -> None:
        [sleeper] = Store().find(hopeless.id).tasks
        other = Path(lab.job_dir, "experiments", hopeless.id, sleeper.name, "job_id").read_text().strip()
        first, second = (set(hosts(lab, number)) for number in (job, other))
        shared.extend(sorted(first & second))
        node = shared[-1]
        lab.off(int(node.removeprefix("node")))
        lab.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    assert disturbed(experiment, lab, fail)["step"] == STEPS
    [record] = Store().find(experiment.id).tasks
    steps, losses = steps_and_losses(record)
    assert steps == [*range(1, HELD), *range(4, STEPS + 1)]  # the fourth was not saved
    assert losses == pytest.approx([*alone[: HELD - 1], *alone[3:]], abs=1e-4)
    check_second_attempt(record)
    with pytest.raises(run.ExperimentFailed, match=f": {shared[-1]} failed .NODE_FAIL.\n") as error:
        run.Experiment.from_id(hopeless.id).wait()
    assert "retries=N" in str(error.value)


def hosts(lab: SlurmLab, job: str) -> list[str]:
    nodes = lab.command("squeue", "-h", "-j", job, "-o", "%N").strip()
    return lab.command("scontrol", "show", "hostnames", nodes).split()


def test_a_rank_that_waits_for_its_data_for_ever_is_named(slurm_lab: SlurmLab) -> None:
    task = spread(slurm_lab, "hangs", SlowData, each=1)
    task.data.steps, task.data.rank = {3: 1000.0}, 1
    with run.Experiment("hangs") as experiment:
        experiment.add(task, executor=cluster(slurm_lab, each=1, step_timeout=0.1), name="train")
        with pytest.raises(run.ExperimentFailed) as error:
            experiment.run(progress=False)
    assert error.value.rank == 1
    cause = str(error.value)
    assert "no step in 6 seconds: rank 1 at" in cause
    mine, theirs = cause.partition("rank 1 at ")[2].splitlines()[0].split(", the others at ")
    assert "gemma_runs.py:" in mine and mine.endswith(" train_batches")
    assert theirs.startswith("training/loop.py:") and not theirs.endswith(" train_batches")
    assert "in fit" in error.value.traceback
