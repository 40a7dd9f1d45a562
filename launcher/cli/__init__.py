"""The `gemma-launch` command.

Exit status 0 is success (a "no" to the question included), 1 an error that is explained or an experiment that failed,
2 wrong usage, 130 a Ctrl-C. What a command finds goes to stdout, everything else to stderr.

Every module here is light, so that help and completion come at once: what costs time is imported where it is used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from launcher.cli.completion import completion
from launcher.cli.entrypoints import COMMANDS
from launcher.cli.env import env
from launcher.cli.experiment import experiment
from launcher.cli.usage import Group, explain
from launcher.errors import LaunchError


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=False)
def cli() -> None:
    """Launch experiments on Google's Gemma models, and look after them."""


for command in (*COMMANDS, env, experiment, completion):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `gemma-launch`. An error of the user's own is shown without a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _require_text(arguments)
        cli.main(arguments or ["--help"], prog_name="gemma-launch", standalone_mode=False)
    except LaunchError as error:
        _leave(str(error), 1)
    except click.UsageError as error:
        _leave(explain(error), 2)
    except click.ClickException as error:
        _leave(error.format_message(), 1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("cancelled", err=True)
        sys.exit(130)
    except BrokenPipeError:  # `gemma-launch ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
        sys.exit(1)


def _require_text(arguments: Sequence[str]) -> None:
    for number, argument in enumerate(arguments, start=1):
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise LaunchError(f"argument {number} is not UTF-8 text: {argument!r}") from None


def _leave(message: str, status: int) -> None:
    from experiments.logs import printable

    lines = f"error: {message}".split("\n")
    click.echo("\n".join(map(printable, lines)), err=True)
    sys.exit(status)
