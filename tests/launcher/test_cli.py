"""`gemma-launch`, as a person starts it. Help and error texts are written out here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sample_tasks import end_badly, leave, report_rank, write_metrics

import launcher as run
from experiments.store import Store, new_id

COMMAND = [sys.executable, "-c", "from launcher.cli import main; main()"]


def gemma_launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("gemma-launch")
    done = subprocess.run([str(command), "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: gemma-launch [OPTIONS] COMMAND")


def test_help() -> None:
    assert gemma_launch("experiment", "--help").stdout == (
        "Usage: gemma-launch experiment [OPTIONS] COMMAND [ARGS]...\n\n"
        "  Look at experiments. EXPERIMENT is an id or a title, or how one begins (the\n"
        "  newest that fits).\n\n"
        "Options:\n"
        "  -h, --help  Show this message and exit.\n\n"
        "Commands:\n"
        "  list    Every experiment, newest first.\n"
        "  logs    What the ranks wrote to stdout and stderr, each file under its...\n"
        "  status  How one experiment stands, task by task.\n"
    )


def test_wrong_usage_exits_2() -> None:
    done = gemma_launch("experiment", "sttus")
    assert done.returncode == 2
    assert "No such command 'sttus'." in done.stderr
    assert gemma_launch("experiment", "status").returncode == 2
    assert gemma_launch("experiment", "logs", "x", "--rank", "-1").returncode == 2


def test_list_is_empty_at_first(launcher_home: Path) -> None:
    done = gemma_launch("experiment", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"no experiments in {launcher_home / 'experiments'}\n"


def test_list_shows_hostile_titles_on_one_line_each() -> None:
    for title in ("two\nlines\x1b[31m", "x" * 300):
        Store().create(new_id(title), title, [("t", "t")])
    done = gemma_launch("experiment", "list")
    assert done.stdout.splitlines()[0].split() == ["ID", "STATUS", "CREATED", "TITLE"]
    assert sorted(line.split()[-1] for line in done.stdout.splitlines()[1:]) == [
        "lines\\x1b[31m".join(["two\\n", ""]),
        "x" * 59 + "…",
    ]


def test_status_of_a_success_and_of_a_failure() -> None:
    run.run(run.Partial(write_metrics, steps=3), name="went well", progress=False)
    done = gemma_launch("experiment", "status", "went")
    record = Store().find("went well")
    lines = done.stdout.splitlines()
    assert lines[:3] == ["title    went well", f"id       {record.id}", "status   succeeded"]
    assert lines[-2:] == ["task write_metrics: succeeded", "  step 3/3  loss 0.000  lr 1.0e-04  val 1.500"]
    with pytest.raises(run.ExperimentFailed):
        run.run(run.Partial(end_badly, how="raise"), run.LocalExecutor(ntasks_per_node=2), name="bad", progress=False)
    lines = gemma_launch("experiment", "status", "bad").stdout.splitlines()
    assert lines[-7:-3] == [
        "",
        "task end_badly: failed",
        "  rank 1: ValueError: rank 1 gave up",
        "    Traceback (most recent call last):",
    ]
    assert lines[-1] == "    ValueError: rank 1 gave up"


def test_logs_of_all_ranks_and_of_one() -> None:
    run.run(run.Partial(report_rank), run.LocalExecutor(ntasks_per_node=2), name="logged", progress=False)
    done = gemma_launch("experiment", "logs", "logged")
    headers = [line for line in done.stdout.splitlines() if line.startswith("==>")]
    assert headers == [f"==> rank_{rank}.{kind} <==" for rank in (0, 1) for kind in ("out", "err")]
    done = gemma_launch("experiment", "logs", "logged", "--rank", "1")
    assert "RANK=1" in done.stdout
    assert "RANK=0" not in done.stdout
    done = gemma_launch("experiment", "logs", "logged", "--rank", "7")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: there is no log of rank 7" in done.stderr
    done = gemma_launch("experiment", "logs", "logged", "--task", "report_rnk")
    assert done.stderr.splitlines()[1] == "  try: 'report_rank'"


def test_an_unknown_experiment_names_the_nearest_without_a_traceback(launcher_home: Path) -> None:
    with pytest.raises(run.ExperimentFailed):
        run.run(run.Partial(leave, 3), name="gemma-sft", progress=False)
    done = gemma_launch("experiment", "status", "gema-sft")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: there is no experiment 'gema-sft' in {launcher_home / 'experiments'}\n  try: 'gemma-sft'\n"
    )


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    for number in range(3):
        Store().create(new_id(str(number)), str(number), [("t", "t")])
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [*COMMAND, "experiment", "list"], stdout=theirs, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(theirs)
    assert "Traceback" not in done.stderr
