"""Jobs on this machine whose folder a test chooses, which an experiment would name by itself."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from executors.base import JobState, Task
from executors.local import LocalExecutor
from launcher.serialization import encode
from launcher.worker import JOB_DIR


def run_job(folder: Path, task: Any, executor: LocalExecutor) -> JobState:
    """How it ended. What the folder holds already stays there."""
    planned = Task(
        name=folder.name,
        experiment=folder.parent.name,
        folder=folder,
        launched_from=Path.cwd(),
        launch_script=None,
        sys_path=tuple(sys.path),
        call=encode(task),
        step_timeout=executor.step_timeout,
    )
    plan, ended = executor.plan(planned), threading.Event()
    folder.mkdir(parents=True, exist_ok=True)
    executor.prepare([plan])
    handles = executor.submit([plan], ended.set)
    deadline = time.monotonic() + 90
    while not ended.wait(0.1) and time.monotonic() < deadline:
        executor.poll(handles)  # which starts what waits for other tests' jobs
    executor.cancel(handles, now=True)
    return executor.poll(handles)[0]


def still_running(folder: Path) -> list[str]:
    """The processes of the job in this folder."""
    mark, found = f"{JOB_DIR}={folder}".encode(), []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in environ.read_bytes().split(b"\0"):
                found.append(environ.parent.name)
        except OSError:  # ended meanwhile
            continue
    return found
