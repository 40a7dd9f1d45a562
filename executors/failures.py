"""Which rank failed first, and of what, from what the processes left behind.

A rank that raised wrote a failure file, ranks that hung their stacks. A rank that was killed (a segmentation fault, the
out-of-memory killer) could not: its exit status speaks for it, or what torchrun or srun said of it. The earliest of
them is the cause; the rest are its victims.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from executors.base import Failure
from executors.hangs import find_hang, read_stacks
from launcher.worker import JobFiles

STARTED_AGAIN = "\n--- started again "  # job.sh's, of a Slurm job
TAIL_LINES = 20
TAIL_BYTES = 2**18  # what is read of a log, which may be larger than the memory
# torchrun's summary: "  rank      : 1 (local_rank: 1)" ... "  exitcode  : -11 (pid: 7)", and the first to fail last.
TORCHRUN_FAILURE = re.compile(r"rank\s*: (\d+) \(local_rank.*?exitcode\s*: (-?\d+) ", re.DOTALL)
TORCHRUN_ROOT_CAUSE = re.compile(r"Root Cause.*?\n.*?" + TORCHRUN_FAILURE.pattern, re.DOTALL)
SRUN = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (.+)$", re.MULTILINE)
NODE_FAILURE = re.compile(r"^srun: error: Node failure on (\S+)$", re.MULTILINE)
SIGNALS = {signal.strsignal(number): number for number in signal.valid_signals()}


@dataclass(frozen=True)
class Exit:
    """The end of one process. `rank` is None for torchrun's agent, which speaks for all of its ranks."""

    rank: int | None
    status: int
    time: float


def describe_exit(status: int) -> str:
    """Words for an exit status as `subprocess` gives it: negative is the number of a signal."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"killed by {name}" + (" (by kill -9, or for want of memory)" if -status == signal.SIGKILL else "")


def _end_of(path: Path) -> str:
    """The last TAIL_BYTES of a file; "" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""


def tail(path: Path) -> str:
    """The end of a log: from the interpreter's last words if it crashed, else the last lines."""
    text = _end_of(path)
    crash = text.rfind("Fatal Python error")
    return text[crash:] if crash >= 0 else "\n".join(text.splitlines()[-TAIL_LINES:])


def first_failure(files: JobFiles, exits: Sequence[Exit]) -> Failure | None:
    """The earliest failure of a task whose processes' ends were seen; None if nothing failed."""
    found = _told(files)
    heard = _heard(files)
    for end in exits:
        if end.status != 0 and end.rank is not None and end.rank not in heard:
            traceback = tail(files.stderr(end.rank)) or tail(files.launch_log)
            failure = Failure(rank=end.rank, cause=describe_exit(end.status), traceback=traceback)
            found.append((end.time, failure))
    agents = [end for end in exits if end.status != 0 and end.rank is None]
    if agents and (killed := _torchrun_failure(files, _end_of(files.launch_log), heard)):
        return killed
    if found:
        return min(found, key=lambda item: item[0])[1]
    for end in agents:
        return Failure(rank=None, cause=f"torchrun {describe_exit(end.status)}", traceback=tail(files.launch_log))
    return None


def job_failure(files: JobFiles, status: int, *, torchrun: bool | None = None) -> Failure:
    """Why a job failed whose processes srun started, and that ended with `status`: only what was written is known.

    torchrun: srun's tasks are its agents, and not the ranks. None: if it says so.
    """
    log, heard = _last_start(files), _heard(files)
    if torchrun is None:
        torchrun = "torch.distributed.elastic" in log
    said = [(node, _ranks(tasks), _describe_words(words)) for node, tasks, words in SRUN.findall(log)]
    if torchrun and (killed := _torchrun_failure(files, log, heard)):
        return killed
    if said and not torchrun:  # what it says first: it ends the others itself, and says so as well
        node, tasks, words = said[0]
        for rank in tasks:
            if rank not in heard:
                traceback = tail(files.stderr(rank)) or tail(files.launch_log)
                return Failure(rank=rank, cause=f"{words} on {node}", traceback=traceback)
    if found := _told(files):
        return min(found, key=lambda item: item[0])[1]
    cause = f"torchrun {said[0][2]} on {said[0][0]}" if said else f"the job {describe_exit(status)}"
    return Failure(rank=None, cause=cause, traceback=tail(files.launch_log))


def failed_nodes(files: JobFiles) -> list[str]:
    """Those that srun says have failed."""
    return NODE_FAILURE.findall(_last_start(files))


def _last_start(files: JobFiles) -> str:
    """What launch.log has of it; above it is what was said of earlier ones, which failed otherwise."""
    return _end_of(files.launch_log).rpartition(STARTED_AGAIN)[2]


def _told(files: JobFiles) -> list[tuple[float, Failure]]:
    """What the ranks themselves said, and when."""
    found: list[tuple[float, Failure]] = []
    for path in files.folder.glob("rank_*.failure.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        lines = report["message"].splitlines() or [""]
        cause = f"{report['type']}: {lines[0]}"
        failure = Failure(rank=report["rank"], cause=cause, traceback=report["traceback"])
        found.append((report["time"], failure))
    # A failure that came before the stacks is what the others then waited for; what came after followed from them.
    hang = find_hang(files)
    return [*found, hang] if hang else found


def _heard(files: JobFiles) -> set[int]:
    """The ranks that said something; an exit status says no more of them."""
    reported = {int(path.name.split(".")[0][5:]) for path in files.folder.glob("rank_*.failure.json")}
    return reported | {stacks.rank for stacks in read_stacks(files) if stacks.text}


def _torchrun_failure(files: JobFiles, log: str, heard: set[int]) -> Failure | None:
    """The rank that failed first as torchrun saw it, if it was heard of nowhere else.

    Where the first did say something, it may have been a victim of one that was killed in the same moment.
    """
    first = [TORCHRUN_ROOT_CAUSE.search(log)]
    killed = [
        cause for cause in TORCHRUN_FAILURE.finditer(log) if int(cause[2]) < 0 and int(cause[2]) != -signal.SIGTERM
    ]
    for cause in [*first, *killed]:
        if cause and int(cause[1]) not in heard:
            rank, status = int(cause[1]), int(cause[2])
            return Failure(rank=rank, cause=describe_exit(status), traceback=tail(files.stderr(rank)))
    return None


def _describe_words(words: str) -> str:
    """What srun says of a task's end, in our words: "Exited with exit code 9", "Segmentation fault (core dumped)"."""
    words = words.removesuffix(" (core dumped)")
    if code := re.fullmatch(r"Exited with exit code (\d+)", words):
        return describe_exit(int(code[1]))
    if words in SIGNALS:
        return describe_exit(-SIGNALS[words])
    return "killed for want of memory" if words == "Out Of Memory" else f"ended: {words}"


def _ranks(tasks: str) -> list[int]:
    """0-2,7 as numbers."""
    spans = [[int(end) for end in span.split("-")] for span in tasks.split(",")]
    return [rank for span in spans for rank in range(span[0], span[-1] + 1)]
