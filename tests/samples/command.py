"""`gemma-launch` as a person starts it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-c", "from launcher.cli import main; main()"]

WORKSPACE = '''"""The workspace of a test."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

import launcher as run


@dataclass(kw_only=True)
class Settings:
    steps: int = 3
    words: list[str] = field(default_factory=list)


def work(settings: Settings, text: str = "nothing", fail: bool = False) -> dict[str, object]:
    print("working")
    print("to stderr", file=sys.stderr)
    if fail:
        raise ValueError("told to fail")
    return {"steps": settings.steps, "words": settings.words, "text": text, "rank": os.environ.get("RANK")}


def hold() -> None:
    import signal

    signal.alarm(30)  # a broken command must not leave it running
    print("holding", flush=True)
    while True:
        signal.pause()


def job(text: str = "nothing") -> run.Partial[dict[str, object]]:
    return run.Partial(work, settings=run.Config(Settings), text=text)


def holding() -> run.Partial[None]:
    return run.Partial(hold)


def quick(words: str = "quick") -> run.Config[Settings]:
    return run.Config(Settings, steps=1, words=[words])


def pair(variable: str = "1") -> run.LocalExecutor:
    return run.LocalExecutor(ntasks_per_node=2, env_vars={"VARIABLE": variable})


def broken() -> run.Partial[None]:
    return run.Partial(wrk)


def unmarked():
    return job()


def _hidden() -> run.Partial[None]:
    return run.Partial(hold)


single = run.LocalExecutor()
'''


def gemma_launch(*arguments: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, 80 columns wide, with nobody to ask."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
