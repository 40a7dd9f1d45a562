"""What was asked, what ran, what happened: one folder an experiment, which is the truth and can be read with a pager.

    $GEMMA_LAUNCHER_HOME/experiments/<id>/
        experiment.json     id, title, when, its tasks
        <task>/             events.jsonl (one line a change of status), task.json, task.yaml, plan.json,
                            environment.json, metrics.jsonl, result.json, and each rank's files (worker.JobFiles)

A status is never kept, always read from the events: a launcher that was killed cannot leave a lie behind.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.base import Failure, Status
from experiments.logs import json_lines
from experiments.owner import Owner, alive, this_process
from launcher.errors import StoreError, nearest
from launcher.home import home
from launcher.worker import JobFiles, write_json

if TYPE_CHECKING:
    from experiments.index import Summary

VERSION = 1
EVENT_STATUS = {
    "queued": Status.QUEUED,
    "submitted": Status.QUEUED,
    "waiting": Status.QUEUED,  # the place says why
    "started": Status.RUNNING,
    "running": Status.RUNNING,  # the place says where
    "succeeded": Status.SUCCEEDED,
    "failed": Status.FAILED,
    "cancelled": Status.CANCELLED,
    "skipped": Status.SKIPPED,
    "retrying": Status.QUEUED,
}


def slug(text: str) -> str:
    """A folder name that says something of `text`, whatever is in it."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "experiment"


def new_id(title: str) -> str:
    """Readable, in order of time, and not given twice: "gemma3-sft-20261121-124313-3f9a1c"."""
    return f"{slug(title)}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}"


class TaskRecord:
    """One task of an experiment.

    needs: the tasks that must have succeeded before it starts. group: the tasks of one group run together. tail_logs:
    what it writes is shown while it runs.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        needs: Sequence[str] = (),
        group: str | None = None,
        tail_logs: bool = False,
    ) -> None:
        self.name = name
        self.folder = folder
        self.needs = tuple(needs)
        self.group = group
        self.tail_logs = tail_logs
        self.files = JobFiles(folder)

    def append(self, event: str, *, owner: Owner | None = None, **details: Any) -> Status:
        """Add one event, whole or not at all, and return what the task now is.

        owner: who looks after it from now on; None: this process.
        """
        line = json.dumps({"time": time.time(), "event": event, **details, "owner": owner or this_process()}) + "\n"
        path = self.folder / "events.jsonl"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, line.encode()) < len(line):
                os.ftruncate(descriptor, size)  # the next event must not continue the half of this one
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        finally:
            os.close(descriptor)
        return EVENT_STATUS[event]

    def set_aside(self, attempt: int) -> None:
        """Move what the ranks wrote in a failed attempt out of the way of the next."""
        folder = self.files.attempt(attempt)
        folder.mkdir(exist_ok=True)
        nodes = self.folder.glob("node_*.json")
        for path in [*self.folder.glob("rank_*"), *nodes, self.files.launch_log, self.files.result]:
            if path.exists():
                path.replace(folder / path.name)

    def events(self) -> list[dict[str, Any]]:
        """Every event so far, oldest first; a line that was being written when a launcher died is not one."""
        return json_lines(self.folder / "events.jsonl")[0]

    @property
    def status(self) -> Status:
        events = self.events()
        if not events:
            return Status.LOST
        status = EVENT_STATUS[events[-1]["event"]]
        return status if status.final or alive(events[-1]["owner"]) else Status.LOST

    @property
    def failure(self) -> Failure | None:
        """Why it failed, or was never started, where it did or was not."""
        last = (self.events() or [{"event": None}])[-1]
        if last["event"] not in ("failed", "skipped"):
            return None
        return Failure(rank=last.get("rank"), cause=last["cause"], traceback=last.get("traceback", ""))

    @property
    def detail(self) -> str:
        """What its place said of it last, on a line; "" if it says nothing."""
        for event in reversed(self.events()):
            if "detail" in event:
                return str(event["detail"])
        return ""

    @property
    def attempts(self) -> int:
        """How often it was started; more than once where it failed and was tried again."""
        started = [event for event in self.events() if event["event"] == "started"]
        return max([len(started), *(int(event.get("attempt", 0)) for event in started)])

    @property
    def attempt(self) -> int:
        """The one it is in, or waits for."""
        given_up = (int(event["attempt"]) for event in self.events() if event["event"] == "retrying")
        return max(1, self.attempts, 1 + max(given_up, default=0))

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl so far."""
        return json_lines(self.files.metrics)[0]

    def result(self) -> Any:
        """What rank 0 returned, where JSON could hold it; else None."""
        try:
            return json.loads(self.files.result.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None


@dataclass(frozen=True)
class ExperimentRecord:
    """An experiment's folder, read."""

    id: str
    title: str
    created: float  # unix seconds
    folder: Path
    tasks: tuple[TaskRecord, ...]
    sequential: bool = False
    """One task after another, whatever there is room for."""

    @property
    def status(self) -> Status:
        """The experiment as a whole: what still runs, else the worst that happened."""
        found = {task.status for task in self.tasks}
        order = (Status.RUNNING, Status.QUEUED, Status.FAILED, Status.LOST, Status.CANCELLED, Status.SKIPPED)
        return next((status for status in order if status in found), Status.SUCCEEDED)

    def task(self, name: str | None = None) -> TaskRecord:
        """The task of that name; without one, the first. Raises StoreError."""
        names = [task.name for task in self.tasks]
        if name is None:
            return self.tasks[0]
        if name not in names:
            raise StoreError(
                f"experiment {self.id} has no task {name!r}; it has {', '.join(names)}", hint=nearest(name, names)
            )
        return self.tasks[names.index(name)]


class Store:
    """All experiments under one folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.folder = (root or home()) / "experiments"

    def create(
        self, experiment_id: str, title: str, tasks: Sequence[dict[str, Any]], *, sequential: bool = False
    ) -> ExperimentRecord:
        """Make an experiment's folder; a task is its name, its folder's name, needs, group, tail_logs (see TaskRecord).

        Raises StoreError.
        """
        folder = self.folder / experiment_id
        try:
            folder.mkdir(parents=True)
            try:
                for task in tasks:
                    (folder / task["folder"]).mkdir()
                write_json(
                    folder / "experiment.json",
                    {
                        "version": VERSION,
                        "id": experiment_id,
                        "title": title,
                        "created": time.time(),
                        "sequential": sequential,
                        "tasks": tasks,
                    },
                )
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        except OSError as error:
            raise StoreError(
                f"the experiment's folder cannot be written: {error}", hint="GEMMA_LAUNCHER_HOME=<another folder>"
            ) from error
        return self.read(folder)

    def read(self, folder: Path) -> ExperimentRecord:
        """One experiment. Raises StoreError if it was written by a newer version, or is not an experiment."""
        path = folder / "experiment.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            version = found["version"]
            if version > VERSION:
                raise StoreError(
                    f"{path} is of version {version}; this launcher reads up to {VERSION}",
                    hint="pip install --upgrade gemma-launcher",
                )
            tasks = tuple(
                TaskRecord(
                    task["name"],
                    folder / task["folder"],
                    needs=task.get("needs", ()),
                    group=task.get("group"),
                    tail_logs=task.get("tail_logs", False),
                )
                for task in found["tasks"]
            )
            sequential = found.get("sequential", False)
            return ExperimentRecord(found["id"], found["title"], found["created"], folder, tasks, sequential)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} cannot be read: {error!r}") from error

    def get(self, experiment_id: str) -> ExperimentRecord:
        """The experiment of that id. Raises StoreError."""
        if re.fullmatch(r"[a-z0-9-]{1,80}", experiment_id) and (self.folder / experiment_id).is_dir():
            return self.read(self.folder / experiment_id)
        raise StoreError(
            f"there is no experiment of the id {experiment_id!r} in {self.folder}", hint="gemma-launch experiment list"
        )

    def find_title(self, title: str) -> ExperimentRecord:
        """The newest experiment of that title. Raises StoreError."""
        known = self.summaries()
        for summary in known:
            if summary.title == title:
                return self.read(self.folder / summary.id)
        raise StoreError(
            f"there is no experiment titled {title!r} in {self.folder}",
            hint=nearest(title, {summary.title for summary in known}) or "gemma-launch experiment list",
        )

    def all(self) -> Iterator[ExperimentRecord]:
        """Every experiment, newest first; what cannot be read is left out (`find` says why)."""
        for summary in self.summaries():
            with contextlib.suppress(StoreError):  # it was deleted meanwhile
                yield self.read(self.folder / summary.id)

    def summaries(self, limit: int | None = None) -> list[Summary]:
        """Every experiment on a line, newest first, or the newest `limit` of them; what cannot be read is left out."""
        from experiments.index import summaries

        return summaries(self.folder, self.folder.parent / "index.sqlite", self.read)[:limit]

    def find(self, query: str) -> ExperimentRecord:
        """The experiment of that id or title, or the newest whose id or title begins so. Raises StoreError."""
        if re.fullmatch(r"[a-z0-9-]{1,80}", query) and (self.folder / query / "experiment.json").exists():
            return self.read(self.folder / query)
        known = self.summaries() if query else []
        exact = (summary for summary in known if query in (summary.id, summary.title))
        begun = (summary for summary in known if summary.id.startswith(query) or summary.title.startswith(query))
        if (found := next(exact, None) or next(begun, None)) is not None:
            return self.read(self.folder / found.id)
        names = {name for summary in known for name in (summary.id, summary.title)}
        raise StoreError(
            f"there is no experiment {query!r} in {self.folder}",
            hint=nearest(query, names) or "gemma-launch experiment list",
        )
