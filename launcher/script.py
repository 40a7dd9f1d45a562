"""Script: a task that is a program of its own, rather than a Python function."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import ConfigError
from launcher.strict import Strict


@dataclass
class Script(Strict):
    """A program that a task runs: a file, a module, or a text.

    path: a file, relative to where the launch script was started; with `m`, the name of a module (`python -m`).
    inline: the program itself, instead of a path.
    args: its arguments, as they are: no shell reads them.
    env: variables that it gets besides the executor's, and instead of them where names are equal.
    entrypoint: what runs it, with options if need be ("python -u"). By default python for a .py file or a module, bash
        for anything else. "python" is the interpreter that the executor runs tasks with.

    It runs in the copy of the code that the executor's packager makes, in the folder that matches the one where the
    launch script was started, once in every process of the executor, with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
    MASTER_PORT set. Its exit status is the task's.
    """

    strict_error = ConfigError

    path: str = ""
    inline: str = ""
    args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    entrypoint: str | None = None
    m: bool = False

    def check(self) -> None:
        """Refuse what cannot run. Raises ConfigError."""
        for name, value in (("path", self.path), ("inline", self.inline), ("entrypoint", self.entrypoint or "")):
            self._require_text(name, value)
        if not isinstance(self.m, bool):
            raise ConfigError(f"Script.m is {self.m!r}", hint="True or False")
        if bool(self.path) == bool(self.inline):
            raise ConfigError(
                "a Script is a path or an inline text, and this one " + ("has both" if self.path else "has neither"),
                hint="run.Script('prepare.py'), or run.Script(inline='python prepare.py')",
            )
        if self.m and not all(part.isidentifier() for part in self.path.split(".")):
            raise ConfigError(f"Script.path is {self.path!r}, which is no module's name", hint="package.module")
        if self.path and not self.m and not Path(self.path).expanduser().is_file():
            raise ConfigError(f"there is no file {str(Path(self.path).expanduser().absolute())!r} to run as a Script")
        if not isinstance(self.args, list):
            raise ConfigError(f"Script.args is {self.args!r}, and must be a list", hint=f"args=[{str(self.args)!r}]")
        for index, argument in enumerate(self.args):
            self._require_text(f"args[{index}]", argument)
        if not isinstance(self.env, dict):
            raise ConfigError(f"Script.env is of type {type(self.env).__name__}; it must be a dict", hint="env={...}")
        for key, value in self.env.items():
            if not isinstance(key, str) or not key or "=" in key or "\0" in key:
                raise ConfigError(f"Script.env has the name {key!r}, which no environment can hold")
            self._require_text(f"env[{key!r}]", value, show=False)
        try:
            program = shlex.split(self.entrypoint or "bash")
        except ValueError as error:
            raise ConfigError(f"Script.entrypoint is {self.entrypoint!r}: {error}") from None
        if not program:
            raise ConfigError(f"Script.entrypoint is {self.entrypoint!r}, which names no program", hint="'python -u'")

    @staticmethod
    def _require_text(name: str, value: Any, *, show: bool = True) -> None:
        if not isinstance(value, str):
            shown = f"{value!r} ({type(value).__name__})" if show else f"of type {type(value).__name__}"
            raise ConfigError(f"Script.{name} is {shown}; it must be a str", hint=f"{str(value)!r}" if show else None)
        if "\0" in value:
            raise ConfigError(f"Script.{name} holds a NUL character, which no program can be given")
        try:
            os.fsencode(value)
        except UnicodeEncodeError as error:
            raise ConfigError(f"Script.{name} holds what no program can be given: {error.reason}") from None

    @property
    def name(self) -> str:
        """What the task is called unless a name is given."""
        return Path(self.path).stem if self.path and not self.m else self.path or "script"

    def command(self, python: str, file: str) -> list[str]:
        """The argument list, where `file` is the place of the program and `python` the interpreter of tasks there."""
        default = "python" if self.m or self.path.endswith(".py") else "bash"
        program, *options = shlex.split(self.entrypoint or default)
        if program == "python":
            program = python
        return [program, *options, *(["-m", self.path] if self.m else [file]), *self.args]

    def run_here(self) -> None:
        """Run it in the current folder, and wait. Raises subprocess.CalledProcessError for an exit status but 0."""
        import subprocess
        import sys
        import tempfile

        self.check()
        with tempfile.NamedTemporaryFile("w", suffix=".script", encoding="utf-8", errors="surrogateescape") as text:
            text.write(self.inline)
            text.flush()
            file = os.path.abspath(os.path.expanduser(self.path)) if self.path else text.name
            subprocess.run(self.command(sys.executable, file), env={**os.environ, **self.env}, check=True)
