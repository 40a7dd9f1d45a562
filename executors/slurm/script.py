"""The one file that sbatch is given, and the variables beside it.

What a shell reads is quoted by shlex; `Raw` words are our own, and are expanded by it.
"""

from __future__ import annotations

import shlex
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from executors.slurm.options import directives

ELEMENT: Final = """\
mkdir -p "array_$SLURM_ARRAY_TASK_ID" && cd "array_$SLURM_ARRAY_TASK_ID" || exit
ln -sf ../task.json ../environment.sh ../secrets.json . && exec >>launch.log 2>&1 || exit"""
"""Each element of an array works in a folder of its own."""
ELEMENT_ID: Final = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
"""SLURM_JOB_ID of one of them is the id of all."""


AGAIN: Final = """\
if [ -e stop ] && [ -e saved ]; then again "$status" time-limit; fi
again "$status" failure"""
FAILED: Final = 'finish "$status" exit'


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

    about: what a comment says. folder: the job's. warning: the signal that says that its time is nearly over. setup:
    lines of shell. srun, command: argument lists, of the step and of each of its tasks.
    """
    job = ELEMENT_ID if array else "$SLURM_JOB_ID"
    return _filled(
        "job.sh",
        job=job,
        directives=directives(options),
        about=about,
        folder=shlex.quote(str(folder)),
        array=ELEMENT if array else "",
        ends=_filled("requeue.sh", job=job, retries=str(retries)) if retries else _filled("final.sh"),
        warning=f"trap 'touch stop' {warning}" if warning else "",
        setup="\n    ".join(setup),
        srun=_line(srun),
        command=_line(command),
        failed=f"{AGAIN if retries else FAILED}\n",
    )


def _filled(name: str, **values: str) -> str:
    """A template with its values; a line that would be left empty is left out."""
    text = resources.files("executors.slurm").joinpath(f"templates/{name}").read_text(encoding="utf-8")
    lines = [line for line in text.rstrip("\n").split("\n") if values.get(line.strip().removeprefix("%%")) != ""]
    return _Template("\n".join(lines)).substitute(values)


def _line(words: Sequence[str]) -> str:
    return " ".join(word if isinstance(word, Raw) else shlex.quote(word) for word in words)
