"""What is said of a job, for what Slurm says of it."""

from pathlib import Path
from typing import Any

import pytest

from executors.base import Plan, Status
from executors.slurm.queue import View
from executors.slurm.states import describe, state_of


def seen(folder: Path, **known: Any) -> tuple[Status, int, str]:
    plan = Plan(
        name="train",
        folder=folder,
        files={},
        processes=(),
        env={},
        secrets={},
        nodes=1,
        ntasks_per_node=1,
        job="train.1",
    )
    state = state_of(View(job_id=12, **known), plan, never=False)
    return state.status, state.attempt, state.detail


def test_a_job_that_waits_again_waits_and_an_array_between_its_elements_does_not(tmp_path: Path) -> None:
    assert seen(tmp_path, state="PENDING")[:2] == (Status.QUEUED, 1)
    assert seen(tmp_path, state="PENDING", started=True)[:2] == (Status.QUEUED, 1)
    assert seen(tmp_path, state="PENDING", elements={0: "PENDING"})[:2] == (Status.QUEUED, 1)
    between = {0: "COMPLETED", 1: "PENDING"}
    assert seen(tmp_path, state="PENDING", started=True, elements=between)[:2] == (Status.RUNNING, 1)


@pytest.mark.parametrize(("started", "words"), [(False, "is not to start yet"), (True, "is to be started again")])
def test_who_asked_for_a_later_start_is_not_told_of_another(started: bool, words: str, tmp_path: Path) -> None:
    assert describe(View(job_id=12, state="PENDING", reason="BeginTime", started=started), tmp_path) == (
        f"job 12: pending, {words}"
    )


def test_what_was_cancelled_in_the_moment_that_it_failed_is_cancelled(tmp_path: Path) -> None:
    assert seen(tmp_path, state="FAILED", ended=(5, "cancelled"), started=True)[0] is Status.CANCELLED
    assert seen(tmp_path, state="FAILED", ended=(5, "exit"), started=True)[0] is Status.FAILED
