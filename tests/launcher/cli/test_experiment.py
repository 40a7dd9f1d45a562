"""`gemma-launch experiment`: looking at experiments that ran, that run elsewhere, and ending them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import COMMAND, WORKSPACE, gemma_launch
from sample_tasks import end_badly, leave, report_rank, write_metrics

import launcher as run
from experiments.store import Store, new_id


def make(title: str) -> None:
    Store().create(new_id(title), title, [{"name": "t", "folder": "t"}])


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("gemma-launch")
    done = subprocess.run([str(command), "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: gemma-launch [OPTIONS] COMMAND")


def test_list_is_empty_at_first(launcher_home: Path) -> None:
    done = gemma_launch("experiment", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"no experiments in {launcher_home / 'experiments'}\n"


def test_list_shows_hostile_titles_on_one_line_each() -> None:
    for title in ("two\nlines\x1b[31m", "x" * 300):
        make(title)
    done = gemma_launch("experiment", "list")
    assert done.stdout.splitlines()[0].split() == ["ID", "STATUS", "CREATED", "TITLE"]
    assert sorted(line.split()[-1] for line in done.stdout.splitlines()[1:]) == [
        "lines\\x1b[31m".join(["two\\n", ""]),
        "x" * 59 + "…",
    ]


def test_list_shows_the_newest_alone_where_asked() -> None:
    for title in ("first", "second"):
        make(title)
    listed = gemma_launch("experiment", "list", "--limit", "1").stdout.splitlines()
    assert [line.split()[-1] for line in listed] == ["TITLE", "second"]


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


def test_status_says_what_a_task_waits_for_and_how_often_it_was_tried() -> None:
    with run.Experiment("chain") as experiment:
        first = experiment.add(run.Partial(leave, 3), executor=run.LocalExecutor(retries=1), name="first")
        experiment.add(run.Partial(leave, 0), executor=run.LocalExecutor(), name="second", dependencies=[first])
        with pytest.raises(run.ExperimentFailed):
            experiment.run(progress=False)
    shown = gemma_launch("experiment", "status", "chain").stdout
    assert "\ntask first: failed (attempt 2)\n" in shown
    assert "\ntask second: skipped\n  after first\n" in shown


def test_logs_of_all_ranks_and_of_one() -> None:
    run.run(run.Partial(report_rank), run.LocalExecutor(ntasks_per_node=2), name="logged", progress=False)
    lines = gemma_launch("experiment", "logs", "logged").stdout.splitlines()
    assert [line.split("|")[0] for line in lines] == [
        f"rank_{rank}.{kind}" for rank in (0, 1) for kind in ("out", "err")
    ]
    done = gemma_launch("experiment", "logs", "logged", "--rank", "1")
    assert "RANK=1" in done.stdout
    assert "RANK=0" not in done.stdout
    done = gemma_launch("experiment", "logs", "logged", "--rank", "7")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: there is no log of rank 7" in done.stderr
    done = gemma_launch("experiment", "logs", "logged", "--task", "report_rnk")
    assert done.stderr.splitlines()[1] == "  try: 'report_rank'"


def test_a_detached_experiment_is_followed_and_ended_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "gemma_workspace.py").write_text(WORKSPACE)
    done = gemma_launch("train", "--factory", "holding", "--detach", "--yes", "--name", "held", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    experiment = done.stdout.strip()
    assert re.fullmatch(r"held-\d{8}-\d{6}-[0-9a-f]+", experiment)
    following = subprocess.Popen(
        [*COMMAND, "experiment", "logs", "held", "--follow"], stdout=subprocess.PIPE, text=True
    )
    assert following.stdout is not None
    assert following.stdout.readline() == "rank_0.out| holding\n"
    with pytest.raises(subprocess.TimeoutExpired):
        following.wait(timeout=0.5)
    assert "status   running" in gemma_launch("experiment", "status", "held").stdout
    began = time.monotonic()
    ended = gemma_launch("experiment", "cancel", experiment)
    assert (ended.returncode, ended.stdout) == (0, "hold: cancelled\n")
    assert following.wait(timeout=10) == 0
    following.stdout.close()
    assert time.monotonic() - began < 20
    assert "cancelled" in gemma_launch("experiment", "list").stdout
    # What has ended stays as it was.
    assert gemma_launch("experiment", "cancel", experiment).stdout == "hold: cancelled\n"


def test_an_unknown_experiment_names_the_nearest(launcher_home: Path) -> None:
    make("gemma-sft")
    done = gemma_launch("experiment", "status", "gema-sft")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: there is no experiment 'gema-sft' in {launcher_home / 'experiments'}\n  try: 'gemma-sft'\n"
    )


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    for number in range(3):
        make(str(number))
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [*COMMAND, "experiment", "list"], stdout=theirs, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(theirs)
    assert "Traceback" not in done.stderr
