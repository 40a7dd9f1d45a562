"""SlurmExecutor: a task is a job of a Slurm cluster, which goes on without its launcher."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from executors.architecture import GPUS, Architecture
from executors.base import Executor, Plan, Task
from executors.secrets import split_secrets
from executors.slurm import options
from executors.slurm.options import check_choice, check_count, check_text, check_texts, refuse
from executors.slurm.script import Raw, environment, render
from executors.tunnel import Tunnel
from executors.watch import WatchedExecutor, watch_of
from launcher.errors import TunnelError, nearest
from launcher.worker import JobFiles

if TYPE_CHECKING:
    from executors.slurm.submission import Job
    from executors.slurm.watch import SlurmJob, SlurmWatch

WARNING = "USR1@120"
"""What a job that may be started again gets without asking: two minutes to save."""


@dataclass(kw_only=True)
class SlurmExecutor(WatchedExecutor):
    """Runs a task as a Slurm job.

    Attributes are called as sbatch's options, and mean the same; None leaves one out. What differs:

    ntasks_per_node: processes on each node, also where torchrun starts them.
    cpus_per_task, gpus_per_task: for each of those processes. All of a node's see all of its GPUs, as NCCL needs it.
    signal: sent so long before the time limit; the ranks then save at their next step, and the job is queued again.
        None: USR1@120 where there are retries, and none otherwise.
    retries: how often a job is started again after a failure, its time limit, or a node's failure.
    dependency_type: how a task waits for those that it needs; of sbatch's, "afterok" and its like.
    container_image, container_mounts ("/from:/to"), container_workdir, container_env: Pyxis's options of srun; job_dir
        is mounted in any case, and our own variables win over the image's.
    srun_args: more options of srun, each an item.
    additional_parameters: more options of sbatch, by name; True for one without a value.
    setup_lines: lines of shell that the first node runs before the task (`module load cuda`), as they are; one that
        fails ends it.
    launcher: None has srun start each process; "torchrun" has it start torchrun's agent on each node.
    python: the interpreter there; a name is looked up after the setup_lines.
    tunnel: how to reach the cluster, SSHTunnel or, on a login node, LocalTunnel.
    """

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time: str | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    gpus_per_task: int | None = None
    gres: str | None = None
    mem: str | None = None
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None
    exclusive: bool | str = False
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    reservation: str | None = None
    array: str | None = None
    signal: str | None = None
    segment: int | None = None
    dependency_type: str = "afterok"
    container_image: str | None = None
    container_mounts: list[str] = field(default_factory=list)
    container_workdir: str | None = None
    container_env: list[str] = field(default_factory=list)
    srun_args: list[str] = field(default_factory=list)
    setup_lines: list[str] = field(default_factory=list)
    additional_parameters: dict[str, str | int | bool] = field(default_factory=dict)
    launcher: Literal["torchrun"] | None = None
    tunnel: Tunnel | None = None
    python: str = "python3"

    elsewhere: ClassVar[bool] = True
    retries_itself: ClassVar[bool] = True

    @property
    def place(self) -> Hashable:
        return ("slurm", self._reach().whereabouts, self._reach().job_dir)

    @property
    def same_folders(self) -> bool:
        return self._reach().whereabouts == "here" and self.container_image is None

    def follows(self, other: Executor) -> bool:
        return self.place == other.place

    def check(self) -> None:
        super().check()
        self._reach()
        for name in options.PATTERNS:
            if (value := getattr(self, name)) is not None:
                check_text(self, name, value)
        for name, least in (("cpus_per_task", 1), ("gpus_per_node", 0), ("gpus_per_task", 0), ("segment", 1)):
            if (value := getattr(self, name)) is not None:
                check_count(self, name, value, least)
        if not isinstance(self.exclusive, bool):
            check_choice(self, "exclusive", self.exclusive, options.EXCLUSIVE)
        check_choice(self, "dependency_type", self.dependency_type, options.DEPENDENCIES)
        if self.launcher is not None:
            check_choice(self, "launcher", self.launcher, options.LAUNCHERS)
        options.check_argument(self, "python", self.python)
        options.check_parameters(self, self.additional_parameters)
        options.check_step(self, self.srun_args)
        options.check_names(self, "env_vars", split_secrets(self.env_vars)[0])
        for index, text in enumerate(
            check_texts(self, "setup_lines", self.setup_lines, "setup_lines=['module load cuda']")
        ):
            options.check_line(self, "setup_lines", text, f"setup_lines[{index}]")
        self._check_together()
        self._check_container()

    def _reach(self) -> Tunnel:
        """The tunnel. Raises ExecutorError where there is none, TunnelError for one that cannot be."""
        if not isinstance(self.tunnel, Tunnel):
            raise refuse(
                self,
                "tunnel",
                f"tunnel is {self.tunnel!r}: there is no way to the cluster",
                "tunnel=run.SSHTunnel(host='login.cluster.example', user='alice', job_dir='/home/alice/jobs')",
            )
        self.tunnel.check()
        if re.search(r"[%\\]", self.tunnel.job_dir) or not self.tunnel.job_dir.isprintable():
            what = f"tunnel.job_dir is {self.tunnel.job_dir!r}, in which Slurm would replace something"
            raise refuse(self, "tunnel", what, "a path without % and \\")
        return self.tunnel

    def _check_together(self) -> None:
        memory = [name for name in ("mem", "mem_per_gpu", "mem_per_cpu") if getattr(self, name) is not None]
        if len(memory) > 1:
            raise refuse(self, memory[1], f"{memory[1]} and {memory[0]} exclude each other", f"{memory[1]}=None")
        asked = {name: count for name, count in self._gpus().items() if count is not None}
        (first, count), *others = asked.items() or [("", 0)]
        for name, other in others:
            if other != count:
                raise refuse(
                    self, name, f"{name} asks for {other} GPUs a node, and {first} for {count}", f"{name}=None"
                )
        if self.mem_per_gpu is not None and not any(asked.values()) and not self._asks_for("gpus"):
            raise refuse(
                self,
                "mem_per_gpu",
                "mem_per_gpu is set, and no GPU is asked for",
                f"gpus_per_node={self.ntasks_per_node}",
            )
        if self.segment is not None and self.nodes % self.segment:
            raise refuse(
                self, "segment", f"segment is {self.segment}, which {self.nodes} nodes are no multiple of", None
            )
        if self.signal is not None:
            try:
                options.warning(self.signal)
            except ValueError as error:
                hint = nearest(str(error), options.SIGNALS) or "signal='USR1@120'"
                valid = ", ".join(options.SIGNALS)
                raise refuse(self, "signal", f"signal is {self.signal!r}; one that warns is {valid}", hint) from None

    def _asks_for(self, option: str) -> bool:
        return any(options.option(name).startswith(option) for name in self.additional_parameters)

    def _gpus(self) -> dict[str, int | None]:
        """GPUs of each node, by the attribute that asks for them."""
        return {
            "gpus_per_node": self.gpus_per_node,
            "gres": None if self.gres is None else options.gpus_of(self.gres)[1],
            "gpus_per_task": None if self.gpus_per_task is None else self.gpus_per_task * self.ntasks_per_node,
        }

    def _check_container(self) -> None:
        mounts = check_texts(self, "container_mounts", self.container_mounts, "container_mounts=['/data:/data:ro']")
        for index, mount in enumerate(mounts):
            parts = mount.split(":")
            if "," in mount or len(parts) > 3 or not all(part.startswith("/") for part in parts[:2]):
                raise refuse(
                    self,
                    "container_mounts",
                    f"container_mounts[{index}] is {mount!r}; it is two absolute paths, without a comma",
                    "'/on/the/node:/in/the/container', or '/a:/b:ro'",
                )
        names = check_texts(self, "container_env", self.container_env, "container_env=['NCCL_DEBUG']")
        options.check_names(self, "container_env", names)
        if self.container_workdir is not None:
            options.check_argument(self, "container_workdir", self.container_workdir)
            if not self.container_workdir.startswith("/"):
                raise refuse(
                    self, "container_workdir", f"container_workdir is {self.container_workdir!r}", "an absolute path"
                )
        if self.container_image is None:
            for name in ("container_mounts", "container_workdir", "container_env"):
                if getattr(self, name):
                    raise refuse(self, name, f"{name} is set, and container_image is not", "container_image='...'")
            return
        options.check_argument(self, "container_image", self.container_image)
        job_dir = self._reach().job_dir
        if "," in job_dir or ":" in job_dir:
            raise refuse(self, "tunnel", f"tunnel.job_dir is {job_dir!r}, which no container can mount", "no , or :")

    def architecture(self) -> Architecture | None:
        found = super().architecture()
        if found is None and isinstance(self.gres, str) and re.fullmatch(options.PATTERNS["gres"][0], self.gres):
            words = re.split(r"[_-]", (options.gpus_of(self.gres)[0] or "").lower())
            found = next((GPUS[word] for word in words if word in GPUS), None)
        return found

    def plan(self, task: Task) -> Plan:
        from executors.archive import own_package

        self.check()
        env, secrets = self.environment(task)
        options.check_names(self, "env_vars", env)
        top = Path(self._reach().job_dir)
        remote = top / "experiments" / task.experiment / task.folder.name
        copy = None if task.package is None else remote.parent / task.copy
        ours = top / "packages" / own_package().digest
        spec = task.spec(folder=remote, copy=copy, python=self.python, ours=ours)
        if self.container_workdir is not None:  # srun starts the worker there, and the worker the task
            spec["folder"] = self.container_workdir
        job = f"{task.folder.name}.{task.experiment}"
        env = {**env, "LOCAL_WORLD_SIZE": str(self.ntasks_per_node)}
        files = {
            "task.json": json.dumps(spec, indent=1) + "\n",
            "job.sh": self._script(task, job, remote, str(ours / "launcher" / "worker.py"), env),
            "environment.sh": environment(env),
        }
        if task.script is not None and task.script.inline:
            files["script"] = task.script.inline
        return Plan(
            name=task.name,
            folder=task.folder,
            files=files,
            processes=(),
            env=env,
            secrets=secrets,
            nodes=self.nodes,
            ntasks_per_node=self.ntasks_per_node,
            group=task.group,
            after=task.after,
            dependency=self.dependency_type,
            package=task.package,
            copy=copy,
            remote=remote,
            job=job,
            shown=("job.sh",),
        )

    def _script(self, task: Task, job: str, remote: Path, worker: str, env: Mapping[str, str]) -> str:
        about = [f"Task {task.name!r} of experiment {task.experiment}, made by gemma-launcher."]
        if task.after:
            about.append(f"Waits ({self.dependency_type}) for {', '.join(task.after)}; sbatch is given their job ids.")
        given = self.signal or (WARNING if self.retries else None)
        warning, signal = options.warning(given) if given else (None, None)
        return render(
            options={**self._options(), "job_name": job, "signal": signal, **self._files()},
            about="\n# ".join(about),
            folder=remote,
            array=self.array is not None,
            retries=self.retries,
            warning=warning,
            setup=[*self._steps(), *(["set -e", *self.setup_lines, "set +e"] if self.setup_lines else [])],
            srun=self._srun(env),
            command=self._command(worker),
        )

    def _options(self) -> dict[str, Any]:
        plain = ("account", "partition", "qos", "time", "nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_task")
        more = ("mem", "mem_per_gpu", "mem_per_cpu", "exclusive", "constraint", "nodelist", "exclude", "reservation")
        found = {name: getattr(self, name) for name in (*plain, "gres", *more, "array", "segment")}
        if found["gres"] is None or options.gpus_of(found["gres"])[1] is None:  # asked for once
            found["gpus_per_node"] = self.gpus_per_node or None
        found["gpus_per_task"] = found["gpus_per_task"] or None
        return {**found, **self.additional_parameters}

    def _files(self) -> dict[str, Any]:
        started = {"requeue": True} if self.retries else {"no_requeue": True}
        return {**started, "output": JobFiles("").launch_log.name, "open_mode": "append", "export": "NONE"}

    def _steps(self) -> list[str]:
        """What srun does not take from the job by itself, or must not."""
        lines = []
        if self.cpus_per_task is not None:
            each = self.cpus_per_task * (self.ntasks_per_node if self.launcher else 1)
            lines.append(f"export SRUN_CPUS_PER_TASK={each}")
        if self.gpus_per_task:
            lines.append("unset SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK # NCCL needs to see all GPUs of the node")
        return lines

    def _srun(self, env: Mapping[str, str]) -> list[str]:
        each = 1 if self.launcher else self.ntasks_per_node
        words = [f"--nodes={self.nodes}", f"--ntasks={self.nodes * each}", f"--ntasks-per-node={each}"]
        words.append("--kill-on-bad-exit=1")
        if self.container_image is not None:
            top = self._reach().job_dir
            words.append(f"--container-image={self.container_image}")
            words.append("--container-mounts=" + ",".join([f"{top}:{top}", *map(_mount, self.container_mounts)]))
            if self.container_workdir is not None:
                words.append(f"--container-workdir={self.container_workdir}")
            ours = ("GEMMA_LAUNCHER_RESTART", "MASTER_ADDR", "MASTER_PORT")
            words.append("--container-env=" + ",".join(dict.fromkeys([*env, *ours, *self.container_env])))
        return [*words, *self.srun_args, "--"]

    def _command(self, worker: str) -> list[str]:
        task_file = Raw('"$PWD/task.json"')
        if self.launcher is None:
            return [self.python, worker, task_file]
        return [
            self.python,
            "-m",
            "torch.distributed.run",
            f"--nnodes={self.nodes}",
            f"--nproc-per-node={self.ntasks_per_node}",
            "--rdzv-backend=c10d",
            Raw('--rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"'),
            Raw('--rdzv-id="$SLURM_JOB_ID.$GEMMA_LAUNCHER_RESTART"'),
            worker,
            task_file,
        ]

    def describe_place(self) -> str:
        return self._reach().name

    def prepare(self, plans: Sequence[Plan]) -> list[str]:
        from executors.slurm.delivery import deliver

        return deliver(self._reach(), plans)

    def fetch(self, plans: Sequence[Plan], *, rank: int | None = None) -> None:
        from executors.mirror import mirror
        from executors.slurm.watch import ALL, rank_logs

        folders = {str(plan.remote): plan.folder for plan in plans}
        while mirror(self._reach(), folders, ALL if rank is None else rank_logs(rank)):
            continue

    def clean(self, plan: Plan) -> None:
        """A job takes its secrets away itself, or the watch does; here they are those of one never submitted."""
        if plan.secrets and not self._watch().knows(plan):
            # A cluster that is out of reach got nothing, or keeps them until `cancel`, for their owner's eyes alone.
            with contextlib.suppress(TunnelError):
                self.end_strays(plan)

    def end_strays(self, plan: Plan) -> None:
        from executors.slurm import submission

        submission.cancel(self._reach(), [self._job(plan)])

    def _watch(self) -> SlurmWatch:
        from executors.slurm.watch import SlurmWatch

        return watch_of(self.place, lambda: SlurmWatch(self._reach()))

    def _handle(self, plan: Plan, wake: Callable[[], None]) -> SlurmJob:
        from executors.slurm.watch import SlurmJob

        return SlurmJob(plan, self._job(plan), wake)

    def _job(self, plan: Plan) -> Job:
        from executors.slurm.submission import Job

        needs = tuple(str(Path(str(plan.remote)).with_name(name)) for name in plan.after)
        return Job(folder=str(plan.remote), name=plan.job, needs=needs, dependency=plan.dependency)


def _mount(text: str) -> str:
    return text if ":" in text else f"{text}:{text}"
