"""SubmititExecutor: for a launch script on a login node, jobs that submitit submits."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from executors.architecture import Architecture, local_architecture
from executors.base import Handle, JobState, Plan, Process, Task
from executors.files import bring_here
from executors.submitit.job import FOLDER, SETTINGS, start
from executors.watch import WatchedExecutor, watch_of
from launcher import worker
from launcher.errors import ExecutorError, nearest
from launcher.worker import JobFiles

if TYPE_CHECKING:
    from executors.submitit.cluster import SubmititJob, SubmititWatch
    from executors.submitit.here import HereJob

CLUSTERS = ("slurm", "local", "debug")
OURS = {
    "nodes": "nodes=...",
    "slurm_nodes": "nodes=...",
    "tasks_per_node": "ntasks_per_node=...",
    "slurm_ntasks_per_node": "ntasks_per_node=...",
    "timeout_min": "timeout_min=...",
    "slurm_time": "timeout_min=...",
    "name": "experiment.add(..., name='...')",
    "slurm_job_name": "experiment.add(..., name='...')",
    "slurm_use_srun": None,
}
"""Parameters of submitit's that have another home, and which."""
WHERE = ("SLURM_CONF", "SLURM_JWT")
"""Of Slurm's variables, those that say which cluster it is, and who asks."""
PICKLE = "task.pkl"
FOR_EVER = 60 * 24 * 365  # minutes; submitit's own limit on this machine is 2 of them
_environment = threading.Lock()
"""A job gets its variables from this process's own, which two threads would take from each other."""


@dataclass(kw_only=True)
class SubmititExecutor(WatchedExecutor):
    """Has submitit run a task, with the interpreter that launched it, where the state folder can be seen.

    cluster: "slurm": this is a login node. "local": processes on this machine, "debug": in turn with the launcher;
        both end when their launcher does.
    timeout_min: minutes that it may take; 2 before that it is asked to save and end. None: what the partition gives.
    parameters: submitit's own, by its names: mem_gb, cpus_per_task, gpus_per_node, slurm_partition, slurm_account, ...
    grace: seconds between SIGTERM and SIGKILL, on this machine.
    """

    cluster: Literal["slurm", "local", "debug"] = "slurm"
    timeout_min: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    grace: float = 10.0

    @property
    def outlives(self) -> bool:
        return self.cluster == "slurm"

    @property
    def place(self) -> Hashable:
        return ("submitit", self.cluster)

    def describe_place(self) -> str:
        return f"Slurm at {socket.gethostname()}" if self.outlives else super().describe_place()

    def inherited(self) -> Mapping[str, str]:
        return os.environ

    def architecture(self) -> Architecture | None:
        return super().architecture() or (None if self.outlives else local_architecture())

    def check(self) -> None:
        super().check()
        if self.cluster not in CLUSTERS:
            raise self._refuse("cluster", f"{self.cluster!r}", nearest(str(self.cluster), CLUSTERS))
        if importlib.util.find_spec("submitit") is None:
            raise ExecutorError(
                f"SubmititExecutor needs submitit, which {sys.executable} does not have",
                hint="pip install 'gemma-launcher[submitit]'",
            )
        if self.cluster == "slurm" and shutil.which("srun") is None:
            raise self._refuse(
                "cluster",
                "'slurm', and this machine has no srun: it is no login node",
                "run.SlurmExecutor(tunnel=run.SSHTunnel(...)) to reach one from here, or cluster='local'",
            )
        if self.cluster != "slurm" and self.nodes != 1:
            raise self._refuse("nodes", f"{self.nodes}, and cluster={self.cluster!r} has one", "nodes=1")
        if self.cluster == "debug" and self.ranks != 1:
            raise self._refuse("ntasks_per_node", f"{self.ranks}, and cluster='debug' runs one rank", "cluster='local'")
        if self.timeout_min is not None and (type(self.timeout_min) is not int or self.timeout_min < 1):
            raise self._refuse("timeout_min", f"{self.timeout_min!r}; it is a number of minutes", None)
        if not isinstance(self.grace, int | float) or self.grace < 0:
            raise self._refuse("grace", f"{self.grace!r}; it must be a number of seconds", None)
        self._check_parameters()

    def _check_parameters(self) -> None:
        if not isinstance(self.parameters, dict):
            raise self._refuse("parameters", f"{self.parameters!r}", "parameters={'mem_gb': 16}")
        import submitit

        known = {*submitit.AutoExecutor._valid_parameters()}
        for kind in (submitit.SlurmExecutor, submitit.LocalExecutor):
            known |= {f"{kind.name()}_{name}" for name in kind._valid_parameters()}
        for name, value in self.parameters.items():
            if name in OURS:
                raise self._refuse("parameters", f"given {name!r}, which has another home", OURS[name])
            if name not in known:
                raise self._refuse("parameters", f"given {name!r}, which submitit does not have", nearest(name, known))
            for text in _texts(value):
                if "\n" in text or "\0" in text:
                    raise self._refuse("parameters", f"given {name}={value!r}, with a line break in it", None)
        try:
            json.dumps(self.parameters)
            # Where it runs, submitit knows best what a value may be; it writes nothing here but for "local".
            where = "slurm" if self.cluster == "slurm" else "debug"
            self._submitit(Path(os.devnull), where, self._asked(Path(os.devnull)))
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise self._refuse("parameters", f"{self.parameters!r}: {error}", None) from None

    def _refuse(self, name: str, what: str, hint: str | None) -> ExecutorError:
        return ExecutorError(f"SubmititExecutor.{name} is {what}", where=self.where(name), hint=hint)

    def _asked(self, folder: Path) -> dict[str, Any]:
        """What submitit is asked for, by its names."""
        asked = {**self.parameters, "nodes": self.nodes, "tasks_per_node": self.ntasks_per_node}
        if self.cluster != "slurm":
            return {**asked, "timeout_min": self.timeout_min or FOR_EVER}
        log = str(JobFiles(folder).launch_log)  # takes what Slurm says of the job
        # submitit names the pickle when it knows the id: a job whose launcher is killed before that does it by itself.
        link = shlex.join(["ln", "-s", PICKLE, f"{folder / FOLDER}/"]) + '"$SLURM_JOB_ID"_submitted.pkl 2>/dev/null'
        return {
            "slurm_signal_delay_s": 120,
            **asked,
            "timeout_min": self.timeout_min,
            "slurm_setup": [link, *self.parameters.get("slurm_setup", [])],
            # A rank that fails ends the others, which would wait for it.
            "slurm_srun_args": ["--kill-on-bad-exit=1", *self.parameters.get("slurm_srun_args", [])],
            "slurm_additional_parameters": {
                "output": log,
                "error": log,
                **self.parameters.get("slurm_additional_parameters", {}),
            },
        }

    @staticmethod
    def _submitit(folder: Path, cluster: str, asked: Mapping[str, Any]) -> Any:
        import submitit

        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**asked)
        if cluster == "slurm" and asked["timeout_min"] is None:
            executor.parameters["time"] = None  # else submitit asks for 5 minutes
        return executor

    def plan(self, task: Task) -> Plan:
        self.check()
        if "%" in str(task.folder):
            raise ExecutorError(
                f"the state folder is {task.folder.parent}, in which submitit and Slurm would replace something",
                hint="GEMMA_LAUNCHER_HOME=<a path without %>",
            )
        env, secrets = self.environment(task)
        copy = None if task.package is None else task.folder.parent / task.copy
        own = JobFiles(task.folder)
        asked = {"cluster": self.cluster, "parameters": self._asked(task.folder), "variables": env}
        spec = task.spec(folder=task.folder, copy=copy, python=sys.executable)
        files = {"task.json": json.dumps(spec, indent=1) + "\n", SETTINGS: json.dumps(asked, indent=1) + "\n"}
        if task.script is not None and task.script.inline:
            files["script"] = task.script.inline
        return Plan(
            name=task.name,
            folder=task.folder,
            files=files,
            processes=(Process(argv=(sys.executable, worker.__file__, str(own.task)), env={}),),
            env=env,
            secrets=secrets,
            nodes=self.nodes,
            ntasks_per_node=self.ntasks_per_node,
            group=task.group,
            package=task.package,
            copy=copy,
            job=f"{task.folder.name}.{task.experiment}",
            shown=(SETTINGS,),
        )

    def prepare(self, plans: Sequence[Plan]) -> list[str]:
        bring_here(plans)
        return []

    def submit(self, plans: Sequence[Plan], wake: Callable[[], None]) -> list[Handle]:
        from executors.submitit import cluster
        from executors.submitit.here import HereJob

        for plan in plans:
            cluster.forget(plan)
        if not self.outlives:
            return [HereJob(plan, self._send(plan), self.grace, wake) for plan in plans]
        return super().submit(plans, wake)

    def _send(self, plan: Plan, **more: Any) -> Any:
        """submitit's job."""
        from submitit.helpers import DelayedSubmission, clean_env, environment_variables

        asked = json.loads((plan.folder / SETTINGS).read_text(encoding="utf-8"))
        task_file = str(JobFiles(plan.folder).task)
        (plan.folder / FOLDER).mkdir(exist_ok=True)
        DelayedSubmission(start, task_file).dump(plan.folder / FOLDER / PICKLE)
        executor = self._submitit(plan.folder / FOLDER, asked["cluster"], {**asked["parameters"], **more})
        given = {name: os.environ[name] for name in WHERE if name in os.environ}
        if not self.outlives:
            given[worker.PARENT] = str(os.getpid())
        # In a job, that job's own variables would say what this one gets.
        with _environment, clean_env(), environment_variables(**given):
            return executor.submit(start, task_file)

    def _send_to_cluster(self, plan: Plan, name: str) -> int:
        return int(self._send(plan, name=name).job_id)

    def attach(self, plans: Sequence[Plan], wake: Callable[[], None]) -> list[Handle | None]:
        return super().attach(plans, wake) if self.outlives else [None] * len(plans)

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        return super().poll(handles) if self.outlives else [_here(handle).state for handle in handles]

    def cancel(self, handles: Sequence[Handle], *, now: bool = False) -> None:
        if self.outlives:
            super().cancel(handles, now=now)
        else:
            for handle in handles:
                _here(handle).cancel(now=now)

    def clean(self, plan: Plan) -> None:
        JobFiles(plan.folder).secrets.unlink(missing_ok=True)

    def end_strays(self, plan: Plan) -> None:
        if self.outlives:
            self._watch().scancel(plan, now=False)
        else:
            from executors.processes import end_strays

            end_strays(plan.folder)
        self.clean(plan)

    def _watch(self) -> SubmititWatch:
        from executors.submitit.cluster import SubmititWatch
        from executors.tunnel import LocalTunnel
        from launcher.home import home

        return watch_of(self.place, lambda: SubmititWatch(LocalTunnel(job_dir=str(home()))))

    def _handle(self, plan: Plan, wake: Callable[[], None]) -> SubmititJob:
        from executors.submitit.cluster import SubmititJob

        return SubmititJob(plan, self._send_to_cluster, wake)


def _here(handle: Handle) -> HereJob:
    from executors.submitit.here import HereJob

    if not isinstance(handle, HereJob):
        raise TypeError(f"{type(handle).__name__} is not a handle of SubmititExecutor")
    return handle


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, names too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in (*value, *value.values()):
            yield from _texts(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _texts(item)
