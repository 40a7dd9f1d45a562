"""Looks after this process's tasks on one engine, for all of them at once."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from executors.base import Failure, JobState, Plan, Status
from executors.docker import delivery, files
from executors.docker.containers import ATTEMPT, EXPERIMENT, GPUS, NODE, TASK, folder, labels
from executors.docker.engine import Engine
from executors.docker.states import End, running, state_of
from executors.docker.turns import Turn
from executors.watch import Watch, Watched
from launcher.errors import ExecutorError, LaunchError, TunnelError
from launcher.worker import write_json

if TYPE_CHECKING:
    from docker import DockerClient
    from executors.docker.executor import DockerExecutor

PAUSE: Final = 0.5  # seconds between two questions to the engine
QUICK, SLOW = 1.0, 5.0  # seconds between two looks at the files of a task that is followed, and of another
GRACE: Final = 12.0  # seconds that a container has to end in; its first process takes fewer for its ranks
LONGEST: Final = 15.0  # seconds between two attempts to reach an engine that is away
PATIENCE: Final = 60.0  # seconds that an engine may refuse to tell how a task ended, as one does that is being stopped
LOG_LINES: Final = 20
LIVE: Final = ("running", "paused", "restarting", "removing")

Row = dict[str, Any]
"""What the engine lists of a container."""


class DockerJob(Watched):
    """A plan on its way through an engine, in one of its attempts."""

    def __init__(self, plan: Plan, executor: DockerExecutor, wake: Callable[[], None]) -> None:
        super().__init__(plan, wake)
        self.executor = executor
        self.attempt = 1 + len(list(plan.folder.glob("attempt_*")))
        self.started = False
        self.away = False  # the engine was, since it started
        self.now = False  # its end has no time
        self.ending: float | None = None  # since when its containers are to end
        self.signal = ""  # what they were sent
        self.looked = 0.0
        self.refused: float | None = None  # since when the engine does not give how it ended

    @property
    def key(self) -> tuple[str, str, str]:
        task, _, experiment = self.plan.job.partition(".")
        return experiment, task, str(self.attempt)

    @property
    def outcome(self) -> Path:
        """How this attempt ended. Written before its containers go, so that whoever finds none knows."""
        return self.plan.folder / f"ended_{self.attempt}.json"

    @property
    def asked(self) -> Path:
        """There once somebody has asked for this attempt's end: whoever sees that come must know it for no failure."""
        return self.plan.folder / f"cancelled_{self.attempt}"

    @property
    def cancelled(self) -> bool:
        return self.asked.exists()


class DockerWatch(Watch[DockerJob]):
    """The tasks that this process knows of on an engine."""

    pause = PAUSE
    longest = LONGEST

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.host)
        self.engine = engine
        self._turn = Turn(engine)

    def attach(self, jobs: Sequence[DockerJob]) -> list[DockerJob]:
        """Those that were started, with how they stand. Raises LaunchError."""
        rows = self._rows()
        found = []
        for handle in jobs:
            own = rows.get(handle.key, [])
            if handle.outcome.exists() or any(row["State"] != "created" for row in own):
                handle.started = all(row["State"] != "created" for row in own)
                found.append(handle)
                if not handle.started and not handle.outcome.exists() and not handle.cancelled:
                    self._begin(handle)  # its launcher was killed amidst that, and the others wait for these
                    own = self._rows().get(handle.key, [])
                self._end(handle, own)  # here, too: who looks once, and goes, is not to leave them waiting for one
                self._note(handle, own)
        with self._guard:
            self._jobs.extend(handle for handle in found if not handle.ended)
        return found

    def cancel(self, jobs: Sequence[DockerJob], *, now: bool) -> None:
        for handle in jobs:
            handle.now = handle.now or now
            handle.asked.touch()
        self._soon()

    def fetch(self, jobs: Sequence[DockerJob], rank: int | None) -> None:
        """What is new of their files. Raises LaunchError."""
        rows = self._rows()
        names = files.LOGS if rank is None else re.compile(rf"rank_{rank}\.(out|err)")
        for handle in jobs:
            self._look(handle, rows.get(handle.key, []), names)

    def _rest(self, live: Sequence[DockerJob]) -> float:
        return PAUSE

    def _missed(self, live: Sequence[DockerJob], why: str) -> None:
        for handle in live:
            handle.away = True
        super()._missed(live, why)

    def _round(self, live: Sequence[DockerJob]) -> None:
        for handle in live:
            if not handle.started and not handle.cancelled:
                self._begin_when_it_may(handle)
        rows = self._rows()
        for handle in live:
            if not handle.plan.folder.is_dir():  # somebody has deleted it: the others are not to wait for that
                handle.set(JobState(status=Status.LOST))
            if not handle.ended:
                own = rows.get(handle.key, [])
                try:
                    self._end(handle, own)
                    self._note(handle, own)
                except TunnelError:
                    raise
                except LaunchError as error:  # this one is refused something: the others go on
                    why = str(error).splitlines()[0]
                    handle.set(replace(handle.state, detail=f"{why}; trying again"))

    def _begin_when_it_may(self, handle: DockerJob) -> None:
        if not handle.plan.gpus:
            self._begin(handle)
        elif not self._waits(handle):
            with self._turn.taken(labels(handle.plan.job, handle.executor.store)) as ours:
                if ours and not self._waits(handle):
                    self._begin(handle)

    def _waits(self, handle: DockerJob) -> bool:
        """Whether another task has GPUs that it is to have."""
        wanted = {str(gpu) for gpu in range(handle.plan.gpus)}
        for (experiment, task, _), rows in self._rows().items():
            if (experiment, task) == handle.key[:2]:  # the engine may have gone when some of its nodes had started
                continue
            held = {gpu for row in rows if row["State"] in LIVE for gpu in row["Labels"].get(GPUS, "").split()}
            if not held.isdisjoint(wanted):
                handle.set(replace(handle.state, detail=f"waits for its GPUs, which {task} of {experiment} has"))
                return True
        return False

    def _begin(self, handle: DockerJob) -> None:
        """Have its containers run: those of a further attempt are made first."""
        try:
            if handle.attempt > 1:
                delivery.again(self.engine, handle.executor, handle.plan, handle.attempt)
            with self.engine.asked("its containers") as client:
                found = delivery.find(client, handle.plan.job)
                if len(found) < handle.plan.nodes:
                    raise ExecutorError(f"the containers of task {handle.plan.name!r} were removed before it started")
                for container in sorted(found, key=lambda container: container.labels[NODE]):
                    if container.status == "created":
                        container.start()
        except ExecutorError as error:
            delivery.remove(self.engine, handle.plan.job)
            self._settle(handle, JobState(status=Status.FAILED, failure=Failure(rank=None, cause=str(error))))
        else:
            handle.started = True

    def _rows(self) -> dict[tuple[str, str, str], list[Row]]:
        """All containers of ours, by experiment, task and attempt: one question, whatever their number."""
        with self.engine.asked("its containers") as client:
            listed: list[Row] = client.api.containers(all=True, filters={"label": [EXPERIMENT, TASK, NODE, ATTEMPT]})
        found: dict[tuple[str, str, str], list[Row]] = {}
        for row in sorted(filter(_is_a_tasks, listed), key=lambda row: int(row["Labels"][NODE])):
            known = row["Labels"]
            found.setdefault((known[EXPERIMENT], known[TASK], known[ATTEMPT]), []).append(row)
        return found

    def _end(self, handle: DockerJob, rows: Sequence[Row]) -> None:
        """Have its containers end, if somebody asked for it, or one of them has failed."""
        live = [row for row in rows if row["State"] in LIVE]
        if not live or not (handle.cancelled or any(_failed(row) for row in rows)):
            return
        handle.ending = handle.ending or time.monotonic()
        late = time.monotonic() - handle.ending > GRACE
        signal = "SIGKILL" if handle.now or late else "SIGTERM"
        if signal != handle.signal:
            handle.signal = signal
            with self.engine.asked(f"task {handle.plan.name!r}") as client:
                for row in live:
                    with _unless_it_ended():
                        client.api.kill(row["Id"], signal)

    def _note(self, handle: DockerJob, rows: Sequence[Row]) -> None:
        """What can be said of a task now."""
        if handle.outcome.exists():
            handle.set(_read(handle.outcome))
        elif any(row["State"] in LIVE for row in rows):
            every = QUICK if handle.plan.follow else SLOW
            if time.monotonic() - handle.looked >= every:
                handle.looked = time.monotonic()
                self._look(handle, rows, files.LOGS if handle.plan.follow else files.SMALL)
            if handle.started:
                handle.set(running([_name(row) for row in rows]))
        elif handle.cancelled and (not handle.started or not rows):
            self._settle(handle, JobState(status=Status.CANCELLED))
        elif handle.started and len(rows) < handle.plan.nodes:
            cause = "its containers were removed, by somebody else"
            self._settle(handle, JobState(status=Status.FAILED, failure=Failure(rank=None, cause=cause)))
        elif handle.started:
            try:
                state = state_of(handle.plan, self._ends(handle, rows), away=handle.away)
            except ExecutorError as error:  # its volume is broken, perhaps: an end that nobody can tell is one, too
                handle.refused = handle.refused or time.monotonic()
                if time.monotonic() - handle.refused < PATIENCE and not handle.cancelled:
                    raise
                state = JobState(status=Status.FAILED, failure=Failure(rank=None, cause=str(error)))
            if handle.cancelled:
                state = JobState(status=Status.CANCELLED)
            self._settle(handle, state)

    def _ends(self, handle: DockerJob, rows: Sequence[Row]) -> list[End]:
        """How its containers ended, with all that they left brought here."""
        found = []
        with self.engine.asked(f"task {handle.plan.name!r}") as client:
            self._look(handle, rows, files.ALL)
            for row in rows:
                state = client.api.inspect_container(row["Id"])["State"]
                end = End(
                    name=_name(row),
                    node=int(row["Labels"][NODE]),
                    code=int(state["ExitCode"]),
                    oom=bool(state.get("OOMKilled")),
                    error=str(state.get("Error") or ""),
                    log=_log(client, row),
                )
                found.append(end)
        return found

    def _look(self, handle: DockerJob, rows: Sequence[Row], names: re.Pattern[str]) -> None:
        """Bring what is new of its files: all its containers share them."""
        there, here = folder(handle.plan, handle.attempt), handle.plan.folder
        with self.engine.asked(f"the files of task {handle.plan.name!r}") as client, _unless_it_ended():
            live = [row for row in rows if row["State"] == "running"]
            if live:
                files.follow(client.containers.get(live[0]["Id"]), handle.executor.python, there, here, names)
            elif rows and rows[0]["State"] != "created":
                files.bring_all(client.containers.get(rows[0]["Id"]), there, here)

    def _settle(self, handle: DockerJob, state: JobState) -> None:
        failure = None if state.failure is None else asdict(state.failure)
        write_json(handle.outcome, {"status": state.status.value, "failure": failure})
        handle.set(state)


def _read(outcome: Path) -> JobState:
    found = json.loads(outcome.read_text(encoding="utf-8"))
    failure = None if found["failure"] is None else Failure(**found["failure"])
    return JobState(status=Status(found["status"]), failure=failure)


def _log(client: DockerClient, row: Row) -> str:
    """The end of what its first process said; an engine's log driver may keep nothing."""
    from docker.errors import APIError

    try:
        return client.api.logs(row["Id"], tail=LOG_LINES).decode(errors="replace").strip()
    except APIError:
        return ""


def _name(row: Row) -> str:
    return str(row["Names"][0]).removeprefix("/")


def _is_a_tasks(row: Row) -> bool:
    """A container of an image that was made of one has its labels, too (see delivery.find)."""
    return _name(row).startswith(f"{row['Labels'][TASK]}.{row['Labels'][EXPERIMENT]}.")


def _failed(row: Row) -> bool:
    """Its exit code is in words alone: "Exited (137) 3 seconds ago"."""
    return row["State"] in ("exited", "dead") and "Exited (0)" not in row["Status"]


@contextlib.contextmanager
def _unless_it_ended() -> Iterator[None]:
    """What is asked of a container that has ended meanwhile is refused, and is no error."""
    from docker.errors import APIError

    try:
        yield
    except APIError as error:
        if error.status_code not in (404, 409):
            raise
