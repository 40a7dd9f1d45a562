"""DockerExecutor: a task is one container or several, on an engine that looks after them without us."""

from __future__ import annotations

import contextlib
import json
import math
import socket
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from posixpath import normpath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from executors.base import Plan, Process, Task
from executors.docker import options
from executors.docker.containers import ROOT, alias, port, specs
from executors.docker.options import mount, refuse
from executors.watch import WatchedExecutor, watch_of
from launcher.errors import ExecutorError, LaunchError, nearest
from launcher.home import home

if TYPE_CHECKING:
    from executors.docker.watch import DockerJob, DockerWatch

LAUNCHERS = ("torchrun",)


@dataclass(kw_only=True)
class DockerExecutor(WatchedExecutor):
    """Runs a task in containers of a Docker engine.

    container_image: has Python and the training stack; the user's code and ours are copied in. Its entrypoint is not
        run. It is there already, or `docker pull` brings it.
    nodes: containers that stand for nodes, on a network of their own, each with ntasks_per_node processes.
    num_gpus: GPUs that each node gets to itself, the engine's first, those of several nodes one after another; a task
        waits until no other of this launcher's kind has them. device_requests name others, dicts with the arguments of
        docker.types.DeviceRequest, and nothing waits for those.
    shm_size: at most so much of the memory can be shared by processes; NCCL and data loaders need more than the
        engine's own 64 MB.
    ulimits: "memlock=-1", or "nofile=1024:2048". ipc_mode, network, user, memory ("64g"), cpus, privileged: as the
        options of `docker run` are called. network: "host", or one that is there; None: one of the task's own.
    volumes: "/on/the/engine:/in/the/container", with ":ro" if nothing may be written; or a volume's name.
    additional_kwargs: more arguments of docker.containers.create.
    launcher: None starts each process with RANK, WORLD_SIZE and the others set; "torchrun" leaves that to its agent.
    python: the interpreter in the image.
    host: the engine, "ssh://me@gpu-server"; None: DOCKER_HOST, or the current context of `docker`.
    """

    container_image: str | None = None
    num_gpus: int | None = None
    device_requests: list[dict[str, Any]] = field(default_factory=list)
    shm_size: str | None = "16g"
    ulimits: list[str] = field(default_factory=list)
    ipc_mode: str | None = None
    network: str | None = None
    volumes: list[str] = field(default_factory=list)
    user: str | None = None
    memory: str | None = None
    cpus: float | None = None
    privileged: bool = False
    additional_kwargs: dict[str, Any] = field(default_factory=dict)
    launcher: Literal["torchrun"] | None = None
    python: str = "python3"
    host: str | None = None

    elsewhere: ClassVar[bool] = True

    @property
    def place(self) -> Hashable:
        from executors.docker.engine import address

        return ("docker", self.host or address())

    def describe_place(self) -> str:
        from executors.docker.engine import address

        return f"the engine at {self.host or address()}"

    def check(self) -> None:
        super().check()
        if self.container_image is None:
            example = "container_image='nvcr.io/nvidia/pytorch:25.09-py3'"
            raise refuse(self, "container_image", "container_image is None: there is nothing to run", example)
        for name in options.PATTERNS:
            if (value := getattr(self, name)) is not None:
                options.check_text(self, name, value)
        if self.num_gpus is not None:
            options.check_count(self, "num_gpus", self.num_gpus)
        if self.cpus is not None and (type(self.cpus) not in (int, float) or not 0 < self.cpus < math.inf):
            raise refuse(self, "cpus", f"cpus is {self.cpus!r}; it must be a number above 0", "cpus=8")
        if type(self.privileged) is not bool:
            raise refuse(self, "privileged", f"privileged is {self.privileged!r}", "True or False")
        if self.launcher is not None and self.launcher not in LAUNCHERS:
            hint = nearest(str(self.launcher), LAUNCHERS) or "None or 'torchrun'"
            raise refuse(self, "launcher", f"launcher is {self.launcher!r}", hint)
        options.check_ulimits(self, self.ulimits)
        options.check_volumes(self, self.volumes)
        options.check_requests(self, self.device_requests)
        options.check_more(self, self.additional_kwargs)
        self._check_together()

    def _check_together(self) -> None:
        if self.device_requests and self.num_gpus:
            raise refuse(self, "num_gpus", "num_gpus and device_requests exclude each other", "num_gpus=None")
        if self.nodes > 1 and self.network == "none":
            raise refuse(self, "network", f"network is 'none', and {self.nodes} nodes are to meet", "network=None")
        if self.nodes > 1 and self.network == "bridge":
            what = "network is 'bridge', on which containers do not know one another by name"
            raise refuse(self, "network", what, "network=None for one of the task's own")
        for name, value in self.env_vars.items():
            try:
                f"{name}{value}".encode()
            except UnicodeEncodeError:
                raise refuse(self, "env_vars", f"env_vars[{name!r}] is no text, as engines need it", None) from None

    def check_kept(self, name: str, path: str, where: str | None) -> None:
        """Only what lies in a volume of the user's stays when the containers go."""
        stays = {normpath(target): not read_only for _, target, read_only in map(mount, self.volumes)}
        plain = PurePosixPath(normpath(path))  # what is after a .. lies elsewhere
        mounted = next((str(folder) for folder in (plain, *plain.parents) if str(folder) in stays), None)
        if "volumes_from" in self.additional_kwargs or (mounted and stays[mounted]):
            return
        kept = [target for target in stays if stays[target]]
        target = next(iter(sorted(kept)), "/runs")
        volumes = "" if kept else f", with volumes=['/data/runs:{target}']"
        raise ExecutorError(
            f"{name} is {path!r}, which goes with the containers; what they write stays in volumes alone",
            where=where,
            hint=f"{name}={target!r}{volumes}",
        )

    def plan(self, task: Task) -> Plan:
        from executors.archive import own_package

        self.check()
        env, secrets = self.environment(task)
        remote = ROOT / "experiments" / task.experiment / task.folder.name
        copy = None if task.package is None else remote.parent / task.copy
        ours = ROOT / "packages" / own_package().digest
        job = f"{task.folder.name}.{task.experiment}"
        files = {"task.json": json.dumps(task.spec(folder=remote, copy=copy, python=self.python, ours=ours), indent=1)}
        if task.script is not None and task.script.inline:
            files["script"] = task.script.inline
        plan = Plan(
            name=task.name,
            folder=task.folder,
            files=files,
            processes=tuple(self._nodes(job, str(ours / "launcher"), str(remote / "task.json"))),
            env=env,
            secrets=secrets,
            nodes=self.nodes,
            ntasks_per_node=self.ntasks_per_node,
            gpus=self.nodes * (self.num_gpus or 0),
            group=task.group,
            package=task.package,
            copy=copy,
            remote=remote,
            job=job,
            shown=("containers",),
        )
        made = [spec.to_text() for spec in specs(self, plan, self.store)]
        return replace(plan, files={**files, "containers": "\n".join(made) + "\n"})

    def check_together(self, plans: Sequence[Plan]) -> None:
        wanting = [plan for plan in plans if plan.gpus and plan.remote is not None]
        if len(wanting) > 1:
            names = " and ".join(repr(plan.name) for plan in wanting)
            raise ExecutorError(
                f"tasks {names} are to run together, and num_gpus gives each the engine's first",
                where=self.where("num_gpus"),
                hint="device_requests=[{'device_ids': ['4', '5'], 'capabilities': [['gpu']]}] for one of them",
            )

    @property
    def store(self) -> str:
        """What tells our containers from those of other launchers on the same engine."""
        return f"{socket.gethostname()}:{home()}"

    def _nodes(self, job: str, ours: str, task_file: str) -> Iterator[Process]:
        """What each container runs: ranks.py, which starts the ranks, or the agent that does."""
        first = "127.0.0.1" if self.nodes == 1 or self.network == "host" else alias(job, 0)
        meet = {"MASTER_ADDR": first, "MASTER_PORT": str(port(job))}
        size = {"WORLD_SIZE": str(self.ranks), "LOCAL_WORLD_SIZE": str(self.ntasks_per_node)}
        for node in range(self.nodes):
            count = str(0 if self.launcher else self.ntasks_per_node)
            start = [self.python, f"{ours}/ranks.py", count]
            env = {"NODE_RANK": str(node), **({} if self.launcher else {**size, **meet})}
            own = alias(job, node) if first != "127.0.0.1" else first
            argv = [*start, *self._agent(node, meet, own), f"{ours}/worker.py", task_file]
            yield Process(argv=tuple(argv), env=env)

    def _agent(self, node: int, meet: dict[str, str], own: str) -> list[str]:
        """torchrun's, where it is to start the ranks; else the interpreter of each.

        The nodes are given their numbers. In a c10d rendezvous they would find them by themselves, and an agent is
        told from others there by its host name and process id: on the host's network, all of them say the machine's
        name and 2, the first process that ours starts, are taken for one, and wait for the other for ever.
        """
        if self.launcher is None:
            return [self.python]
        agent = [self.python, "-m", "torch.distributed.run", f"--nproc-per-node={self.ntasks_per_node}"]
        if self.nodes == 1:  # port 0: torchrun's own store takes a free one, and gives its ranks another
            return [*agent, "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
        place = [f"--master-addr={meet['MASTER_ADDR']}", f"--master-port={meet['MASTER_PORT']}", f"--local-addr={own}"]
        return [*agent, f"--nnodes={self.nodes}", f"--node-rank={node}", *place]

    def to_json(self) -> dict[str, Any]:
        """Whoever finds the experiment later asks the same engine, whatever is current there."""
        from executors.docker.engine import address

        return super(DockerExecutor, self if self.host else self.clone(host=address())).to_json()

    def _of(self, plan: Plan) -> DockerExecutor:
        """Whose plan it is: any executor of a place may be asked, and containers are made as their own one says."""
        from launcher.worker import Reader

        file = plan.folder / "executor.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else self.to_json()
        own: DockerExecutor = self if known == self.to_json() else Reader().read(known)
        return own

    def prepare(self, plans: Sequence[Plan]) -> list[str]:
        from executors.docker.delivery import deliver

        return deliver(self._watch().engine, [(self._of(plan), plan) for plan in plans])

    def fetch(self, plans: Sequence[Plan], *, rank: int | None = None) -> None:
        self._watch().fetch([self._handle(plan, lambda: None) for plan in plans], rank)

    def clean(self, plan: Plan) -> None:
        """An engine that is out of reach keeps what it has; `gemma-launch experiment prune` takes it away."""
        with contextlib.suppress(LaunchError):
            self.end_strays(plan)

    def forget(self, plan: Plan) -> None:
        self.end_strays(plan)

    def end_strays(self, plan: Plan) -> None:
        from executors.docker.delivery import remove

        remove(self._watch().engine, plan.job)

    def prune(self, keep: Callable[[str, str], bool]) -> list[str]:
        from executors.docker.delivery import jobs_of, remove

        engine = self._watch().engine
        return [gone for job in jobs_of(engine, self.store) if not keep(*_names(job)) for gone in remove(engine, job)]

    def _watch(self) -> DockerWatch:
        from executors.docker.engine import Engine
        from executors.docker.watch import DockerWatch

        return watch_of(self.place, lambda: DockerWatch(Engine(self.host)))

    def _handle(self, plan: Plan, wake: Callable[[], None]) -> DockerJob:
        from executors.docker.watch import DockerJob

        return DockerJob(plan, self._of(plan), wake)


def _names(job: str) -> tuple[str, str]:
    """Experiment and task."""
    task, _, experiment = job.partition(".")
    return experiment, task
