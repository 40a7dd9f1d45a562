"""An engine through the docker SDK: where it is, and what it says when it will not, in our words."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Final

from executors.docker.address import Certificates, certificates
from executors.docker.address import address as address
from executors.docker.ssh import Relay
from launcher.errors import ExecutorError, LaunchError, TunnelError

if TYPE_CHECKING:
    from docker.tls import TLSConfig

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


def current() -> str | None:
    """That of `docker`, if somebody has chosen one, or has the socket of one here; None where there is none to ask.

    Raises ExecutorError where the chosen one cannot be read.
    """
    if importlib.util.find_spec("docker") is None:
        return None
    found = address()
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
        from docker.constants import MINIMUM_DOCKER_API_VERSION

        from docker import DockerClient

        found = certificates(self.host)
        where = self.host if self._relay is None else self._relay.address

        def client(version: str | None) -> DockerClient:
            return DockerClient(where, tls=_tls(found), version=version, timeout=TIMEOUT, max_pool_size=32)

        if found is None or (found.verify and not found.file("ca.pem")):
            made = client(None)  # it asks for the version by itself
            if self._relay is not None:
                made.api.mount("http+docker://", self._relay.adapter(TIMEOUT))
            return made
        # It would trust REQUESTS_CA_BUNDLE's authorities, from its first question on, in place of what is said here.
        made = client(MINIMUM_DOCKER_API_VERSION)
        made.api.trust_env = False
        made = client(made.version(api_version=False)["ApiVersion"])
        made.api.trust_env = False
        return made

    @cached_property
    def _relay(self) -> Relay | None:
        return Relay(self.host) if self.host.startswith("ssh://") else None

    @contextlib.contextmanager
    def asked(self, what: str, *, where: str | None = None) -> Iterator[DockerClient]:
        """A conversation with the engine. Raises TunnelError if it cannot be had, ExecutorError for what is refused."""
        _require()
        from docker.errors import APIError, DockerException, ImageNotFound
        from requests.exceptions import RequestException

        try:
            yield self.client
        except ImageNotFound as error:
            missing = re.search(r'No such image: ([^\s")]+)', str(error))
            name = missing[1] if missing else "IMAGE"
            hint = f"docker pull {name}, there; or docker build -t it"
            raise ExecutorError(f"{what}: {self.host} has no image {name}", where=where, hint=hint) from error
        except APIError as error:
            said = _said(error)
            known = next((advice for pattern, advice in ADVICE if re.search(pattern, said, re.IGNORECASE)), None)
            raise ExecutorError(f"{what}: {self.host} refuses: {said}", where=where, hint=known) from error
        except (DockerException, RequestException, OSError) as error:
            raise self._out_of_reach(error) from error

    def _out_of_reach(self, error: BaseException) -> LaunchError:
        """The SDK and urllib wrap what the system said."""
        if self._relay is not None and (trouble := self._relay.trouble()) is not None:
            return trouble
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
            chain.append(cause)
        text = " ".join(str(each) for each in chain)
        if any(isinstance(each, PermissionError) for each in chain) or "PermissionError" in text:
            what = f"you may not use the engine at {self.host}: permission denied on its socket"
            return TunnelError(what, hint="sudo usermod -aG docker $USER, and log in again; or a rootless engine")
        kinds = {"FileNotFoundError": "there is no socket", "Connection refused": "nobody listens"}
        why = next((words for kind, words in kinds.items() if kind in text), str(error).splitlines()[0])
        if "HTTP request to an HTTPS server" in text:
            what = f"the engine at {self.host} speaks TLS, and nothing here says with which certificates"
            hint = "DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH=/folder/of/ca.pem,cert.pem,key.pem; or a context of docker's"
            return TunnelError(what, hint=hint)
        if "ssl" in text.lower() or ("Connection aborted" in text and certificates(self.host) is not None):
            what = f"the engine at {self.host} and this machine do not trust each other: {why}"
            hint = "ca.pem, cert.pem, key.pem from its administrators, in DOCKER_CERT_PATH or a context of docker's"
            return TunnelError(what, hint=hint)
        return TunnelError(
            f"no engine answers at {self.host}: {why}",
            hint="systemctl start docker there; or DOCKER_HOST, or host='ssh://me@gpu-server', for another",
        )


def _tls(found: Certificates | None) -> TLSConfig | bool:
    from docker.tls import TLSConfig

    if found is None:
        return False
    cert, key = found.file("cert.pem"), found.file("key.pem")
    pair = (cert, key) if cert and key else None
    return TLSConfig(client_cert=pair, ca_cert=found.file("ca.pem"), verify=found.verify)


def _said(error: Exception) -> str:
    """The engine's own words."""
    return str(getattr(error, "explanation", None) or error).strip()
