"""How a task ends, and what is known of it then: the same on every executor.

All tasks run in one experiment (see behaviours.runs); what happens while one is under way is in
test_behaviours_under_way.py.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import anywhere
import pytest

import launcher as run
from executors.base import Status
from tests.executors.behaviours import EXCEPTIONS, PLACES, Ended, runs

HOSTILE = [
    "a'b\"c",
    "two\nlines",
    "; touch x",
    "$(touch x) `id` ${HOME}",
    "--help",
    "ünïcödé 実験",
    " ",
    "",
    "*",
    "\\n%j",
]
LINES, LENGTH = 200_000, 100
LONG = 3_000_000


def called(function: Any, *args: Any, **kwargs: Any) -> run.Partial[Any]:
    return run.Partial(function, *args, **kwargs)


def test_exceptions_are_of_executors_and_behaviours_that_there_are(request: pytest.FixtureRequest) -> None:
    assert {place for place, _ in EXCEPTIONS} <= PLACES.keys()
    assert {name for _, name in EXCEPTIONS} <= {*dir(sys.modules[__name__])}


# What a task is given, and what it gives back.


@runs(called(anywhere.give_back, {"text": "ü", "list": [1, 2.5, None, True]}))
def test_what_a_task_returns_comes_back(ended: Ended) -> None:
    assert ended.value == {"text": "ü", "list": [1, 2.5, None, True]}
    events = [event["event"] for event in ended.record.events()]
    assert (events[0], events[-2:]) == ("queued", ["started", "succeeded"])


@runs(called(anywhere.a_set))
def test_what_json_cannot_hold_is_not_kept_and_said_so(ended: Ended) -> None:
    assert ended.value is None
    assert "the return value (set) is not kept" in ended.stderr()


@runs(called(anywhere.report), ntasks_per_node=2)
def test_each_rank_knows_its_place_and_its_output_is_apart(ended: Ended) -> None:
    for rank in range(2):
        found = json.loads(ended.stdout(rank))
        assert (found["RANK"], found["LOCAL_RANK"], found["NODE_RANK"]) == (str(rank), str(rank), "0")
        assert (found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("2", "2")
        assert found["MASTER_ADDR"] and found["MASTER_PORT"].isdecimal()
        assert ended.stderr(rank) == f"error of {rank}\n"
    assert ended.value["RANK"] == "0"


@runs(called(anywhere.report), nodes=2, ntasks_per_node=2)
def test_two_nodes(ended: Ended) -> None:
    assert ended.value["WORLD_SIZE"] == "4"
    found = [json.loads(ended.stdout(rank)) for rank in range(4)]
    assert [(rank["NODE_RANK"], rank["LOCAL_RANK"]) for rank in found] == [
        ("0", "0"),
        ("0", "1"),
        ("1", "0"),
        ("1", "1"),
    ]
    assert len({(rank["MASTER_ADDR"], rank["MASTER_PORT"]) for rank in found}) == 1


@runs(called(anywhere.meet), ntasks_per_node=3)
def test_ranks_meet_at_the_port_of_the_first(ended: Ended) -> None:
    assert ended.value == [1, 2]


@runs(
    called(anywhere.variables, *(f"HOSTILE_{number}" for number in range(len(HOSTILE)))),
    env_vars={f"HOSTILE_{number}": text for number, text in enumerate(HOSTILE)},
)
def test_any_value_of_a_variable_arrives_as_it_is(ended: Ended) -> None:
    assert ended.value == HOSTILE


@runs(called(anywhere.give_back, HOSTILE))
def test_any_argument_arrives_as_it_is(ended: Ended) -> None:
    assert ended.value == HOSTILE


@runs(run.Script(path="anywhere.py", args=HOSTILE))
def test_a_script_by_path_gets_its_arguments_as_they_are(ended: Ended) -> None:
    assert ended.value is None
    assert json.loads(ended.stdout())["arguments"] == HOSTILE


@runs(run.Script(path="anywhere", m=True, args=["x"]), ntasks_per_node=2)
def test_a_script_that_is_a_module_runs_once_a_rank(ended: Ended) -> None:
    assert [json.loads(ended.stdout(rank))["arguments"] for rank in range(2)] == [["x"], ["x"]]


@runs(run.Script(inline='echo "$0 $1 $RANK"\necho to stderr >&2\n', args=["a b"]))
def test_a_script_inline(ended: Ended) -> None:
    assert ended.stdout().split("/")[-1] == "script a b 0\n"
    assert ended.stderr() == "to stderr\n"


@runs(run.Script(inline="import sys; print(sys.flags.optimize, sys.argv[1:])", args=["a"], entrypoint="python -O"))
def test_a_script_is_run_by_its_entrypoint(ended: Ended) -> None:
    assert ended.stdout() == "1 ['a']\n"


@runs(run.Script(inline='echo "$OURS $THEIRS"', env={"OURS": "the script's"}), env_vars={"OURS": "no", "THEIRS": "too"})
def test_variables_of_a_script_win(ended: Ended) -> None:
    assert ended.stdout() == "the script's too\n"


@runs(run.Script(path="anywhere.py"))
def test_code_runs_from_its_copy_in_the_folder_that_matches(ended: Ended) -> None:
    found = json.loads(ended.stdout())
    assert found["folder"].endswith("/code") and found["file"] == f"{found['folder']}/anywhere.py"
    assert found["folder"] != os.path.dirname(anywhere.__file__)


# How it fails.


@runs(run.Script(inline="echo why >&2; exit 7"))
def test_a_script_fails_with_its_exit_status(ended: Ended) -> None:
    assert ended.status is Status.FAILED
    assert ended.failure.rank == 0 and ended.failure.cause.startswith("exited with status 7")
    assert ended.failure.traceback == "why"


@runs(called(anywhere.fail_on, 1), ntasks_per_node=3)
def test_the_first_rank_that_failed_is_named_with_its_traceback_and_not_its_victims(ended: Ended) -> None:
    assert (ended.failure.rank, ended.failure.cause) == (1, "ValueError: rank 1 is broken")
    assert "anywhere.py" in ended.failure.traceback and 'raise ValueError(f"rank' in ended.failure.traceback
    assert "last words" in ended.stderr(1) and "nobody ended this rank" not in ended.stderr(0)


@runs(called(anywhere.import_nothing))
def test_a_module_that_is_not_there(ended: Ended) -> None:
    assert ended.failure.cause == "ModuleNotFoundError: No module named 'no_such_module'"


@runs(called(anywhere.leave, 3))
def test_sys_exit_with_a_number(ended: Ended) -> None:
    assert (ended.failure.rank, ended.failure.cause) == (0, "SystemExit: 3")


@runs(called(anywhere.leave, "no data"))
def test_sys_exit_with_a_text(ended: Ended) -> None:
    assert ended.failure.cause == "SystemExit: no data"


@runs(called(anywhere.leave, None))
def test_sys_exit_without_a_status_is_success(ended: Ended) -> None:
    assert ended.value is None


@runs(called(anywhere.vanish, 9))
def test_a_rank_that_ends_without_a_word(ended: Ended) -> None:
    assert ended.failure.rank == 0 and ended.failure.cause.startswith("exited with status 9")


@runs(called(anywhere.die, 9), ntasks_per_node=2)
def test_a_rank_that_is_killed_is_told_apart(ended: Ended) -> None:
    assert ended.failure.cause.startswith("killed by SIGKILL")
    assert ended.failure.rank in (0, 1)


@runs(called(anywhere.die, 11))
def test_a_crash_leaves_the_interpreters_last_words(ended: Ended) -> None:
    assert ended.failure.cause.startswith("killed by SIGSEGV")
    assert "in die" in ended.failure.traceback


@runs(called(anywhere.fill_memory), lambda where: where.memory or {})
def test_want_of_memory_is_told_from_a_kill(ended: Ended) -> None:
    assert ended.failure.rank == 0 and ended.failure.cause.startswith("killed for want of memory")


@runs(called(anywhere.hang, 1), ntasks_per_node=3, step_timeout=0.15)
def test_the_rank_that_hangs_is_named(ended: Ended) -> None:
    assert ended.failure.rank == 1
    assert ended.failure.cause.startswith("no step in 9 seconds: rank 1 at ")


# It is tried again.


@runs(called(anywhere.fail_until, 2), retries=3)
def test_a_task_that_fails_is_tried_again_and_knows_how_often(ended: Ended) -> None:
    assert (ended.value, ended.record.attempts) == (1, 2)
    assert "start 1\n" in ended.stdout()


@runs(called(anywhere.fail_until, 9), retries=1)
def test_retries_end(ended: Ended) -> None:
    assert ended.failure.cause.startswith("RuntimeError: not yet: 1")
    assert ended.record.attempts == 2


@runs(called(anywhere.stop_and_go_on), retries=1)
def test_a_task_that_is_asked_to_stop_goes_on_later(ended: Ended) -> None:
    assert (ended.value, ended.record.attempts) == (1, 2)


# What it writes.


@runs(called(anywhere.write_much, LINES, LENGTH))
def test_much_output_arrives_whole(ended: Ended) -> None:
    assert ended.value is None
    text = ended.stdout()
    assert len(text) == LINES * LENGTH
    assert text.splitlines() == [f"{number:0{LENGTH - 1}}" for number in range(LINES)]


@runs(called(anywhere.write_much, 1, LONG))
def test_a_very_long_line_arrives_whole(ended: Ended) -> None:
    assert ended.stdout() == "0" * (LONG - 1) + "\n"


@runs(called(anywhere.write_bytes))
def test_what_is_no_text_arrives_as_it_is(ended: Ended) -> None:
    assert ended.log(0, "out") == bytes(range(256))
