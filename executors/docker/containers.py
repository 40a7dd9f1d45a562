"""The containers of a task, as they are asked for: what a dry run shows is what is made.

They are known by their labels, whoever asks. One network and one volume are the task's own: its containers reach one
another by name on the one, and share the job's folder, the code and the secrets on the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from executors.base import Plan, Process
from executors.docker.options import mount, parts, without_none
from launcher.worker import RESTART

if TYPE_CHECKING:
    from executors.docker.executor import DockerExecutor

ROOT: Final = Path("/gemma-launcher")
"""Where a task's volume is in its containers."""
EXPERIMENT, TASK, NODE, ATTEMPT, STORE, GPUS = (
    f"gemma-launcher.{name}" for name in ("experiment", "task", "node", "attempt", "store", "gpus")
)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A container to be made: its name, what `docker.containers.create` is given, and its network and name there."""

    name: str
    node: int
    attempt: int
    kwargs: Mapping[str, Any]
    network: str | None
    alias: str

    def to_text(self) -> str:
        """For a person: a line a setting. The environment and the command are shown by the plan."""
        shown = {
            name: value for name, value in self.kwargs.items() if name not in ("environment", "entrypoint", "command")
        }
        lines = [f"container {self.name}"]
        if self.network is not None:
            shown["network"] = f"{self.network} (as {self.alias})"
        lines += [f"  {name:<16}{_text(value)}" for name, value in shown.items()]
        return "\n".join(lines)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def alias(job: str, node: int) -> str:
    """What a node is called on its network: a host name has 63 characters, which a job's would be too many."""
    return f"node{node}-{hashlib.sha256(job.encode()).hexdigest()[:8]}"


def port(job: str) -> int:
    """Where the ranks meet: not one that systems give away, and seldom another job's on the same host's network."""
    return 20000 + int(hashlib.sha256(job.encode()).hexdigest()[:8], 16) % 12000


def own_network(executor: DockerExecutor, job: str) -> str | None:
    """The network that is made for the task; None where it needs none, or the user named one."""
    return job if executor.network is None and executor.nodes > 1 else None


def folder(plan: Plan, attempt: int) -> Path:
    """The job's folder in the containers: an attempt finds nothing of those before it."""
    if plan.remote is None:
        raise ValueError(f"{plan.name} is not for a container")
    return plan.remote if attempt == 1 else plan.remote.with_name(f"{plan.remote.name}.{attempt}")


def labels(job: str, store: str) -> dict[str, str]:
    task, _, experiment = job.partition(".")
    return {EXPERIMENT: experiment, TASK: task, STORE: store}


def specs(executor: DockerExecutor, plan: Plan, store: str, attempt: int = 1) -> list[Spec]:
    """One for each node."""
    return [_spec(executor, plan, node, process, store, attempt) for node, process in enumerate(plan.processes)]


def _spec(executor: DockerExecutor, plan: Plan, node: int, process: Process, store: str, attempt: int) -> Spec:
    argv = [*process.argv[:-1], str(folder(plan, attempt) / Path(process.argv[-1]).name)]
    network = own_network(executor, plan.job) or executor.network
    named = network if network not in (None, "host", "none", "bridge") else None
    kwargs = {
        "image": executor.container_image,
        "entrypoint": argv[:1],  # the image's own would be started with our command for its arguments
        "command": argv[1:],
        "environment": {**plan.env, **process.env, RESTART: str(attempt - 1)},
        "labels": {**labels(plan.job, store), NODE: str(node), ATTEMPT: str(attempt), **_taken(executor, node)},
        "working_dir": str(folder(plan, attempt)),
        "hostname": alias(plan.job, node),
        "volumes": [f"{plan.job}:{ROOT}", *executor.volumes],
        "network_mode": None if named else network,
        "shm_size": None if executor.ipc_mode else executor.shm_size,
        "ulimits": executor.ulimits or None,
        "ipc_mode": executor.ipc_mode,
        "user": executor.user,
        "mem_limit": executor.memory,
        "nano_cpus": None if executor.cpus is None else int(executor.cpus * 1e9),
        "privileged": executor.privileged or None,
        "device_requests": _devices(executor, node),
        **executor.additional_kwargs,
    }
    # Without a limit of its own, swap doubles what `memory` says, and takes minutes to fill.
    if executor.memory is not None:
        kwargs.setdefault("memswap_limit", executor.memory)
    return Spec(
        name=f"{plan.job}.{node}" + ("" if attempt == 1 else f".{attempt}"),
        node=node,
        attempt=attempt,
        kwargs=without_none(kwargs),
        network=named,
        alias=alias(plan.job, node),
    )


def _taken(executor: DockerExecutor, node: int) -> dict[str, str]:
    """The GPUs that no other task is to have meanwhile, by their numbers. What is in device_requests may be shared."""
    first, count = node * (executor.num_gpus or 0), executor.num_gpus or 0
    return {GPUS: " ".join(str(first + gpu) for gpu in range(count))} if count else {}


def _devices(executor: DockerExecutor, node: int) -> list[dict[str, Any]] | None:
    """Nodes of one machine share its GPUs out; one alone takes as many as it wants of them."""
    if executor.device_requests:
        return executor.device_requests
    if not executor.num_gpus:
        return None
    if executor.nodes == 1:
        return [{"count": executor.num_gpus, "capabilities": [["gpu"]]}]
    return [{"device_ids": _taken(executor, node)[GPUS].split(), "capabilities": [["gpu"]]}]


def engine_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The same, in the types of the docker SDK."""
    from docker.types import DeviceRequest, Mount, Ulimit

    found = dict(kwargs)
    if "ulimits" in found:
        limits = map(parts, found["ulimits"])
        found["ulimits"] = [Ulimit(name=name, soft=soft, hard=hard) for name, soft, hard in limits]
    if "device_requests" in found:
        found["device_requests"] = [DeviceRequest(**request) for request in found["device_requests"]]
    # As mounts: of a volume, a source that is not there would be made, a folder of root's.
    found["mounts"] = [
        Mount(target, source, type="bind" if source.startswith("/") else "volume", read_only=read_only)
        for source, target, read_only in map(mount, found.pop("volumes"))
    ]
    return found
