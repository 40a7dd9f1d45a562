"""An engine behind ssh, as a socket here: each connection to it is one of `docker system dial-stdio` over there.

It is ssh itself that connects: its known hosts, its agent and all of ~/.ssh/config hold. The SDK would start an ssh for
each question, which waits for ever where the line is dead and asks for port 22 whatever ~/.ssh/config says. Here one
connection is shared, and each ssh has a real socket, whose answers can be waited for with a limit.
"""

from __future__ import annotations

import atexit
import os
import re
import shlex
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from launcher.errors import ExecutorError, TunnelError

if TYPE_CHECKING:
    from requests.adapters import HTTPAdapter

PERSIST: Final = 5  # seconds that the connection outlives the last who was on it, and so the launcher
SESSIONS: Final = 8  # at once: servers take ten on one connection, and each further one logs in anew
ADVICE: Final = (
    (
        r"host key verification failed|remote host identification has changed",
        "{ssh} (it asks; compare the fingerprint with the one that its administrators give)",
    ),
    (
        r"permission denied \(|too many authentication failures|no supported authentication",
        "`{ssh} docker version` must work without being asked anything: ssh-add KEY, IdentityFile KEY in "
        "~/.ssh/config; or ControlMaster and ControlPath there, and log in once by hand",
    ),
    (r"could not resolve hostname|name or service not known|bad configuration option", "{ssh}; ~/.ssh/config"),
    (r"docker: (command )?not found|docker: no such file", "install docker there, and where PATH has it: {ssh} docker"),
    (
        r"permission denied while trying|dial unix .* permission denied",
        "sudo usermod -aG docker $USER, there; or a rootless engine",
    ),
    (
        r"cannot connect to the docker daemon|dial (unix|tcp) ",
        "systemctl start docker there; or DOCKER_HOST there for another: {ssh} docker version",
    ),
    (r"connection refused|timed out|no route to host|unreachable", "is it up, and the port right? {ssh}"),
    (r"no such file or directory: 'ssh'", "install openssh-client here"),
)
"""What to do, by what ssh says, or docker there; the first that fits."""


class Relay:
    """host: ssh://USER@HOST:PORT, where USER@ and :PORT may be left to ~/.ssh/config."""

    def __init__(self, host: str) -> None:
        url = _parsed(host)
        self.host = host
        login = ["-l", url.username] if url.username else []
        port = ["-p", str(url.port)] if url.port else []
        self._target = [*login, *port, "--", str(url.hostname)]
        self._folder = tempfile.TemporaryDirectory(prefix="gemma-launcher-", ignore_cleanup_errors=True)
        self._said = Path(self._folder.name) / "said"
        self._said.touch()
        self._children: list[subprocess.Popen[bytes]] = []
        self._argv = ["ssh", *self._options(), *self._target, "docker system dial-stdio"]
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(f"{self._folder.name}/engine")
        self._door.listen(64)
        threading.Thread(target=self._serve, daemon=True, name=f"ssh to {host}").start()
        atexit.register(self.close)

    @property
    def address(self) -> str:
        return f"unix://{self._folder.name}/engine"

    def adapter(self, timeout: int) -> HTTPAdapter:
        """The SDK keeps connections for each path apart, up to 25 that are not used; each would be an ssh here."""
        from docker.transport import UnixHTTPAdapter

        class OnePool(UnixHTTPAdapter):
            def get_connection(self, url: str | bytes, proxies: Any = None) -> Any:
                return super().get_connection("http+docker://localhost", proxies)

        return OnePool(f"http+{self.address}", timeout, max_pool_size=SESSIONS)

    def close(self) -> None:
        """An ssh ends by itself when its connection does, unless its line is dead."""
        for child in self._children:
            child.terminate()
        self._folder.cleanup()

    def trouble(self) -> TunnelError | None:
        """What was said there since the last connection was made; None where nothing was."""
        lines = [line.strip() for line in self._said.read_text(errors="replace").splitlines() if line.strip()]
        if not lines:
            return None
        known = ((line, hint) for words, hint in ADVICE for line in lines if re.search(words, line, re.IGNORECASE))
        what, hint = next(known, (lines[-1], "{ssh}"))
        command = shlex.join(["ssh", *(word for word in self._target if word != "--")])
        return TunnelError(f"no engine answers at {self.host}: {what}", hint=hint.format(ssh=command))

    def _options(self) -> list[str]:
        """What ~/.ssh/config leaves open; and it never asks, as nobody may be there to answer."""
        try:
            asked = ["ssh", "-G", *self._target]
            said = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout
        except OSError:  # no ssh: the first connection tells
            said = ""
        own = dict(line.partition(" ")[::2] for line in said.splitlines())
        ours = {"BatchMode": "yes"}
        if own.get("connecttimeout", "none") == "none":
            ours["ConnectTimeout"] = "30"
        if own.get("serveraliveinterval", "0") == "0":  # with its three times, less than what the SDK waits
            ours["ServerAliveInterval"] = "15"
        if own.get("controlpath", "none") == "none":  # the first makes the connection on which the others ride
            line = f"{self._folder.name}/line"
            ours |= {"ControlMaster": "auto", "ControlPath": line, "ControlPersist": str(PERSIST)}
        return ["-T", *(f"-o{name}={value}" for name, value in ours.items())]

    def _living(self) -> list[subprocess.Popen[bytes]]:
        self._children = [child for child in self._children if child.poll() is None]
        return self._children

    def _serve(self) -> None:
        while True:
            connection, _ = self._door.accept()
            os.truncate(self._said, 0)
            with connection, self._said.open("ab") as said:
                while len(self._living()) >= SESSIONS:  # the SDK takes those first that it has and does not use
                    time.sleep(0.02)
                try:  # in a session of its own: Ctrl-C is for us, and there is no terminal to ask on
                    end = connection.fileno()
                    child = subprocess.Popen(self._argv, stdin=end, stdout=end, stderr=said, start_new_session=True)
                except OSError as error:
                    said.write(str(error).encode())
                else:
                    self._children.append(child)


def _parsed(host: str) -> SplitResult:
    try:
        url = urlsplit(host)
        wrong = not url.hostname or url.port == 0 or url.password is not None or url.path not in ("", "/")
    except ValueError:  # its port is none
        wrong = True
    if wrong:
        hint = "ssh://me@gpu-server, or ssh://me@gpu-server:2222"
        raise ExecutorError(f"{host!r} is no address of a host", hint=hint)
    return url
