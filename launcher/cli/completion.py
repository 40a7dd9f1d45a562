"""`gemma-launch completion SHELL`: click's own completion, as a script for the shell to read."""

from __future__ import annotations

import click

from launcher.cli.usage import UsageError
from launcher.errors import nearest

_SHELLS = ("bash", "zsh", "fish")


def _complete_shell(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in _SHELLS if name.startswith(incomplete)]


@click.command()
@click.argument(
    "shell", shell_complete=lambda ctx, parameter, typed: [word for word in _SHELLS if word.startswith(typed)]
)
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, recipes, executors and experiments in a shell.

    \b
    bash   eval "$(gemma-launch completion bash)"   in ~/.bashrc
    zsh    eval "$(gemma-launch completion zsh)"    in ~/.zshrc, after compinit
    fish   gemma-launch completion fish > ~/.config/fish/completions/gemma-launch.fish
    """
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell) if shell in _SHELLS else None
    if complete is None:
        raise UsageError(f"there is no completion for {shell!r}", ctx, hint=nearest(shell, _SHELLS) or "bash")
    click.echo(complete(ctx.find_root().command, {}, "gemma-launch", "_GEMMA_LAUNCH_COMPLETE").source())
