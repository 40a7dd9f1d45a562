"""An engine through the docker SDK: where it is, and what it says when it will not, in our words."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Final

from launcher.errors import ExecutorError, LaunchError, TunnelError

if TYPE_CHECKING:
    from docker import DockerClient

TIMEOUT: Final = 60  # seconds for one answer of the engine's
INSTALL: Final = "pip install 'gemma-launcher[docker]'"
ADVICE: Final = (
    (r"bind source path does not exist", "volumes=[...]: a folder that is there, on the engine's machine"),
    (
        r"could not select device driver .*gpu|nvidia-container|unknown or invalid runtime name: nvidia",
        "install nvidia-container-toolkit there and restart the engine; or num_gpus=None",
    ),
    (r"no space left on device", "docker system df there says what takes the room, docker system prune makes some"),
    (r"rlimit|ulimit", "ulimits=[] there: the engine may not raise that limit"),
    (r"exec: .*(not found|no such file)", "python='/path/to/python' of the image"),
    (r"network .* not found", "network=None for one of the task's own; `docker network ls` there shows all"),
    (r"no such volume", "volumes=[...]; `docker volume ls` there shows all"),
    (r"unable to find user|no matching entries in passwd", "user='1000:1000', in numbers"),
    (r"minimum memory limit|memory\+swap", "memory='...' for more"),
    (r"cpus available|cpu-shares|NanoCPUs", "cpus=... for less"),
    (r"shm size|shm-size", "shm_size='16g'"),
)
"""What to do, by what the engine says; the first that fits."""


def address() -> str:
    """The engine that `docker` would ask: DOCKER_HOST's, or the current context's. Raises ExecutorError."""
    if host := os.environ.get("DOCKER_HOST"):
        return host
    _require()
    from docker.context import ContextAPI
    from docker.errors import DockerException

    try:
        context = ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT"))
    except DockerException as error:
        raise ExecutorError(f"the context of docker cannot be read: {error}", hint="docker context ls") from None
    if context is None or not context.Host:
        named = os.environ.get("DOCKER_CONTEXT", "the current one")
        raise ExecutorError(f"docker has no context {named!r}", hint="docker context ls")
    return str(context.Host).removeprefix("http+")


def current() -> str | None:
    """The same, where somebody has chosen one, or has the socket of one here; None where there is none to ask."""
    try:
        found = address()
    except ExecutorError:
        return None
    socket = found.removeprefix("unix://")
    return found if socket == found or os.path.exists(socket) else None


def _require() -> None:
    try:
        from docker import DockerClient  # noqa: F401  # a folder `docker` of the user's would do for the module alone
    except ImportError:
        raise ExecutorError("DockerExecutor needs the package docker, which is not installed", hint=INSTALL) from None


class Engine:
    """One engine. Connected when it is first asked, and again after it was away."""

    def __init__(self, host: str | None) -> None:
        self.host = host or address()

    @cached_property
    def client(self) -> DockerClient:
        """Raises what `asked` explains."""
        _require()
        import docker

        # ssh itself rather than the SDK's paramiko: its known hosts, its agent and all of ~/.ssh/config hold.
        found = {**os.environ, "DOCKER_HOST": self.host}
        return docker.from_env(environment=found, timeout=TIMEOUT, use_ssh_client=True, max_pool_size=32)

    @contextlib.contextmanager
    def asked(self, what: str, *, where: str | None = None) -> Iterator[DockerClient]:
        """A conversation with the engine. Raises TunnelError if it cannot be had, ExecutorError for what is refused."""
        _require()
        from docker.errors import APIError, DockerException, ImageNotFound
        from requests.exceptions import RequestException

        try:
            yield self.client
        except ImageNotFound as error:
            raise ExecutorError(f"{what}: {_said(error)}", where=where, hint=self._pull(error)) from error
        except APIError as error:
            said = _said(error)
            hint = next((advice for pattern, advice in ADVICE if re.search(pattern, said, re.IGNORECASE)), None)
            raise ExecutorError(f"{what}: {self.host} refuses: {said}", where=where, hint=hint) from error
        except (DockerException, RequestException, OSError) as error:
            raise self._out_of_reach(error) from error

    def _pull(self, error: Exception) -> str:
        found = re.search(r'No such image: ([^\s")]+)', str(error))
        return f"docker pull {found[1] if found else 'IMAGE'}, there; or docker build -t it"

    def _out_of_reach(self, error: BaseException) -> LaunchError:
        """The SDK and urllib wrap what the system said."""
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
            chain.append(cause)
        text = " ".join(str(each) for each in chain)
        if any(isinstance(each, PermissionError) for each in chain) or "PermissionError" in text:
            what = f"you may not use the engine at {self.host}: permission denied on its socket"
            return TunnelError(what, hint="sudo usermod -aG docker $USER, and log in again; or a rootless engine")
        kinds = {"FileNotFoundError": "there is no socket", "Connection refused": "nobody listens"}
        why = next((words for kind, words in kinds.items() if kind in text), str(error).splitlines()[0])
        if self.host.startswith("ssh://") and "Server API version" in text:
            return TunnelError(
                f"there is no engine at {self.host}: {why}", hint=f"docker -H {self.host} version, which says more"
            )
        return TunnelError(
            f"no engine answers at {self.host}: {why}",
            hint="systemctl start docker there; or DOCKER_HOST, or host='ssh://me@gpu-server', for another",
        )


def _said(error: Exception) -> str:
    """The engine's own words."""
    return str(getattr(error, "explanation", None) or error).strip()
