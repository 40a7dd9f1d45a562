"""Scripts that run beside sbatch, through a tunnel: what they are told, and what their end means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from executors.tunnel import Tunnel
from launcher.errors import TunnelError

TEMPLATES = Path(__file__).parent / "templates"
COMMENT = re.compile(r"^( *#.*)?\n|^ +", re.MULTILINE)  # what a script does not need on its way
NO_SLURM, SILENT = 64, 65


@cache
def text(name: str) -> str:
    """A script, without what it does not need on its way."""
    return COMMENT.sub("", (TEMPLATES / f"{name}.sh").read_text())


def call(tunnel: Tunnel, name: str, *arguments: str, input: bytes = b"", timeout: float) -> list[str]:
    """Run a script beside sbatch, and give the lines that it printed. Raises TunnelError."""
    command = ["sh", "-c", text("prelude") + text(name), name, *arguments]
    said = output(tunnel, command, input=input, timeout=timeout)
    return said.decode(errors="surrogateescape").split("\n")[:-2]


def output(tunnel: Tunnel, command: Sequence[str], *, input: bytes, timeout: float) -> bytes:
    """What a script printed that was not broken off. Raises TunnelError.

    Lost is what was asked of a scheduler that does not answer, too: it may be asked again.
    """
    done = tunnel.run(command, input=input, timeout=timeout)
    said = done.stderr.decode(errors="replace").strip()
    if done.status == NO_SLURM:
        raise TunnelError(
            f"there is no sbatch on {tunnel.name}: it is no login node of a Slurm cluster, or has Slurm in a folder "
            "that is not on PATH for commands over SSH",
            hint="host='...' for a login node, or a line for PATH at the top of ~/.bashrc there",
        )
    if done.status == SILENT:
        raise TunnelError(
            f"Slurm on {tunnel.name} does not answer: {said}", hint="sinfo there; ask again when it answers", lost=True
        )
    if done.status or not done.stdout.endswith(b"end\n"):
        hint = None
        if "No space left" in said or "quota" in said.lower():
            hint = f"make room on {tunnel.name}, or job_dir='...' on another file system"
        elif "Permission denied" in said or "Read-only file system" in said:
            hint = f"job_dir='...' for a folder on {tunnel.name} that you may write to"
        raise TunnelError(
            f"{tunnel.name} broke off: {said or f'exit status {done.status}'}",
            where=tunnel.where("job_dir"),
            hint=hint,
            lost=True,
        )
    return done.stdout


def listed(fields: Iterable[str]) -> bytes:
    """Fields as lines of a script's input, and its end. Raises TunnelError for one that is no line."""
    lines = [*fields, "end", ""]
    for line in lines:
        if "\n" in line or "\0" in line:
            raise TunnelError(f"{line!r} cannot be on a cluster: it has a line break in it")
    return "\n".join(lines).encode(errors="surrogateescape")


def answers(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Lines that begin with a blank belong to the one before: each answer, and the words below it."""
    found: list[tuple[str, str]] = []
    for line in lines:
        if line.startswith(" "):
            answer, words = found[-1]
            found[-1] = (answer, f"{words}\n{line[1:]}".strip())
        else:
            found.append((line, ""))
    return found
