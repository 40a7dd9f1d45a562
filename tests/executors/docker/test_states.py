"""What the ends of a task's containers mean, with and without the engine's word for want of memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from executors.base import Plan, Status
from executors.docker.states import End, state_of


def plan(folder: Path, **reports: dict[str, Any]) -> Plan:
    for name, report in reports.items():
        (folder / f"{name}.json").write_text(json.dumps({"oom": False, "asked": None, **report}))
    return Plan(name="t", folder=folder, files={}, processes=(), env={}, secrets={}, nodes=2, ntasks_per_node=1)


def end(node: int, code: int, **more: Any) -> End:
    return End(name=f"t.{node}", node=node, code=code, **more)


def test_a_group_has_succeeded_when_all_have(tmp_path: Path) -> None:
    assert state_of(plan(tmp_path), [end(0, 0), end(1, 0)], away=False).status is Status.SUCCEEDED
    assert state_of(plan(tmp_path), [end(0, 0), end(1, 3)], away=False).status is Status.FAILED


@pytest.mark.parametrize(
    ("container", "away", "words"),
    [
        (end(1, 137, oom=True), False, "killed for want of memory\n  try: memory="),
        (
            end(1, 137),
            False,
            "killed by SIGKILL, from outside (docker kill), for want of memory, or because its engine crashed",
        ),
        (end(1, 137), True, "killed when its engine was stopped or crashed"),
        (end(1, 127, error='exec: "python9": not found'), False, "there is no python9 in the image"),
        (end(1, 139), False, "killed by SIGSEGV"),
        (end(1, 2), False, "exited with status 2"),
    ],
)
def test_a_container_that_left_no_word_is_the_first_to_blame(
    tmp_path: Path, container: End, away: bool, words: str
) -> None:
    made = plan(tmp_path, node_0={"exits": [[0, -15, 5.0]], "asked": "SIGTERM"})
    failure = state_of(made, [end(0, 143), container], away=away).failure
    assert failure is not None and words in failure.cause


def test_the_kernel_s_own_count_tells_want_of_memory_where_the_engine_says_nothing(tmp_path: Path) -> None:
    made = plan(tmp_path, node_0={"exits": [[0, -9, 5.0]], "oom": True}, node_1={"exits": [[1, -15, 6.0]]})
    failure = state_of(made, [end(0, 137), end(1, 143)], away=False).failure
    assert failure is not None
    assert failure.rank == 0 and failure.cause.startswith("killed for want of memory\n")


def test_who_ended_well_because_it_was_asked_to_was_not_done(tmp_path: Path) -> None:
    made = plan(tmp_path, node_0={"exits": [[0, 0, 5.0]], "asked": "SIGTERM"}, node_1={"exits": [[1, 0, 5.0]]})
    failure = state_of(made, [end(0, 0), end(1, 0)], away=True).failure
    assert failure is not None and "asked to end (SIGTERM), its engine was stopped" in failure.cause


def test_who_was_asked_to_end_did_not_fail_by_itself(tmp_path: Path) -> None:
    report = {"exits": [[0, -15, 5.0]], "asked": "SIGTERM"}
    failure = state_of(plan(tmp_path, node_0=report), [end(0, 143)], away=False).failure
    assert failure is not None
    assert "asked to end (SIGTERM), by `docker stop`, or because its engine was stopped" in failure.cause
