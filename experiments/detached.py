"""A process of its own that looks after an experiment, so that its launcher may end.

Started by its path, `python .../experiments/detached.py FOLDER`: what it is to do lies in the folder. It says so when
it has taken over; from then on the experiment is its own.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Python put this file's folder first; the packages are one above it, before any of the user's of the same name.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import subprocess
import threading
from pathlib import Path

from experiments.conductor import Conductor
from experiments.interrupts import collected
from experiments.lookout import jobs_of, only_conductor
from experiments.owner import process as process_owner
from experiments.progress import Monitor
from experiments.store import ExperimentRecord, Store
from launcher.errors import ExecutorError

READY = b"ready\n"
LOG = "launcher.log"


def start(record: ExperimentRecord) -> None:
    """Hand an experiment over; returns when it has been taken. Raises ExecutorError if it is not."""
    log = record.folder / LOG
    process: subprocess.Popen[bytes] | None = None
    try:
        with collected() as signals, open(log, "ab") as errors:
            process = subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), str(record.folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # a closed terminal, a Ctrl-C there, is not its affair
            )
        if signals:
            raise KeyboardInterrupt
        if process.stdout is None:
            raise RuntimeError("a pipe was asked for")
        owner = process_owner(process.pid)
        for task in record.tasks:
            task.append("queued", owner=owner)  # should this launcher be killed here, nobody takes the tasks for lost
        with process.stdout:
            said = process.stdout.readline()
    except BaseException:  # a Ctrl-C, and it may have taken over by now
        if process is not None:
            process.terminate()
            process.wait()
        raise
    if said != READY:
        process.wait()
        words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise ExecutorError(f"nobody took over experiment {record.id}: {' '.join(words) or 'no word'} (see {log})")
    # Its end concerns nobody here; but until its parent has seen it, it stays in the system's table.
    threading.Thread(target=process.wait, daemon=True).start()


def main(folder: str) -> None:
    store = Store()
    record = store.read(Path(folder))
    jobs = jobs_of(record)
    for task in record.tasks:
        task.append("queued")
    os.write(1, READY)
    os.dup2(2, 1)
    with only_conductor(record.folder):
        Conductor(jobs, sequential=record.sequential, monitor=Monitor(progress=False, tail=False)).run()


if __name__ == "__main__":
    main(sys.argv[1])
