"""`gemma-launch experiment list | status | logs`."""

from __future__ import annotations

import shutil
import sys
import time

import click

from executors.base import Failure
from experiments.logs import printable, rank_logs
from experiments.progress import describe
from experiments.store import Store, TaskRecord


@click.group()
def experiment() -> None:
    """Look at experiments. EXPERIMENT is an id or a title, or how one begins (the newest that fits)."""


@experiment.command("list")
def list_() -> None:
    """Every experiment, newest first."""
    records = list(Store().all())
    if not records:
        click.echo(f"no experiments in {Store().folder}", err=True)
        return
    id_width = max(len(record.id) for record in records)
    click.echo(f"{'ID':{id_width}}  {'STATUS':9}  {'CREATED':19}  TITLE")
    for record in records:
        title = _clip(printable(record.title), 60)
        click.echo(f"{record.id:{id_width}}  {record.status:9}  {_when(record.created)}  {title}")


@experiment.command()
@click.argument("experiment")
def status(experiment: str) -> None:
    """How one experiment stands, task by task."""
    record = Store().find(experiment)
    click.echo(f"title    {printable(record.title)}")
    click.echo(f"id       {record.id}")
    click.echo(f"status   {record.status}")
    click.echo(f"created  {_when(record.created)}")
    click.echo(f"folder   {record.folder}")
    for task in record.tasks:
        click.echo(f"\ntask {printable(task.name)}: {task.status}")
        _show_metrics(task)
        if failure := task.failure:
            _show_failure(failure)


def _show_metrics(task: TaskRecord) -> None:
    metrics: dict[str, object] = {}
    for line in task.metrics():
        metrics |= line
    if metrics:
        click.echo(f"  step {metrics.get('step', 0)}/{metrics.get('max_steps', '?')}  {describe(metrics)}")


def _show_failure(failure: Failure) -> None:
    rank = "" if failure.rank is None else f"rank {failure.rank}: "
    click.echo(f"  {rank}{printable(failure.cause)}")
    for line in failure.traceback.splitlines():
        click.echo(f"    {printable(line)}")


@experiment.command()
@click.argument("experiment")
@click.option("--rank", type=click.IntRange(min=0), help="This rank alone.")
@click.option("--task", help="The task's name; without it, the first task.")
def logs(experiment: str, rank: int | None, task: str | None) -> None:
    """What the ranks wrote to stdout and stderr, each file under its name."""
    record = Store().find(experiment)
    for path in rank_logs(record.task(task).files, rank):
        click.echo(f"==> {path.name} <==")
        sys.stdout.flush()
        with open(path, "rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
