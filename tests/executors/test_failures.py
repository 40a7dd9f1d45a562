"""Which rank is blamed."""

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from executors.failures import Exit, describe_exit, first_failure
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
