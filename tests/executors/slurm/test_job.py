"""job.sh in a real Slurm: what reaches the ranks, how it ends, and when it is started again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_jobs import SlurmJob

from launcher.script import Script
from tests.labs.machine import until
from tests.labs.slurm.lab import SlurmLab

SHOW = """\
import json, os, sys
print(json.dumps([dict(os.environ), sys.argv[1:]]))
"""
ONE_OF_ALL = """\
if [ "$SLURM_JOB_ID" = "$SLURM_ARRAY_JOB_ID" ]; then
    echo "$GEMMA_LAUNCHER_RESTART all"
    exit "$((1 - GEMMA_LAUNCHER_RESTART))"
fi
echo "$GEMMA_LAUNCHER_RESTART one"
until [ -e "$GEMMA_LAUNCHER_JOB_DIR/end" ]; do sleep 0.1; done
"""
HOSTILE = "a 'b' \"c\"\n$(touch /tmp/x) `id`; #é \\ -- "


@pytest.fixture(scope="module")
def submit(slurm_lab_of_module: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SlurmJob]:
    count = iter(range(1000))

    def submit(task: Any, **settings: Any) -> SlurmJob:
        return SlurmJob(slurm_lab_of_module, tmp_path_factory.mktemp("here") / f"job_{next(count)}", task, **settings)

    return submit


@pytest.fixture(scope="module", autouse=True)
def jobs(
    slurm_lab_of_module: SlurmLab, lab_folder: Path, submit: Callable[..., SlurmJob]
) -> Iterator[dict[str, SlurmJob]]:
    """All at once, because Slurm takes its time to start a job again."""
    shown = Script(inline=SHOW, entrypoint="python", args=[HOSTILE, "--x", ""])
    wait = 'echo "$GEMMA_LAUNCHER_RESTART" >>up; sleep 1000'
    in_folder = 'cd "$GEMMA_LAUNCHER_JOB_DIR"; '
    save = (
        in_folder
        + '[ "$GEMMA_LAUNCHER_RESTART" = 0 ] || exit 0; echo >up; '
        + ("until [ -e stop ]; do sleep 0.1; done; echo 7 >saved; exit 75")
    )
    image = slurm_lab_of_module.image(f"job_{os.getpid()}")
    data = lab_folder / "it's data; $(id)"
    data.mkdir()
    (data / "found").touch()
    made = {
        "environment": submit(
            shown,
            nodes=2,
            ntasks_per_node=2,
            cpus_per_task=2,
            gpus_per_task=1,
            env_vars={
                "HOSTILE": HOSTILE,
                "status": "mine",
                "restart": "7",
                "address": "b",
                "IFS": "a",
                "HF_TOKEN": "hf_abc",
            },
            job_dir=f"{slurm_lab_of_module.job_dir}/a 'b' \"c\" $(id) ; é #-j",
            setup_lines=["export FROM_SETUP='it is set' # don't"],
        ),
        "setup": submit(Script(inline="touch it_ran"), setup_lines=["module load no-such-thing", "true"]),
        "exit": submit(Script(inline='[ "$RANK" = 1 ] || exec sleep 100; exit 7'), ntasks_per_node=2),
        "saved": submit(Script(inline=save), retries=2),
        "time": submit(Script(inline=in_folder + wait), retries=1, time="5"),
        "cancel": submit(Script(inline=in_folder + wait), retries=2),
        "warned": submit(Script(inline=in_folder + wait), retries=2),
        "fails": submit(Script(inline="exit 5"), retries=1),
        "deaf": submit(Script(inline=in_folder + "until [ -e cancel ]; do sleep 0.1; done; exit 5"), retries=2),
        "crashes": submit(Script(inline="exit 6"), retries=9),
        "container": submit(
            Script(inline="pwd; ls / /here; echo $HOSTILE", entrypoint="bash"),
            container_image=str(image),
            container_mounts=["/usr:/usr:ro", "/etc:/etc:ro", f"{data}:/here", str(Path.cwd())],
            container_workdir="/tmp",  # noqa: S108
            env_vars={"HOSTILE": "a  'b' $(id)"},
        ),
        "array": submit(Script(inline='echo "$SLURM_ARRAY_TASK_ID"; exit "$SLURM_ARRAY_TASK_ID"'), array="0-1"),
        "array again": submit(Script(inline=ONE_OF_ALL), array="0-1", retries=1),
    }
    yield made
    for job in made.values():
        job.cancel()


def test_what_the_ranks_get(jobs: dict[str, SlurmJob]) -> None:
    job = jobs["environment"]
    assert job.end() == ["0", "exit"]
    ranks = [json.loads(job.read(f"rank_{rank}.out")) for rank in range(4)]
    for rank, (env, argv) in enumerate(ranks):
        assert argv == [HOSTILE, "--x", ""]
        assert env["HOSTILE"] == HOSTILE
        assert (env["status"], env["IFS"], env["FROM_SETUP"]) == ("mine", "a", "it is set")
        assert (env["restart"], env["address"]) == ("7", "b")
        assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"]) == (str(rank), "4", str(rank % 2))
        assert env["LOCAL_WORLD_SIZE"] == "2"
        assert env["MASTER_ADDR"] == ranks[0][0]["MASTER_ADDR"]
        assert env["MASTER_ADDR"].startswith("198.18.77.1")
        assert 20000 <= int(env["MASTER_PORT"]) < 32000
        assert env["GEMMA_LAUNCHER_RESTART"] == "0"
        assert env["SLURM_CPUS_PER_TASK"] == "2"
        assert env["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert "PATH" in env
    assert not job.read("environment.sh")
    assert not Path("/tmp/x").exists()  # noqa: S108


def test_the_exit_status_is_that_of_the_rank_that_failed(jobs: dict[str, SlurmJob]) -> None:
    """srun's own is 143, of the ranks that it ended for it."""
    job = jobs["exit"]
    assert job.end() == ["7", "exit"]
    assert job.read("started").split()[:2] == [str(job.id), "0"]
    until(lambda: "FAILED|7:0" in job.lab.command("sacct", "-nXPj", str(job.id), "-o", "state,exitcode"), 20, "sacct")


def test_a_setup_line_that_fails_ends_it(jobs: dict[str, SlurmJob]) -> None:
    job = jobs["setup"]
    assert job.wait_for("ended", 2).splitlines() == ["127", "exit"]
    assert "module: command not found" in job.read("launch.log")
    assert not (job.folder / "it_ran").exists()


def test_who_saved_is_started_again(jobs: dict[str, SlurmJob]) -> None:
    job = jobs["saved"]
    job.wait_for("up")
    job.lab.command("scancel", "--batch", "--signal=USR1", str(job.id))  # as Slurm does before the time limit
    assert job.end() == ["0", "exit"]
    assert job.reasons == ["time-limit"]
    assert len(job.read("started").splitlines()) == 2
    assert not job.read("saved")


def test_a_time_limit_without_a_warning_heeded(jobs: dict[str, SlurmJob]) -> None:
    job = jobs["time"]
    job.wait_for("up")
    job.lab.command("scontrol", "update", f"jobid={job.id}", "EndTime=now")
    job.wait_for("up", 2)
    assert job.reasons == ["time-limit"]
    job.lab.command("scancel", str(job.id))
    assert job.end() == ["143", "cancelled"]


@pytest.mark.parametrize("name", ["cancel", "warned"])
def test_who_is_cancelled_stays_so(jobs: dict[str, SlurmJob], name: str) -> None:
    job = jobs[name]
    job.wait_for("up")
    if name == "warned":
        job.lab.command("scancel", "--batch", "--signal=USR1", str(job.id))
        until((job.folder / "stop").exists, 10, "the flag")
    job.lab.command("scancel", str(job.id))
    assert job.end() == ["143", "cancelled"]
    assert job.reasons == []
    until(lambda: "CANCELLED" in job.lab.command("scontrol", "show", "job", str(job.id)), 20, "its end")


def test_a_failure_is_tried_again_up_to_retries(jobs: dict[str, SlurmJob]) -> None:
    job = jobs["fails"]
    assert job.end() == ["5", "out-of-retries failure"]
    assert [line.split()[1] for line in job.read("started").splitlines()] == ["0", "1"]


def test_one_that_ends_when_it_is_cancelled_is_not_tried_again(jobs: dict[str, SlurmJob]) -> None:
    job = jobs["deaf"]
    job.wait_for("started")
    job.tunnel.put(b"", str(job.folder / "cancel"))  # scancel itself may fall between this start and the next
    assert job.end() == ["5", "cancelled"]
    assert len(job.read("started").splitlines()) == 1


def test_a_job_that_makes_no_step_is_given_up(jobs: dict[str, SlurmJob]) -> None:
    job = jobs["crashes"]
    assert job.end() == ["6", "crash-loop failure"]
    assert job.reasons == ["failure"] * 3


def test_elements_of_an_array_have_folders_of_their_own(jobs: dict[str, SlurmJob]) -> None:
    job = jobs["array"]
    for element in ("0", "1"):
        assert job.wait_for(f"array_{element}/ended", 2).splitlines() == [element, "exit"]
        assert job.read(f"array_{element}/rank_0.out") == f"{element}\n"
    assert not job.read("ended")


def test_the_element_that_has_the_id_of_all_is_alone_in_its_end_and_its_next_start(jobs: dict[str, SlurmJob]) -> None:
    job = jobs["array again"]
    assert job.wait_for("array_1/ended", 2).splitlines() == ["0", "exit"]
    assert job.read("array_1/rank_0.out").splitlines() == ["0 all", "1 all"]
    assert not job.read("array_0/ended"), "it waited for the others"
    Path(job.folder, "array_0", "end").touch()
    assert job.wait_for("array_0/ended", 2).splitlines() == ["0", "exit"]
    assert job.read("array_0/rank_0.out").splitlines() == ["0 one"]


def test_a_task_in_a_container(jobs: dict[str, SlurmJob]) -> None:
    job = jobs["container"]
    assert job.end() == ["0", "exit"]
    said = job.read("rank_0.out")
    assert said.startswith("/tmp\n")  # noqa: S108  # container_workdir
    assert "in_the_image\n" in said
    assert "/here:\nfound\n" in said
    assert said.endswith("a 'b' $(id)\n")
