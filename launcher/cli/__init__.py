"""The `gemma-launch` command. Exit status 0 is success, 1 an error that is explained, 2 wrong usage, 130 a Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from launcher.cli.experiment import experiment
from launcher.errors import LaunchError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Launch experiments on Google's Gemma models, and look after them."""


cli.add_command(experiment)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `gemma-launch`. An error of the user's own is shown without a traceback."""
    try:
        sys.exit(cli.main(arguments, prog_name="gemma-launch", standalone_mode=False))
    except LaunchError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("cancelled", err=True)
        sys.exit(130)
    except BrokenPipeError:  # `gemma-launch ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
        sys.exit(1)
