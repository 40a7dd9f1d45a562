"""What submitit runs as each rank: it takes its place among the others, and starts the worker.

Its pickle names `start` and the path of a task file, nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import worker
from launcher.worker import JobFiles, write_json

if TYPE_CHECKING:
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

SETTINGS = "submitit.json"
"""Beside task.json: what submitit is asked for, and the variables of the ranks."""
FOLDER = "submitit"
"""Beside it too: all files of submitit's own."""
CANNOT_RUN = 126  # as a shell has it


def exit_file(files: JobFiles, rank: int) -> Path:
    """How the rank ended, and when."""
    return files.folder / f"rank_{rank}.exit"


def start(task_file: str) -> None:
    """Run the worker as this rank, to its end. Raises SystemExit with its status, unless that is 0."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    files = JobFiles(os.path.dirname(task_file))
    ranks = TorchDistributedEnvironment()
    try:
        status = _run(task_file, files, ranks, JobEnvironment())
    except Exception as error:  # whatever it is, somebody waits for our word
        with open(files.launch_log, "a", encoding="utf-8") as log:
            log.write(f"rank {ranks.rank} could not be started: {type(error).__name__}: {error}\n")
        status = CANNOT_RUN
    _end(files, ranks.rank, ranks.world_size, status)
    if status:
        sys.exit(status if status > 0 else 128 - status)


def _run(task_file: str, files: JobFiles, ranks: TorchDistributedEnvironment, job: JobEnvironment) -> int:
    again = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if ranks.rank == 0:
        _begin(files, job.job_id, again)
    exit_file(files, ranks.rank).unlink(missing_ok=True)
    here = ranks.world_size == ranks.local_world_size
    own = {
        "RANK": ranks.rank,
        "WORLD_SIZE": ranks.world_size,
        "LOCAL_RANK": ranks.local_rank,
        "LOCAL_WORLD_SIZE": ranks.local_world_size,
        "NODE_RANK": job.node,
        "MASTER_ADDR": "127.0.0.1" if here else ranks.master_addr,
        "MASTER_PORT": ranks.master_port,
        worker.RESTART: again + len(list(files.folder.glob("attempt_*"))),
        worker.PARENT: os.getpid(),
        worker.JOB_DIR: files.folder,
        **json.loads((files.folder / SETTINGS).read_text(encoding="utf-8"))["variables"],
    }
    env = os.environ | {name: str(value) for name, value in own.items()}
    launcher = os.environ.get(worker.PARENT)
    process = _started([sys.executable, worker.__file__, task_file], env, files, job.USR_SIG)
    return _wait(process, None if launcher is None else int(launcher))


def _begin(files: JobFiles, job_id: str, again: int) -> None:
    """As the script of a SlurmExecutor's job does, so that both are looked after alike."""
    if again:
        for path in (files.stop, files.saved, files.folder / "ended"):
            path.unlink(missing_ok=True)
    with open(files.folder / "started", "a", encoding="utf-8") as started:
        started.write(f"{job_id} {again} {int(time.time())} {os.environ.get('SLURM_JOB_NODELIST', '')}\n")


def _started(argv: Sequence[str], env: dict[str, str], files: JobFiles, warning: str) -> subprocess.Popen[bytes]:
    """The worker, with what it must hear of signals to us."""
    if env.get("SUBMITIT_EXECUTOR") is None:  # in the launcher's own process, whose signals are its own
        return subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL)
    number = getattr(signal, f"SIG{warning}")
    signal.signal(number, signal.SIG_IGN)  # the worker keeps that: it would die of it
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL)
    signal.signal(number, lambda *_: files.stop.touch())
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: process.terminate())
    return process


def _wait(process: subprocess.Popen[bytes], launcher: int | None) -> int:
    """The exit status; where there is a launcher to follow, a rank ends when it does."""
    if launcher is not None and sys.platform == "linux":
        with contextlib.ExitStack() as stack:
            ends = [os.pidfd_open(process.pid)]
            stack.callback(os.close, ends[0])
            try:
                ends.append(os.pidfd_open(launcher))
                stack.callback(os.close, ends[1])
                either = select.poll()  # not select, which stops at 1,024 files
                for end in ends:
                    either.register(end, select.POLLIN)
                gone = ends[0] not in [end for end, _ in either.poll()]
            except ProcessLookupError:
                gone = True
            if gone:
                process.kill()
    return process.wait()


def _end(files: JobFiles, rank: int, size: int, status: int) -> None:
    write_json(exit_file(files, rank), {"status": status, "time": time.time()})
    if status or all(exit_file(files, other).exists() for other in range(size)):
        scratch = files.folder / f".ended.{rank}"
        scratch.write_text(f"{status & 0xFF}\nexit\n", encoding="utf-8")
        scratch.replace(files.folder / "ended")
