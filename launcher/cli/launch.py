"""From a command line to a task, and from a task to a run: what the entrypoints have in common."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.usage import UsageError
from launcher.cli.workspace import Workspace, load, shown
from launcher.errors import LaunchError, OverrideError
from launcher.places import called

if TYPE_CHECKING:
    from executors.base import Executor

_EXECUTOR = "executor."
_HERE = ("import_checkpoint", "export_checkpoint", "preprocess", "generate")
"""These run in this process and without a question: they are short, and overwrite nothing."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was typed, as click read it."""

    overrides: tuple[str, ...]
    factory: str | None
    yaml: str | None
    name: str | None
    executor: str | None
    direct: bool
    detach: bool
    dryrun: bool
    to_yaml: str | None
    yes: bool
    workspace: str | None

    def __post_init__(self) -> None:
        for one, other in (("factory", "yaml"), ("direct", "executor"), ("direct", "detach"), ("direct", "name")):
            if getattr(self, one) and getattr(self, other):
                raise UsageError(f"--{one} and --{other} exclude each other", hint="one of the two")


def launch(entrypoint: str, function: str, options: Options) -> None:
    """Build the task, show it, ask, and run it. Raises LaunchError and its family."""
    from gemma_models.recipes.aliases import meaning
    from launcher.cli.recipes import values
    from launcher.overrides import apply

    workspace = load(options.workspace)
    if workspace.file:
        click.echo(f"workspace {shown(workspace.file)}", err=True)
    own = tuple(text for text in options.overrides if text.startswith(_EXECUTOR))
    task, title, source = _task(entrypoint, function, options, workspace)
    _refuse_arguments(task, entrypoint, options, workspace)
    apply(task, [text for text in options.overrides if text not in own], values(workspace), aliases=meaning)
    if options.to_yaml is not None:
        _write_yaml(task, options)
        return
    if options.direct and own:
        raise UsageError(f"--direct runs it in this process, and {own[0]} changes an executor", hint="one of the two")
    elsewhere = options.executor or options.detach or options.name or own
    if options.direct or (function in _HERE and not elsewhere):
        _run_here(task, source, options, ask=function not in _HERE)
    else:
        _run_there(task, source, make_executor(task, own, options.executor, workspace), options.name or title, options)


def _task(entrypoint: str, function: str, options: Options, workspace: Workspace) -> tuple[Any, str, str]:
    """The task before overrides; the title that it has by itself; and where it comes from, to be shown."""
    from launcher.cli.recipes import build_recipe, listed, made_for
    from launcher.config import Partial

    if options.yaml is not None:
        from launcher.serialization import from_yaml

        found = from_yaml(_read(Path(options.yaml)), source=options.yaml)
        task = made_for(entrypoint, found, f"--yaml {shlex.quote(options.yaml)}")
        return task, Path(options.yaml).stem, options.yaml
    if options.factory is not None:
        task, name, defined = build_recipe(entrypoint, options.factory, workspace)
        return task, name, f"{options.factory}  ({defined})"
    if function in _HERE:
        from gemma_models import api
        from launcher.lazy_fiddle import history

        place = history.Location(f"gemma-launch {entrypoint}", 0, None)
        with history.custom_location(lambda: place):
            return Partial(getattr(api, function)), entrypoint, f"gemma_models.{function}"
    known = listed(entrypoint, workspace)
    example = next((text for text in options.overrides if text in known), next(iter(known)))
    raise UsageError(
        f"{entrypoint} needs a recipe; there are {', '.join(known)}",
        hint=f"gemma-launch {entrypoint} --factory {example}",
    )


def make_executor(task: Any, overrides: tuple[str, ...], named: str | None, workspace: Workspace) -> Executor:
    """The executor of a name (None: this machine, as large as the task), with overrides such as executor.nodes=2."""
    from launcher.cli.recipes import build_executor

    named = named or "local"
    executor = _local(task) if named == "local" else build_executor(named, workspace)
    if overrides:
        _change(executor, overrides)
    return executor


def _change(executor: Executor, overrides: tuple[str, ...]) -> None:
    from launcher.config import Config, build, where
    from launcher.overrides import apply

    holder: Config[Any] = Config(dict, executor=executor)
    apply(holder, overrides)
    changed = build(holder.executor)
    for attribute in dataclasses.fields(changed):
        value = getattr(changed, attribute.name)
        if value != getattr(executor, attribute.name):
            with called(where(holder.executor, attribute.name) or "the command line"):
                setattr(executor, attribute.name, value)


def _local(task: Any) -> Executor:
    """This machine, with as many processes as the recipe's trainer has devices."""
    from executors.local import LocalExecutor

    with called("--executor local"):
        executor, trainer = LocalExecutor(), getattr(task, "trainer", None)
        for name, counted in (("ntasks_per_node", "devices"), ("nodes", "num_nodes")):
            count = getattr(trainer, counted, 1)
            if type(count) is int:  # anything else, the recipe's own check refuses
                setattr(executor, name, count)
        if trainer is None and (strategy := getattr(task, "strategy", None)) is not None:
            executor.ntasks_per_node = strategy.tensor_model_parallel_size * strategy.pipeline_model_parallel_size
    return executor


def _run_here(task: Any, source: str, options: Options, *, ask: bool) -> None:
    from launcher.run import run

    if options.dryrun:
        click.echo(_preview(task, source, "this process"))
        return
    if ask:
        _ask(_preview(task, source, "this process"), options)
    with _stdout_kept():
        value = run(task, direct=True)
    _print(value)


def _run_there(task: Any, source: str, executor: Executor, title: str, options: Options) -> None:
    from experiments.experiment import Experiment

    with Experiment(title) as experiment:
        experiment.add(task, executor=executor)
        if options.dryrun:
            experiment.dryrun()
            return
        ranks = f"{executor.ranks} processes" if executor.ranks > 1 else "1 process"
        where = f"{options.executor or 'local'}  ({type(executor).__name__}, {ranks})"
        _ask(_preview(task, source, where), options)
        if options.detach:
            experiment.run(detach=True)
            click.echo(experiment.id)
            return
        for result in experiment.run():
            _print(result.value)


def _preview(task: Any, source: str, executor: str) -> str:
    from experiments.logs import printable
    from launcher.preview import table

    return f"recipe    {printable(source)}\nexecutor  {printable(executor)}\n\n{table(task)}\n"


def _ask(preview: str, options: Options) -> None:
    """Show what would run, and go on if the answer is yes. Raises LaunchError where nobody can be asked."""
    click.echo(preview, err=True)
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise LaunchError("there is no terminal to ask on, and nothing was started", hint="--yes")
    if not click.confirm("Continue?", err=True):
        click.echo("nothing was started", err=True)
        raise click.exceptions.Exit(0)


@contextlib.contextmanager
def _stdout_kept() -> Iterator[None]:
    """What a task prints in this process goes to stderr where stdout is a file or a pipe: that is for its result."""
    if sys.stdout.isatty():
        yield
    else:
        with contextlib.redirect_stdout(sys.stderr):
            yield


def _print(value: Any) -> None:
    """A result on stdout: texts as they are, one after another; anything else as JSON."""
    if value is None:
        return
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        for text in value:
            click.echo(text)
    else:
        click.echo(str(value) if isinstance(value, str | Path) else json.dumps(value, indent=1, default=str))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _refuse_arguments(task: Any, entrypoint: str, options: Options, workspace: Workspace) -> None:
    """Raises OverrideError for one that names an argument of the recipe's function, and nothing in the recipe."""
    from launcher.cli.recipes import arguments_of
    from launcher.tree import has

    if options.factory is None:
        return
    known = arguments_of(entrypoint, options.factory, workspace)
    for text in options.overrides:
        name, equals, value = text.partition("=")
        if equals and name in known and not has(task, name):
            recipe = options.factory.partition("(")[0]
            raise OverrideError(
                f"{name} is an argument of {recipe}, and no value in the recipe that it makes",
                hint="--factory " + shlex.quote(f"{recipe}({name}={value})"),
            )


def _write_yaml(task: Any, options: Options) -> None:
    from launcher.serialization import to_yaml

    text = to_yaml(task)
    if options.to_yaml in (None, "-"):
        click.echo(text, nl=False)
        return
    path = Path(str(options.to_yaml))
    if path.suffix not in (".yaml", ".yml"):
        raise LaunchError(
            f"--to-yaml took {str(path)!r} for its file, which does not end in .yaml",
            hint="--to-yaml=recipe.yaml, or --to-yaml as the last word",
        )
    if path.exists() and not options.yes:
        raise LaunchError(f"{path} exists already", hint="--yes to overwrite it")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LaunchError(f"{path} cannot be written: {error.strerror}") from error
    click.echo(f"wrote {path}", err=True)
