"""LaunchError and its family: every error that a person's own input can cause.

An error says what is wrong, where the value was set, and what to type instead. The commands print these without a
traceback; a traceback is kept for our own defects and for the user's code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LaunchError(Exception):
    """What is wrong; `where` it was set ("train.py:12"); `hint`, what to type instead."""

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.where:
            lines.append(f"  set at: {self.where}")
        if self.hint:
            lines.append(f"  try: {self.hint}")
        return "\n".join(lines)


class ConfigError(LaunchError, AttributeError, TypeError):
    """A configuration that cannot be: a misspelt name, a wrong type, a missing value, a live object."""


class OverrideError(ConfigError):
    """A change that was typed, `trainer.max_steps=abc`, and cannot be made; the message begins with it as typed."""


class SerializationError(LaunchError):
    """Something that cannot be saved exactly, or a file that cannot be read back."""


class RanksError(ConfigError):
    """A task that is made for another number of processes than its executor starts."""


class ExecutorError(LaunchError, AttributeError):
    """An executor that cannot be (a misspelt attribute, a bad count) or a place that cannot run a job."""


class PackagingError(LaunchError):
    """Code that cannot travel: no repository, a pattern that nothing fits, files that clash or cannot be read."""


class TunnelError(LaunchError):
    """A cluster that cannot be reached, or does not do what it is asked.

    `lost`: a command was sent, and nobody saw how it ended; it may have run, in part or whole. Otherwise none was.
    """

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None, lost: bool = False) -> None:
        super().__init__(message, where=where, hint=hint)
        self.lost = lost


class StoreError(LaunchError):
    """An experiment that is not there, or a folder of one that cannot be read or written."""


class DataError(LaunchError):
    """Training data that cannot be used; the message names the file and the line."""


class CheckpointError(LaunchError):
    """A checkpoint that is missing, corrupt, or of another model."""


class ExperimentFailed(LaunchError):
    """A task failed. Names the experiment, the task, and the rank that failed first, with its traceback.

    `rank` is None when no single rank can be blamed (the launch itself failed).
    """

    def __init__(self, experiment_id: str, task: str, *, rank: int | None, cause: str, traceback: str = "") -> None:
        blamed = "" if rank is None else f" on rank {rank}"
        message = f"experiment {experiment_id}: task {task!r} failed{blamed}: {cause}"
        if traceback:
            message += "\n" + traceback.rstrip("\n")
        super().__init__(message, hint=f"gemma-launch experiment logs {experiment_id}")
        self.experiment_id = experiment_id
        self.task = task
        self.rank = rank
        self.cause = cause
        self.traceback = traceback


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid names nearest to a misspelt one, as a hint: "'lr' or 'min_lr'"; None where nothing is near."""
    found = difflib.get_close_matches(name, sorted(valid), n=3, cutoff=0.6)
    return " or ".join(repr(match) for match in found) or None
