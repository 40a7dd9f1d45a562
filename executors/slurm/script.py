"""The one file that sbatch is given, and the variables beside it.

What a shell reads is quoted by shlex; `Raw` words are our own, and are read by it.
"""

from __future__ import annotations

import shlex
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from executors.slurm.options import directives


class Raw(str):
    """A word that the job's shell expands: written here, never typed by anybody."""


class _Template(string.Template):
    delimiter = "%%"  # `$` is the shell's


def environment(variables: Mapping[str, str]) -> str:
    """The file that the script reads; only its owner may."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def render(
    *,
    options: Mapping[str, Any],
    about: str,
    folder: Path,
    array: bool,
    retries: int,
    warning: str | None,
    setup: Sequence[str],
    srun: Sequence[str],
    command: Sequence[str],
) -> str:
    """job.sh.

    about: comments. folder: the job's. warning: the signal that says that its time is nearly over. setup: the user's
    own lines of shell. srun, command: argument lists, of the step and of each of its tasks.
    """
    again = 'again "$status" failure' if retries else 'finish "$status" exit'
    text = resources.files("executors.slurm").joinpath("templates/job.sh").read_text(encoding="utf-8")
    filled = _Template(text).substitute(
        directives=directives(options),
        about=about,
        folder=shlex.quote(str(folder)),
        array=ARRAY if array else "",
        retries=retries,
        last="out-of-retries: $2" if retries else "exit: $2",
        warning=f"trap 'touch stop' {warning}" if warning else "",
        setup="\n    ".join(setup),
        srun=line(srun),
        command=line(command),
        failed=again,
    )
    return filled


ARRAY = """\
mkdir -p "array_$SLURM_ARRAY_TASK_ID" && cd "array_$SLURM_ARRAY_TASK_ID" || exit # each element in its own folder
ln -sf ../task.json ../environment.sh ../secrets.json . || exit
exec >>launch.log 2>&1
"""


def line(words: Sequence[str]) -> str:
    return " ".join(word if isinstance(word, Raw) else shlex.quote(word) for word in words)
