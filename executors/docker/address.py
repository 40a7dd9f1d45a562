"""Which engine `docker` itself would ask: DOCKER_HOST's, or that of a context; and the certificates for it.

The files are read here: the SDK finds contexts only beside a config.json, and takes a context's certificates only where
all three are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from launcher.errors import ExecutorError, nearest

DEFAULT: Final = "unix:///var/run/docker.sock"
SCHEMES: Final = ("unix", "npipe", "tcp", "http", "https", "ssh")
FILES: Final = ("ca.pem", "cert.pem", "key.pem")


def address() -> str:
    """Raises ExecutorError."""
    if host := os.environ.get("DOCKER_HOST"):
        return _checked(host, "DOCKER_HOST")
    name, chosen = _chosen()
    if name == "default":
        return DEFAULT
    meta = _folder() / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    if not meta.exists():
        raise ExecutorError(f"docker has no context {name!r}", where=chosen, hint=_hint(name))
    host, _ = _endpoint(meta)
    if not host:
        raise ExecutorError(f"the context {name!r} of docker has no address", where=str(meta), hint=_hint(name))
    return _checked(host, f"the address of docker's context {name!r}")


@dataclass(frozen=True)
class Certificates:
    """What an engine that speaks TLS is asked with. verify: it must prove who it is, too."""

    folder: Path
    verify: bool

    def file(self, name: str) -> str | None:
        return str(self.folder / name) if (self.folder / name).is_file() else None


def certificates(host: str) -> Certificates | None:
    """Those of the context that has this address: whoever finds the experiment later may have another one chosen.

    DOCKER_CERT_PATH's are for the engine of DOCKER_HOST, and for one that no context has. None for one without TLS.
    Raises ExecutorError.
    """
    if not host.startswith(("tcp://", "https://")):
        return None
    if os.environ.get("DOCKER_HOST") != host and (found := _of_a_context(host)) is not None:
        return found
    path, verify = os.environ.get("DOCKER_CERT_PATH"), bool(os.environ.get("DOCKER_TLS_VERIFY"))
    found = Certificates(Path(path) if path else _folder(), verify)
    if path and not any(map(found.file, FILES)):
        what = f"DOCKER_CERT_PATH is {path!r}, where none of {', '.join(FILES)} is"
        raise ExecutorError(what, hint="the folder that has them, or unset DOCKER_CERT_PATH DOCKER_TLS_VERIFY")
    return found if path or verify else None


def _of_a_context(host: str) -> Certificates | None:
    for meta in sorted((_folder() / "contexts" / "meta").glob("*/meta.json")):
        try:
            its, verify = _endpoint(meta)
        except ExecutorError:  # another's, that nobody has chosen
            continue
        folder = _folder() / "contexts" / "tls" / meta.parent.name / "docker"
        if its == host and (folder.is_dir() or not verify):
            return Certificates(folder, verify)
    return None


def _folder() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")


def _chosen() -> tuple[str, str]:
    """The context's name, and where it is said."""
    if name := os.environ.get("DOCKER_CONTEXT"):
        return name, "DOCKER_CONTEXT"
    file = _folder() / "config.json"
    found = _read(file) if file.exists() else {}
    return str(found.get("currentContext") or "default"), str(file)


def _endpoint(meta: Path) -> tuple[str, bool]:
    """A context's address, and whether the engine there must prove who it is."""
    found = _read(meta)
    try:
        docker = found["Endpoints"]["docker"]
        return str(docker.get("Host") or ""), not docker.get("SkipTLSVerify")
    except (KeyError, TypeError, AttributeError):
        raise ExecutorError("a context of docker's has no endpoint", where=str(meta), hint=_hint("NAME")) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"docker's own settings cannot be read: {error}"
        raise ExecutorError(what, where=str(file), hint=_hint("NAME")) from None
    return found if isinstance(found, dict) else {}


def _hint(name: str) -> str:
    return f"docker context ls; docker context create {name} --docker host=ssh://me@gpu-server; or DOCKER_HOST=..."


def _checked(host: str, what: str) -> str:
    """As `docker` does, a host and a port alone are taken for tcp."""
    if re.fullmatch(r"[\w.-]*:\d+", host):
        return f"tcp://{host}"
    scheme, found, rest = host.partition("://")
    if scheme in SCHEMES and rest:
        return host
    other = nearest(scheme, SCHEMES)
    hint = f"{other}, before ://" if found and other else f"ssh://{host.rpartition('/')[2] or 'me@gpu-server'}"
    raise ExecutorError(f"{what} is {host!r}, which is no address of an engine", hint=hint)
