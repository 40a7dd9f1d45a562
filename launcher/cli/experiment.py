"""`gemma-launch experiment list | status | logs | cancel | prune | attach`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from launcher.cli.usage import Group
from launcher.errors import TunnelError

if TYPE_CHECKING:
    from executors.base import Failure
    from experiments.store import TaskRecord


UNSETTLED = ("queued", "running", "lost")
"""An experiment of that status may stand differently by now, in a place that nobody has asked."""


def _complete_experiment(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from launcher.home import home

    try:
        with os.scandir(home() / "experiments") as entries:
            found = sorted(entry.name for entry in entries if entry.name.startswith(incomplete))
    except OSError:
        return []
    return [CompletionItem(name) for name in found]


_experiment = click.argument("experiment", shell_complete=_complete_experiment)


@click.group(cls=Group, no_args_is_help=False)
def experiment() -> None:
    """Look at experiments, and end them. EXPERIMENT is an id or a title, or how one begins (the newest that fits)."""


@experiment.command("list")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The newest N alone.")
def list_(limit: int | None) -> None:
    """Every experiment, newest first."""
    from experiments.logs import printable
    from experiments.lookout import look_after
    from experiments.store import Store

    store = Store()
    found = store.summaries(limit)
    if unsettled := [store.read(store.folder / each.id) for each in found if each.status in UNSETTLED]:
        look_after(unsettled, _warn)
        found = store.summaries(limit)
    if not found:
        click.echo(f"no experiments in {Store().folder}", err=True)
        return
    width = max(len(each.id) for each in found)
    lines = [f"{'ID':{width}}  {'STATUS':9}  {'CREATED':19}  TITLE"]
    for each in found:
        lines.append(f"{each.id:{width}}  {each.status:9}  {_when(each.created)}  {_clip(printable(each.title), 60)}")
    click.echo("\n".join(lines))


@experiment.command()
@_experiment
def status(experiment: str) -> None:
    """How one experiment stands, task by task."""
    from experiments.logs import printable
    from experiments.lookout import look_after
    from experiments.store import Store

    record = Store().find(experiment)
    look_after([record], _warn)
    click.echo(f"title    {printable(record.title)}")
    click.echo(f"id       {record.id}")
    click.echo(f"status   {record.status}")
    click.echo(f"created  {_when(record.created)}")
    click.echo(f"folder   {record.folder}")
    for task in record.tasks:
        again = f" (attempt {task.attempts})" if task.attempts > 1 else ""
        click.echo(f"\ntask {printable(task.name)}: {task.status}{again}")
        if (detail := task.detail) and not task.status.final:
            click.echo(f"  {printable(detail)}")
        if task.needs:
            click.echo(f"  after {', '.join(map(printable, task.needs))}")
        _show_metrics(task)
        if failure := task.failure:
            _show_failure(failure)


def _show_metrics(task: TaskRecord) -> None:
    from experiments.progress import describe

    metrics: dict[str, object] = {}
    for line in task.metrics():
        metrics |= line
    if metrics:
        step = f"step {metrics['step']}/{metrics.get('max_steps', '?')}  " if "step" in metrics else ""
        click.echo(f"  {step}{describe(metrics)}")


def _show_failure(failure: Failure) -> None:
    from experiments.logs import printable

    rank = "" if failure.rank is None else f"rank {failure.rank}: "
    cause, *advice = failure.cause.splitlines()
    for line in (f"{rank}{cause}", *advice):
        click.echo(f"  {printable(line)}")
    for line in failure.traceback.splitlines():
        click.echo(f"    {printable(line)}")


@experiment.command()
@_experiment
@click.option("--rank", type=click.IntRange(min=0), help="This rank alone.")
@click.option("--task", help="The task's name; without it, the first task.")
@click.option("--follow", is_flag=True, help="Go on until the task has ended.")
def logs(experiment: str, rank: int | None, task: str | None, follow: bool) -> None:
    """What the ranks wrote to stdout and stderr, each line after its file's name."""
    from experiments.logs import printable, rank_logs, show_logs
    from experiments.lookout import fetcher
    from experiments.store import Store

    record = Store().find(experiment)
    found = record.task(task)
    fetch = fetcher(record, found, rank) if follow else _as_far_as_it_goes(fetcher(record, found, rank))
    if rank is not None and not follow:
        fetch(False)
        rank_logs(found.files, rank)  # a rank that is not there is an error
    show_logs(found, rank, follow=follow, fetch=fetch)
    if not follow and not any(rank_logs(found.files)):
        detail = f": {printable(found.detail)}" if found.detail else ""
        click.echo(f"task {printable(found.name)} is {found.status}{detail}; it has written nothing yet", err=True)


def _as_far_as_it_goes(fetch: Callable[[bool], None]) -> Callable[[bool], None]:
    """Where a place cannot be asked, what came from it before is shown all the same."""

    def reached(last: bool) -> None:
        try:
            fetch(last)
        except TunnelError as error:
            _warn([f"what is new cannot be had: {error}"])

    return reached


@experiment.command()
@_experiment
@click.option("--task", help="End this task alone.")
def cancel(experiment: str, task: str | None) -> None:
    """End an experiment, wherever it runs, and wait until it has ended."""
    from experiments.experiment import Experiment
    from experiments.logs import printable
    from experiments.store import Store

    found = Experiment.from_id(Store().find(experiment).id)
    for name, state in found.cancel(task).items():
        click.echo(f"{printable(name)}: {state}")


@experiment.command()
@_experiment
@click.option("--host", help="The cluster's login node, or a Host of ~/.ssh/config. Without it, this machine is one.")
@click.option("--user", help="Who you are there.")
@click.option("--port", type=click.IntRange(1, 65535), help="Of its sshd.")
@click.option("--identity", metavar="FILE", help="Your private key.")
@click.option("--ssh-config", metavar="FILE", help="Read instead of ~/.ssh/config.")
@click.option("--job-dir", required=True, metavar="FOLDER", help="The job_dir of the tunnel that it was launched with.")
def attach(
    experiment: str,
    host: str | None,
    user: str | None,
    port: int | None,
    identity: str | None,
    ssh_config: str | None,
    job_dir: str,
) -> None:
    """Take over an experiment that another machine launched, from the cluster where it runs."""
    from executors.tunnel import LocalTunnel, SSHTunnel, Tunnel
    from experiments.attach import attach as take_over
    from launcher.places import called

    tunnel: Tunnel
    with called("the command line"):
        if host is None:
            if user or port or identity or ssh_config:
                raise click.UsageError("how to reach a host is given, and no --host")
            tunnel = LocalTunnel(job_dir=job_dir)
        else:
            tunnel = SSHTunnel(host, user, port, identity, job_dir=job_dir, ssh_config=ssh_config)
    record = take_over(tunnel, experiment)
    click.echo(f"{record.id}: {record.folder}")


@experiment.command()
def prune() -> None:
    """Take away what experiments that are over have left in the places where they ran, and say what."""
    from executors.docker.engine import current
    from executors.docker.executor import DockerExecutor
    from experiments.pruning import prune as take_away

    engine = current()
    missed: list[str] = []
    gone = take_away([DockerExecutor(host=engine)] if engine else [], missed.extend)
    _warn(missed)
    otherwise = "nothing is left of experiments that are over" + (", where it could be asked" if missed else "")
    click.echo("\n".join(f"removed {name}" for name in gone) or otherwise)
    if missed:
        raise click.exceptions.Exit(1)


def _warn(texts: Sequence[str]) -> None:
    for text in texts:
        click.echo(f"warning: {text}", err=True)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
