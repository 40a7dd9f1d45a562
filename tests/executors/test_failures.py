"""Which rank is blamed."""

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from executors.failures import Exit, describe_exit, first_failure, job_failure
from launcher.worker import JobFiles


def report(files: JobFiles, rank: int, time: float) -> None:
    failure = {
        "rank": rank,
        "time": time,
        "type": "ValueError",
        "message": f"no {rank}\nmore",
        "traceback": f"tb {rank}",
    }
    files.failure(rank).write_text(json.dumps(failure))


def test_nothing_failed(tmp_path: Path) -> None:
    assert first_failure(JobFiles(tmp_path), [Exit(0, 0, 1.0), Exit(1, 0, 2.0)]) is None


def test_the_earliest_report_counts_not_the_lowest_rank(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    report(files, 0, 20.0)
    report(files, 10, 10.0)
    failure = first_failure(files, [Exit(0, 1, 20.1), Exit(10, 1, 20.2), Exit(3, -15, 20.3)])
    assert failure is not None
    assert (failure.rank, failure.cause, failure.traceback) == (10, "ValueError: no 10", "tb 10")


def test_a_rank_that_was_killed_before_others_complained_is_blamed(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    report(files, 0, 20.0)
    files.stderr(1).write_text("\n".join(map(str, range(100))))
    failure = first_failure(files, [Exit(1, -9, 19.0), Exit(0, 1, 20.1)])
    assert failure is not None
    assert (failure.rank, failure.cause) == (1, "killed by SIGKILL (by kill -9, or for want of memory)")
    assert failure.traceback.splitlines() == [str(line) for line in range(80, 100)]


def test_a_crash_shows_the_interpreters_last_words(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    files.stderr(0).write_text("noise\nFatal Python error: Segmentation fault\n\n" + "frame\n" * 40)
    failure = first_failure(files, [Exit(0, -11, 1.0)])
    assert failure is not None
    assert failure.traceback.startswith("Fatal Python error")


def test_a_launch_that_never_reached_a_rank_shows_its_log(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    files.launch_log.write_text("No module named torch")
    failure = first_failure(files, [Exit(None, 1, 1.0)])
    assert failure is not None
    assert (failure.rank, failure.traceback) == (None, "No module named torch")
    failure = first_failure(files, [Exit(2, 127, 1.0)])
    assert failure is not None
    assert (failure.rank, failure.cause, failure.traceback) == (2, "exited with status 127", "No module named torch")


def test_words_for_exits() -> None:
    assert describe_exit(3) == "exited with status 3"
    assert describe_exit(-11) == "killed by SIGSEGV"
    assert describe_exit(-100) == "killed by signal 100"


@pytest.fixture
def limited_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**37, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("limited_memory")
def test_a_log_larger_than_the_memory_is_read_from_its_end(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    for path in (files.stderr(0), files.launch_log):
        path.touch()
        os.truncate(path, 2**40)
        with path.open("a") as log:
            log.write("\nthe last words")
    for exit_ in (Exit(0, 1, 1.0), Exit(None, 1, 1.0)):
        failure = first_failure(files, [exit_])
        assert failure is not None
        assert failure.traceback.splitlines()[-1] == "the last words"


TERMINATED = (
    "srun: Terminating StepId=12.0\n"
    "slurmstepd: error: *** STEP 12.0 ON node1 CANCELLED AT 2026-11-21T19:00:00 ***\n"
    "srun: error: node1: tasks 0-1: Terminated\n"
)


@pytest.mark.parametrize(
    ("said", "rank", "cause"),
    [
        ("srun: error: node2: task 3: Exited with exit code 9\n", 3, "exited with status 9 on node2"),
        (
            "srun: error: node2: task 3: Killed\n",
            3,
            "killed by SIGKILL (by kill -9, or for want of memory) on node2",
        ),
        ("srun: error: node2: task 3: Segmentation fault (core dumped)\n", 3, "killed by SIGSEGV on node2"),
        ("srun: error: node2: tasks 2-3: Out Of Memory\n", 2, "killed for want of memory on node2"),
        ("noise\n", None, "the job exited with status 137"),
    ],
)
def test_what_srun_says_of_a_rank_that_could_say_nothing(
    tmp_path: Path, said: str, rank: int | None, cause: str
) -> None:
    files = JobFiles(tmp_path)
    files.launch_log.write_text(said + TERMINATED if rank is not None else said)
    files.stderr(3).write_text("last words of 3")
    failure = job_failure(files, 137)
    assert (failure.rank, failure.cause) == (rank, cause)
    if rank == 3:
        assert failure.traceback == "last words of 3"


def test_a_rank_that_was_killed_comes_before_those_that_complain_of_it(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    report(files, 0, 10.0)
    files.launch_log.write_text(
        "srun: error: node2: task 3: Killed\nsrun: error: node1: task 0: Exited with exit code 1\n"
    )
    assert job_failure(files, 137).rank == 3
    report(files, 3, 9.0)  # it did say something
    assert job_failure(files, 137).cause == "ValueError: no 3"


def test_what_srun_said_of_earlier_starts_is_over(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    killed = "srun: error: node2: task {}: Killed\n"
    files.launch_log.write_text(f"{killed.format(3)}--- started again (1) on node[1-2]\n{killed.format(2)}")
    assert job_failure(files, 137).rank == 2
    files.launch_log.write_text(f"{killed.format(3)}")
    assert job_failure(files, 137).rank == 3


SUMMARY = """
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
worker.py FAILED
Failures:
[1]:
  time      : 2026-11-21_19:00:00
  host      : node2
  rank      : 3 (local_rank: 1)
  exitcode  : -9 (pid: 78)
  error_file: <N/A>
Root Cause (first observed failure):
[0]:
  time      : 2026-11-21_19:00:00
  host      : node2
  rank      : 2 (local_rank: 0)
  exitcode  : 1 (pid: 77)
"""


def test_srun_says_nothing_of_ranks_where_its_tasks_are_torchruns(tmp_path: Path) -> None:
    files = JobFiles(tmp_path)
    files.launch_log.write_text("srun: error: node2: task 1: Killed\n")
    failure = job_failure(files, 137, torchrun=True)
    assert (failure.rank, failure.cause.partition(" (")[0]) == (None, "torchrun killed by SIGKILL")
    files.launch_log.write_text(SUMMARY + "srun: error: node2: task 1: Exited with exit code 1\n")
    assert (job_failure(files, 1).rank, job_failure(files, 1).cause) == (2, "exited with status 1")
    report(files, 2, 10.0)  # a victim, which torchrun saw in the same moment
    for failure in (job_failure(files, 1), first_failure(files, [Exit(None, 1, 11.0)])):
        assert failure is not None and failure.rank == 3
        assert failure.cause.startswith("killed by SIGKILL")
