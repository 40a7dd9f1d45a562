"""What runs inside a job: reads a task file, builds what it describes, calls it, and reports.

Started by path (`python .../launcher/worker.py task.json`), by an executor or by torchrun, on any machine that has
Python: the standard library alone, no package of ours, so it costs a rank tens of milliseconds. It owns two contracts
that the rest of the program reads: the names of the files in a job's folder (`JobFiles`), and how our JSON becomes
objects again (`Reader`).
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Python put this file's folder first, unless it was told not to; a user's own `import config` must not find ours.
    if sys.path[:1] == [__file__.rpartition("/")[0]]:
        del sys.path[0]

import contextlib
import functools
import importlib
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

TASK_VERSION: Final = 1
JOB_DIR: Final = "GEMMA_LAUNCHER_JOB_DIR"
EXPERIMENT_ID: Final = "GEMMA_LAUNCHER_EXPERIMENT_ID"
TASK_NAME: Final = "GEMMA_LAUNCHER_TASK_NAME"
PARENT: Final = "GEMMA_LAUNCHER_PARENT"
"""Pid of the process whose death must end this one; unset where a job outlives its launcher."""
STEP_TIMEOUT: Final = "GEMMA_LAUNCHER_STEP_TIMEOUT"
"""Minutes that a rank may take from one step to the next (see launcher.heartbeat); unset: for ever."""
RESULT_MOST: Final = 7_000_000  # characters of JSON; places bring back no file above 8 MB (see executors.mirror)
RESUME: Final = 75
"""Exit status of a rank that was asked to end, has saved, and wants to be started again (sysexits.h: EX_TEMPFAIL)."""
RESTART: Final = "GEMMA_LAUNCHER_RESTART"
"""How often this job has been started again, by its place or by the launcher: 0 in its first run."""
LOADING: Final = "GEMMA_LAUNCHER_LOADING"
"""Set while a launch script is being loaded by a job: a script without a __main__ guard would launch itself again."""
WORKSPACE: Final = "__launch_workspace__"
"""Set in the module of a workspace file, which stands in for a launch script where a command launches."""
SCRIPT_MODULE: Final = "launch_script"
"""The module name of a launch script inside a job. Not __main__, so that its guarded part does not run again."""


class JobFiles:
    """Every file of one task, by name."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = pathlib.Path(folder)
        self.task = self.folder / "task.json"
        self.secrets = self.folder / "secrets.json"
        self.script = self.folder / "script"
        """The text of an inline Script."""
        self.metrics = self.folder / "metrics.jsonl"
        self.result = self.folder / "result.json"
        self.environment = self.folder / "environment.json"
        self.cancel = self.folder / "cancel"
        """Somebody's wish that the task be ended; whoever looks after it sees to that."""
        self.stop = self.folder / "stop"
        """The place's wish that the ranks save and end, because their time is over; see RESUME."""
        self.saved = self.folder / "saved"
        """Written by rank 0 when all have saved for that: the step."""
        self.launch_log = self.folder / "launch.log"
        """What the processes wrote before their ranks had files of their own; all of torchrun's own output."""

    def stdout(self, rank: int) -> pathlib.Path:
        return self.folder / f"rank_{rank}.out"

    def stderr(self, rank: int) -> pathlib.Path:
        return self.folder / f"rank_{rank}.err"

    def stacks(self, rank: int) -> pathlib.Path:
        """Where a rank's threads were when it took too long for a step; empty as long as it has not."""
        return self.folder / f"rank_{rank}.stacks"

    def flight_record(self, rank: int) -> pathlib.Path:
        """The last collectives of such a rank."""
        return self.folder / f"rank_{rank}.collectives.json"

    def failure(self, rank: int) -> pathlib.Path:
        return self.folder / f"rank_{rank}.failure.json"

    def node(self, number: int) -> pathlib.Path:
        """How the processes of a node ended, where the node is a container (see launcher.ranks)."""
        return self.folder / f"node_{number}.json"

    def attempt(self, number: int) -> pathlib.Path:
        """The folder that takes the logs of an attempt that failed and was followed by another; 1 is the first."""
        return self.folder / f"attempt_{number}"


class Reader:
    """Turns one JSON document into objects. What is shared in the document is one object in the result."""

    def __init__(self, moved: dict[str, str] | None = None) -> None:
        """`moved`: files of the launcher's that lie elsewhere here."""
        self._moved = moved or {}
        self._shared: dict[int, Any] = {}

    def read(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.read(item) for item in node]
        if not isinstance(node, dict):
            return node
        for tag in node:
            if tag.startswith("$"):
                return self._TAGS[tag](self, node)
        return {key: self.read(value) for key, value in node.items()}

    def call(self, target: Any, args: list[Any], kwargs: dict[str, Any], *, partial: bool) -> Any:
        """What a Config or a Partial becomes; reading a configuration back overrides this."""
        return functools.partial(target, *args, **kwargs) if partial else target(*args, **kwargs)

    def target(self, ref: str | dict[str, str]) -> Any:
        """The function or class that `module:qualname`, or a file and a name, stands for."""
        if isinstance(ref, str):
            module_name, _, qualname = ref.partition(":")
            found: Any = importlib.import_module(module_name)
        else:
            found, qualname = self._script(self._moved.get(ref["file"], ref["file"])), ref["name"]
        for part in qualname.split("."):
            found = getattr(found, part)
        return found

    def _script(self, file: str) -> Any:
        for name in ("__main__", SCRIPT_MODULE):
            module = sys.modules.get(name)
            if module is not None and os.path.realpath(getattr(module, "__file__", None) or "") == file:
                return module
        import importlib.machinery
        import importlib.util

        loader = importlib.machinery.SourceFileLoader(SCRIPT_MODULE, file)  # whatever the file is called
        spec = importlib.util.spec_from_file_location(SCRIPT_MODULE, file, loader=loader)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[SCRIPT_MODULE] = module  # before it runs: its dataclasses look themselves up here
        os.environ[LOADING] = file
        try:
            spec.loader.exec_module(module)
        finally:
            del os.environ[LOADING]
        return module

    def _call(self, node: dict[str, Any]) -> Any:
        partial = "$partial" in node
        target = self.target(node["$partial" if partial else "$config"])
        args = [self.read(value) for value in node.get("positional", [])]
        kwargs = {name: self.read(value) for name, value in node["args"].items()}
        return self.call(target, args, kwargs, partial=partial)

    def _dtype(self, node: dict[str, Any]) -> Any:
        torch = importlib.import_module("torch")
        found = getattr(torch, node["$dtype"].removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"torch has no dtype {node['$dtype']}")
        return found

    def _share(self, node: dict[str, Any]) -> Any:
        value = self._shared[node["$id"]] = self.read(node["value"])
        return value

    _TAGS: Final[dict[str, Callable[[Reader, dict[str, Any]], Any]]] = {
        "$config": _call,
        "$partial": _call,
        "$id": _share,
        "$same": lambda self, node: self._shared[node["$same"]],
        "$ref": lambda self, node: self.target(node["$ref"]),
        "$float": lambda self, node: float(node["$float"]),
        "$path": lambda self, node: pathlib.Path(node["$path"]),
        "$tuple": lambda self, node: tuple(self.read(node["$tuple"])),
        "$set": lambda self, node: set(self.read(node["$set"])),
        "$frozenset": lambda self, node: frozenset(self.read(node["$frozenset"])),
        "$dict": lambda self, node: {self.read(key): self.read(value) for key, value in node["$dict"]},
        "$enum": lambda self, node: self.target(node["$enum"])[node["name"]],
        "$dtype": _dtype,
    }


def follow(parent: int) -> None:
    """End this process when `parent` ends, however it ends: a killed launcher must not leave ranks behind.

    Linux only; elsewhere a killed launcher's ranks run on, and its experiment is shown as lost.
    """
    if sys.platform != "linux":
        return
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write all of a file or none of it: a reader never sees half."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def installed() -> dict[str, str]:
    """Name and version of every installed distribution, from the folder names that installers write."""
    found = {}
    for folder in reversed(sys.path):
        try:
            entries = os.listdir(folder or ".")
        except OSError:
            continue
        for entry in entries:
            if entry.endswith(".dist-info") and "-" in entry[:-10]:
                name, version = entry[:-10].rsplit("-", 1)
                found[name.lower().replace("_", "-")] = version
    return dict(sorted(found.items()))


def describe_environment(task: dict[str, Any]) -> dict[str, Any]:
    """What this run ran in. The torch version is one of the packages: torch need not be imported to know it."""
    import platform
    import socket

    packages = installed()
    return {
        "version": 1,
        "time": time.time(),
        "hostname": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "folder": os.getcwd(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "torch": packages.get("torch"),
        "code": task.get("code"),
        "packages": packages,
    }


def redact(text: str, secrets: dict[str, str]) -> str:
    """The same text with every secret's value replaced by its name."""
    for name, value in secrets.items():
        if value:
            text = text.replace(value, f"({name})")
    return text


def report_failure(error: BaseException, files: JobFiles, rank: int, secrets: dict[str, str]) -> None:
    """Write the rank's failure, then show it on stderr. The worker's own frames are left out.

    An error of our own family explains itself: it is reported by its text, and its traceback stays in the log.
    """
    import traceback

    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename == __file__ and frame.tb_next is not None:
        frame = frame.tb_next
    text = redact("".join(traceback.format_exception(type(error), error, frame)), secrets)
    try:
        message = redact(str(error), secrets)
    except Exception as broken:
        message = f"(its text cannot be shown: {type(broken).__name__})"
    explained = any(
        (kind.__module__, kind.__name__) == ("launcher.errors", "LaunchError") for kind in type(error).__mro__
    )
    write_json(
        files.failure(rank),
        {
            "rank": rank,
            "time": time.time(),
            "type": type(error).__name__,
            "message": message,
            "traceback": message.partition("\n")[2] if explained else text,
        },
    )
    complain(text)


def complain(text: str) -> None:
    """Write to the rank's log, whatever the task has made of sys.stderr."""
    with contextlib.suppress(OSError), open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as log:
        log.write(text)


def keep_result(value: Any, files: JobFiles) -> None:
    """Write what the task returned, where JSON can hold it, and it is not more than what places bring back."""
    try:
        size = len(json.dumps(value))
        why = f"as JSON it has {size:,} characters, and may have {RESULT_MOST:,}" if size > RESULT_MOST else None
    except (TypeError, ValueError) as error:
        why = str(error)
    if why is None:
        write_json(files.result, value)
    else:
        complain(f"worker: the return value ({type(value).__name__}) is not kept: {why}\n")


def read_task(files: JobFiles) -> dict[str, Any]:
    """Raises ValueError for a task file of another version."""
    task: dict[str, Any] = json.loads(files.task.read_text(encoding="utf-8"))
    if task["version"] != TASK_VERSION:
        raise ValueError(f"{files.task} has version {task['version']}; this worker reads version {TASK_VERSION}")
    return task


def run_task(task: dict[str, Any], files: JobFiles, rank: int) -> None:
    """Build and call one task; a Script takes this process over, and its exit status is the process's.

    Raises whatever the task raises, and OSError where the task's folder or the program of a Script is not there.
    """
    os.chdir(task["folder"])
    if "argv" in task:
        become(task["argv"])
    value = Reader(task["moved"]).read(task["call"])
    if isinstance(value, functools.partial):
        value = value()
    if rank == 0:
        keep_result(value, files)


def import_from(path: list[str], moved: dict[str, str]) -> None:
    """Have modules come from where the launcher's came from, or from the copies that stand in for those folders.

    PYTHONPATH and the .pth files of `pip install --editable` name the folders themselves.
    """
    sys.path[:] = [moved.get(entry, entry) for entry in sys.path]
    # The launch script's folder first, as Python would have it; then what else the launcher could import from.
    first, *others = path
    sys.path[:0] = [first]
    sys.path += [entry for entry in others if entry not in sys.path]
    if moved:  # for the programs that the task starts, too
        named = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        copies = [entry for entry in others if entry in moved.values()]
        path = [*(moved.get(os.path.abspath(entry), entry) for entry in named), *copies]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))


def become(argv: list[str]) -> NoReturn:
    """Run a program instead of this one. What it imports or starts by name is found as the launcher would find it."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    if sys.prefix != sys.base_prefix:
        # As in an activated environment: `python`, `torchrun` in a shell line are this interpreter's.
        os.environ["PATH"] = os.pathsep.join(filter(None, [os.path.dirname(sys.executable), os.environ.get("PATH")]))
    import signal

    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these, and a program would inherit that
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(argv[0], argv)  # noqa: S606
    except OSError as error:
        raise OSError(error.errno, error.strerror, argv[0]) from None


def adopt_slurm() -> None:
    """Take this process's place among the ranks from srun, where it is one of srun's tasks and nobody else named it."""
    given = os.environ
    if "RANK" in given or "SLURM_PROCID" not in given:
        return
    ours = {
        "RANK": given["SLURM_PROCID"],
        "WORLD_SIZE": given.get("SLURM_STEP_NUM_TASKS") or given.get("SLURM_NTASKS", "1"),
        "LOCAL_RANK": given.get("SLURM_LOCALID", "0"),
        "NODE_RANK": given.get("SLURM_NODEID", "0"),
    }
    given.update(ours)
    tasks = given.get("SLURM_STEP_TASKS_PER_NODE") or given.get("SLURM_TASKS_PER_NODE")
    if "LOCAL_WORLD_SIZE" not in given and tasks:
        given["LOCAL_WORLD_SIZE"] = tasks_per_node(tasks)[int(ours["NODE_RANK"])]


def tasks_per_node(text: str) -> list[str]:
    """Slurm's "8(x2),4" as one number a node: 8, 8, 4."""
    found: list[str] = []
    for part in text.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        found += [count] * int(times or 1)
    return found


def main(path: str) -> int:
    """Run the task file at `path` as the rank that the environment names; the exit status is the return value."""
    adopt_slurm()
    files = JobFiles(os.path.dirname(os.path.abspath(path)))
    rank = int(os.environ.get("RANK", "0"))
    for stream, name in ((sys.stdout, files.stdout(rank)), (sys.stderr, files.stderr(rank))):
        # The descriptors themselves, so that C code and child processes write to the same files.
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(target, stream.fileno())
        os.close(target)
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    import faulthandler

    faulthandler.enable()  # a segmentation fault leaves its Python traceback in rank_<R>.err
    if parent := os.environ.pop(PARENT, None):
        follow(int(parent))
    secrets: dict[str, str] = {}
    try:
        task = read_task(files)
        if files.secrets.exists():
            secrets = json.loads(files.secrets.read_text(encoding="utf-8"))
        os.environ.update(secrets)
        os.environ[JOB_DIR] = str(files.folder)
        os.environ[EXPERIMENT_ID], os.environ[TASK_NAME] = task["experiment"], task["name"]
        if task.get("step_timeout"):
            os.environ[STEP_TIMEOUT] = str(task["step_timeout"])
        import_from(task["sys_path"], task.get("moved", {}))
        if rank == 0:
            write_json(files.environment, describe_environment(task))
        run_task(task, files, rank)
    except SystemExit as error:
        if error.code is None or error.code == 0:
            return 0
        if error.code == RESUME:
            return RESUME
        report_failure(error, files, rank, secrets)
        return (isinstance(error.code, int) and error.code & 0xFF) or 1  # of 256, a process would show 0
    except BaseException as error:  # KeyboardInterrupt as well: whatever ends a rank is reported
        report_failure(error, files, rank, secrets)
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--then":
        # Become another command (torchrun's agent), which follows the launcher as its ranks follow it.
        if PARENT in os.environ:
            follow(int(os.environ[PARENT]))
            os.environ[PARENT] = str(os.getpid())
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606
    sys.exit(main(sys.argv[1]))
