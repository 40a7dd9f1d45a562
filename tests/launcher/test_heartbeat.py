"""Ranks that hang, in real processes: they end, and it is said which of them kept the others waiting, and where."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import hanging
import pytest
from local_jobs import run_job, still_running

from executors.local import LocalExecutor
from launcher.config import Partial
from launcher.worker import JobFiles

SECONDS = 3.0
FOUR = LocalExecutor(ntasks_per_node=4, gpus_per_node=0, step_timeout=SECONDS / 60, grace=1.0)


def line_of(text: str) -> int:
    """The first line of hanging.py that has it."""
    lines = inspect.getsource(hanging).splitlines()
    return 1 + next(at for at, line in enumerate(lines) if text in line)


def test_the_rank_that_keeps_the_others_waiting_is_named(tmp_path: Path) -> None:
    job = tmp_path / "e-1" / "train"
    state = run_job(job, Partial(hanging.together, stuck=2, how="sleep"), FOUR)
    assert state.failure is not None
    assert state.failure.rank == 2
    mine = f"samples/hanging.py:{line_of('torch.tensor(load(')} together > samples/hanging.py:{line_of('(100)')} load"
    theirs = f"samples/hanging.py:{line_of('all_reduce')} together > "
    assert state.failure.cause.startswith(f"no step in 3 seconds: rank 2 at {mine}, the others at {theirs}")
    assert state.failure.cause.endswith(" all_reduce")
    assert state.failure.traceback.startswith("rank 2:\nTimeout (0:00:03)!\n")
    assert "\nrank 0:\n" in state.failure.traceback and "\nrank 1:\n" not in state.failure.traceback
    assert not still_running(job)
    assert "this rank ends" in JobFiles(job).stderr(0).read_text()
    # What torch has noted of the last collectives: the others are in one that this rank has not come to.
    noted = [len(json.loads(JobFiles(job).flight_record(rank).read_text())["entries"]) for rank in range(4)]
    assert noted == [noted[0], noted[0], noted[0] - 1, noted[0]]


@pytest.mark.parametrize("stuck", [0, 1])
def test_of_two_the_one_that_has_not_begun_a_collective_is_named(tmp_path: Path, stuck: int) -> None:
    state = run_job(tmp_path / "e-1" / "train", Partial(hanging.unseen, stuck=stuck), FOUR.clone(ntasks_per_node=2))
    assert state.failure is not None and state.failure.rank == stuck
    assert f"rank {stuck} at samples/hanging.py:" in state.failure.cause


def test_a_rank_that_cannot_even_write_is_named(tmp_path: Path) -> None:
    job = tmp_path / "e-1" / "train"
    state = run_job(job, Partial(hanging.together, stuck=1, how="stop"), FOUR)
    assert state.failure is not None and state.failure.rank == 1
    assert state.failure.cause.startswith(
        "no step in 3 seconds: rank 1 left no stacks (its process or node stands still, or it went on), the others at "
        f"samples/hanging.py:{line_of('all_reduce')} together"
    )
    assert not still_running(job)


@pytest.mark.parametrize("how", ["sleep", "hold the GIL"])
def test_a_rank_that_is_alone_ends_whatever_it_holds(tmp_path: Path, how: str) -> None:
    job = tmp_path / "e-1" / "train"
    state = run_job(job, Partial(hanging.alone, how=how), FOUR.clone(ntasks_per_node=1, step_timeout=0.02))
    assert state.failure is not None and state.failure.rank == 0
    line = line_of("time.sleep(100)" if how == "sleep" else "PyDLL(")
    assert state.failure.cause == f"no step in 1.2 seconds: it stands at samples/hanging.py:{line} load"


def test_what_takes_long_and_is_no_step_is_not_ended(tmp_path: Path) -> None:
    job = tmp_path / "e-1" / "train"
    state = run_job(job, Partial(hanging.takes_its_time, timeout=1.2), FOUR.clone(ntasks_per_node=1, step_timeout=0.02))
    assert state.failure is None
    assert json.loads(JobFiles(job).result.read_text()) == "done"
    assert JobFiles(job).stacks(0).read_bytes() == b""


def test_without_a_limit_nothing_is_watched(tmp_path: Path) -> None:
    job = tmp_path / "e-1" / "train"
    state = run_job(job, Partial(hanging.alone, how=""), FOUR.clone(ntasks_per_node=1, step_timeout=0))
    assert state.failure is None
    assert not JobFiles(job).stacks(0).exists()
