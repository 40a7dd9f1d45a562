"""What a task has on an engine: made before it starts, with everything that it needs in it, and taken away after.

Nothing is made twice: what has the name already is taken, whoever made it.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from executors.archive import archive, own_package
from executors.base import Plan
from executors.docker.containers import (
    ATTEMPT,
    EXPERIMENT,
    ROOT,
    STORE,
    TASK,
    Spec,
    engine_kwargs,
    folder,
    labels,
    own_network,
    specs,
)
from executors.docker.engine import Engine
from executors.files import write_files
from executors.package import Package
from launcher.errors import LaunchError
from launcher.worker import JobFiles, write_json

if TYPE_CHECKING:
    from docker.models.containers import Container
    from docker.models.networks import Network

    from executors.docker.executor import DockerExecutor

SECRETS = JobFiles("").secrets.name


def deliver(engine: Engine, tasks: Sequence[tuple[DockerExecutor, Plan]]) -> list[str]:
    """Make what the tasks need, and the containers of their first attempt, not started. Raises LaunchError.

    Returns which images they are of, for a name may mean another image tomorrow.
    """
    notes: dict[str, None] = {}
    try:
        for executor, plan in tasks:
            write_files(plan)
            with engine.asked(f"task {plan.name!r}", where=executor.where("container_image")) as client:
                image = client.images.get(str(executor.container_image))
                notes[f"image {executor.container_image} is {image.id}"] = None
                known = {"name": executor.container_image, "id": image.id, "digests": image.attrs["RepoDigests"]}
                write_json(plan.folder / "image.json", known)
            made = make(engine, executor, plan, 1)
            with engine.asked(f"task {plan.name!r}") as client, _archive(plan, _owner(made[0])) as data:
                client.api.put_archive(made[0].id, str(ROOT), data)  # type: ignore[arg-type]  # a file will do
    except BaseException:
        for _, plan in tasks:
            with contextlib.suppress(LaunchError):
                remove(engine, plan.job)
        raise
    return list(notes)


def make(engine: Engine, executor: DockerExecutor, plan: Plan, attempt: int) -> list[Container]:
    """The containers of an attempt, by node, on their network and volume; those that are there are taken."""
    from docker.errors import APIError

    with engine.asked(f"task {plan.name!r}") as client:
        known = labels(plan.job, executor.store)
        if (network := own_network(executor, plan.job)) and not _networks(client, network):
            client.networks.create(network, driver="bridge", labels=known)
        client.volumes.create(plan.job, labels=known)
        made = []
        for spec in specs(executor, plan, executor.store, attempt):
            try:
                made.append(_create(client, spec))
            except APIError as error:
                if error.status_code != 409:  # a name that is taken
                    raise
                made.append(client.containers.get(spec.name))
        return made


def again(engine: Engine, executor: DockerExecutor, plan: Plan, attempt: int) -> None:
    """The containers of a further attempt, in a folder of its own; those before it are taken away."""
    with engine.asked(f"task {plan.name!r}") as client:
        for container in find(client, plan.job):
            if container.labels[ATTEMPT] != str(attempt):
                container.remove(force=True, v=True)
            elif container.status != "created":  # one of them has started: all have what they need
                return
        made = make(engine, executor, plan, attempt)
        there = folder(plan, attempt).relative_to(ROOT)
        with tempfile.TemporaryFile() as file:
            with _Tar(file, *_owner(made[0])) as tar:
                tar.folder(str(there))
                for name in ("task.json", "script", "metrics.jsonl"):  # whose lines go on, as its steps do
                    if (plan.folder / name).exists():
                        tar.add(f"{there}/{name}", (plan.folder / name).read_bytes())
                tar.link(f"{there}/{SECRETS}", f"../{folder(plan, 1).name}/{SECRETS}")
            file.seek(0)
            client.api.put_archive(made[0].id, str(ROOT), file)  # type: ignore[arg-type]


def find(client: Any, job: str) -> list[Container]:
    """A task's containers, of all attempts; not those of an image that somebody made of one (`docker commit`)."""
    found: list[Container] = client.containers.list(all=True, filters={"label": _labelled(job)}, ignore_removed=True)
    return [container for container in found if str(container.name).startswith(f"{job}.")]


def _labelled(job: str) -> list[str]:
    task, _, experiment = job.partition(".")
    return [f"{TASK}={task}", f"{EXPERIMENT}={experiment}"]


def _networks(client: Any, name: str) -> list[Network]:
    """Of that very name: the engine is asked for parts of one, and knows a `pretrain` for a `train`."""
    return [network for network in client.networks.list(names=[name]) if network.name == name]


def jobs_of(engine: Engine, store: str) -> list[str]:
    """The tasks of a launcher of which the engine has anything. Raises LaunchError."""
    filters: dict[str, str | list[str] | bool] = {"label": f"{STORE}={store}"}
    with engine.asked("what is left") as client:
        containers = client.containers.list(all=True, filters=filters, ignore_removed=True)
        known = [container.labels for container in containers]
        known += [volume.attrs["Labels"] for volume in client.volumes.list(filters=filters)]
        known += [network.attrs["Labels"] for network in client.networks.list(filters=filters)]
    return sorted({f"{found[TASK]}.{found[EXPERIMENT]}" for found in known})


def remove(engine: Engine, job: str) -> list[str]:
    """Take away all that a task has; says what it was. Raises LaunchError."""
    gone = []
    with engine.asked(f"task {job}") as client:
        from docker.errors import NotFound  # once it is known that it is installed

        for container in find(client, job):
            with contextlib.suppress(NotFound):
                container.remove(force=True, v=True)
                gone.append(f"container {container.name}")
        for network in _networks(client, job):
            with contextlib.suppress(NotFound):
                network.remove()
                gone.append(f"network {job}")
        for volume in client.volumes.list(filters={"label": _labelled(job)}):
            with contextlib.suppress(NotFound):
                volume.remove(force=True)
                gone.append(f"volume {volume.name}")
    return gone


def _create(client: Any, spec: Spec) -> Container:
    kwargs = engine_kwargs(spec.kwargs)
    if spec.network is not None:
        config = client.api.create_endpoint_config(aliases=[spec.alias])
        kwargs |= {"network": spec.network, "networking_config": {spec.network: config}}
    made: Container = client.containers.create(name=spec.name, **kwargs)
    return made


def _owner(container: Container) -> tuple[int, int]:
    """Who runs in a container, in numbers: what lies in the job's folder is theirs."""
    container.reload()
    user, _, group = str(container.attrs["Config"].get("User") or "0").partition(":")
    number, own = _number(container, "/etc/passwd", user)
    return number, _number(container, "/etc/group", group)[0] if group else own


def _number(container: Container, file: str, name: str) -> tuple[int, int]:
    """Of a name in the image's own list, and the group that goes with it there."""
    if name.isdecimal():
        return int(name), 0
    data = b"".join(container.get_archive(file)[0])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = tar.extractfile(tar.getmembers()[0])
        for line in (found.read() if found else b"").decode(errors="replace").splitlines():
            fields = line.split(":")
            if fields[0] == name:
                return int(fields[2]), int(fields[3] or 0) if len(fields) > 4 else 0
    return 0, 0  # the engine refuses it when it starts


@contextlib.contextmanager
def _archive(plan: Plan, owner: tuple[int, int]) -> Iterator[IO[bytes]]:
    """Everything that a task needs. Its secrets are in it, and in no file here that has a name."""
    own = own_package()
    there = str(folder(plan, 1).relative_to(ROOT))
    with tempfile.TemporaryFile() as file:
        with _Tar(file, *owner) as tar:
            tar.package(f"packages/{own.digest}", own)
            if plan.package is not None and plan.copy is not None:
                tar.package(str(plan.copy.relative_to(ROOT)), plan.package)
            tar.folder(there)
            for name, text in plan.files.items():
                tar.add(f"{there}/{name}", text.encode("utf-8", errors="surrogateescape"))
            if plan.secrets:
                tar.add(f"{there}/{SECRETS}", json.dumps(plan.secrets).encode(), mode=0o600)
        file.seek(0)
        yield file


class _Tar:
    """An archive whose entries are all one user's."""

    def __init__(self, file: IO[bytes], user: int, group: int) -> None:
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape")
        self._user, self._group = user, group
        self._folders: set[str] = set()

    def __enter__(self) -> _Tar:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def folder(self, name: str) -> None:
        for path in [*reversed(Path(name).parents), Path(name)]:
            if str(path) not in {".", *self._folders}:
                self._folders.add(str(path))
                entry = tarfile.TarInfo(str(path))
                entry.type = tarfile.DIRTYPE
                self._put(entry, 0o755)

    def add(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        self._put(entry, mode, io.BytesIO(data))

    def link(self, name: str, target: str) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        self._put(entry, 0o777)

    def package(self, top: str, package: Package) -> None:
        self.folder(top)
        with tarfile.open(archive(package), errors="surrogateescape") as packed:
            for entry in packed:
                entry.name = f"{top}/{entry.name}"
                self.folder(str(Path(entry.name).parent))
                self._put(entry, entry.mode, packed.extractfile(entry) if entry.isreg() else None)

    def _put(self, entry: tarfile.TarInfo, mode: int, data: IO[bytes] | None = None) -> None:
        entry.mode, entry.uid, entry.gid = mode, self._user, self._group
        self._tar.addfile(entry, data)
