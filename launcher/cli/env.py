"""`gemma-launch env`: the environment variables that a run would get, and why."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from launcher.cli.usage import UsageError

if TYPE_CHECKING:
    from executors.base import Executor
    from launcher.cli.workspace import Workspace

_EXECUTOR = "executor."


def _complete(kind: str) -> Any:
    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from executors.architecture import GPUS
        from launcher.cli.recipes import built_in
        from launcher.cli.workspace import names

        found = {
            "recipe": lambda: [
                *names(ctx.params.get("workspace"))["recipe"],
                *built_in("finetune"),
                *built_in("train"),
            ],
            "executor": lambda: ["local", *names(ctx.params.get("workspace"))["executor"]],
            "gpu": lambda: list(GPUS),
        }[kind]()
        return [CompletionItem(name) for name in dict.fromkeys(found) if name.startswith(incomplete)]

    return complete


@click.command("env")
@click.argument("overrides", nargs=-1, metavar="[OVERRIDES]...")
@click.option(
    "--factory", metavar="NAME", shell_complete=_complete("recipe"), help="The recipe; a size: its fine-tuning."
)
@click.option(
    "--executor", metavar="NAME", shell_complete=_complete("executor"), help="Where it is to run; without it, local."
)
@click.option("--gpu", metavar="MODEL", shell_complete=_complete("gpu"), help="The GPUs there: h100, b200, ...")
@click.option(
    "--workspace",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    is_eager=True,
    help="A Python file of one's own recipes and executors; without it, gemma_workspace.py if there is one.",
)
def env(
    overrides: tuple[str, ...], factory: str | None, executor: str | None, gpu: str | None, workspace: str | None
) -> None:
    """Show the environment variables that a run would get, and why.

    OVERRIDES change the recipe and the executor as they do everywhere: trainer.devices=8 executor.nodes=2. What is set
    already, in the executor's env_vars or in the environment that its tasks inherit, is never changed.

    Nothing is started. The exit status is 1 where what is set already cannot work.
    """
    from executors.environment import given_by
    from executors.situation import situation_of
    from launcher.cli.launch import make_executor
    from launcher.cli.recipes import values
    from launcher.cli.workspace import load
    from launcher.overrides import apply

    if factory is None:
        raise UsageError("env needs a recipe", hint="gemma-launch env --factory gemma3_1b")
    found = load(workspace)
    own = tuple(text for text in overrides if text.startswith(_EXECUTOR))
    task, source = _recipe(factory, found)
    apply(task, [text for text in overrides if text not in own], values(found))
    where = make_executor(task, own, executor, found)
    if gpu is not None:
        where.gpu = gpu
    where.check()
    lines, failed = _report(situation_of(task, where), given_by(where), where)
    head = [f"recipe    {source}", f"executor  {executor or 'local'}  ({type(where).__name__}, {_ranks(where)})"]
    click.echo("\n".join([*head, *lines]))
    if failed:
        sys.exit(1)


def _recipe(factory: str, workspace: Workspace) -> tuple[Any, str]:
    """Any recipe by its name; a size stands for its fine-tuning. And where it is defined."""
    from launcher.cli.calls import called_name
    from launcher.cli.recipes import build_recipe, built_in

    name = called_name(factory, "--factory gemma3_1b")
    size = name in built_in("finetune") and name not in workspace.recipes
    task, _, defined = build_recipe("finetune" if size else "train", factory, workspace)
    return task, f"{factory}  ({defined})"


def _ranks(executor: Executor) -> str:
    return f"{executor.ranks} process" + ("es" if executor.ranks > 1 else "")


def _report(situation: Any, given: dict[str, str], executor: Executor) -> tuple[list[str], bool]:
    """The lines after the head, and whether there is an error among them."""
    from executors.environment import RULES, lint, undecided, variables
    from experiments.logs import printable

    if situation is None:
        return ["", "no variables: this is no training on GPUs"], False
    known = situation.architecture
    lines = [f"gpus      {known.name.capitalize() if known else 'not known'}", f"run       {situation.describe()}"]
    for setting in variables(situation, given):
        lines += ["", f"{setting.variable}={setting.value}", *_wrapped(setting.why), *_wrapped(f"[{setting.source}]")]
    if missing := undecided(situation, given):
        lines += [
            "",
            *_wrapped(
                f"left out, as they depend on the GPUs: {', '.join(missing)}; "
                "try --gpu h100, or gpu='h100' of the executor",
                "",
            ),
        ]
    ours = {rule.variable for rule in RULES}
    if kept := sorted(ours & given.keys()):
        lines += ["", "set already, and kept:"]
        lines += [f"  {name}={printable(given[name])}  ({_by(name, executor)})" for name in kept]
    findings = lint(situation, given)
    for finding in findings:
        lines += ["", *map(printable, f"{finding.severity}: {finding}".split("\n"))]
    return lines, any(finding.severity == "error" for finding in findings)


def _wrapped(text: str, indent: str = "    ") -> Iterator[str]:
    yield from textwrap.wrap(
        text, 100, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _by(name: str, executor: Executor) -> str:
    if name in executor.env_vars:
        return executor.where("env_vars") or "the executor's env_vars"
    return "the environment"
