"""A real Docker engine on this machine: dockerd with its own socket, data and namespaces, and a base image.

The engine has process, mount and network namespaces of its own: its containers, networks and mounts are gone when the
first process in there ends, however that happens, and the machine's firewall is never touched. All files lie in one
folder; beside it the lab leaves Debian's packages and the image's archive.

By hand, from the repository's root, as root:

    python -m tests.labs.containers.lab up | down | status
    python -m tests.labs.containers.lab restart | kill | start | pause | resume      the engine

Tests take the fixture `container_lab`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.labs.containers.image import mark, python, tarball
from tests.labs.machine import LABS, Daemons, LabError, children, require_packages, require_user, succeeds, until
from tests.labs.users import SharedLab

PACKAGES = ("docker.io", "iptables", "iproute2", "openssl", "tini")
ENGINE, DOOR, NAMESPACE = "dockerd", "door", "engine"
SECURE = 2376  # where it speaks TLS, in its own network alone
MEMBER = "dora"
CLONE_NEWNET = 0x40000000
CGROUP = "gemma_launcher_lab"
# Forwarding first: it is on already then, and the engine leaves the rest as it is.
FIRST = "ip link set lo up && echo 1 >/proc/sys/net/ipv4/ip_forward && exec tini -s -- sleep infinity"


class ContainerLab(SharedLab):
    """The lab of this machine, whether it is up or not.

    host: how to reach the engine, as DOCKER_HOST has it; `secure` is another way, for who has the `certificates`.
    image: the base image, with `python` in it.
    packages: volumes that show a container what is installed for the tests, for PYTHONPATH=/packages.
    """

    name = "containers"
    image = f"gemma-launcher-lab:{mark()}"

    def __init__(self) -> None:
        self.folder = LABS / "containers"
        self.run, self.log, self.data = (self.folder / name for name in ("run", "log", "data"))
        self.daemons = Daemons(self.run, self.log)
        self.socket = self.run / "api.sock"
        self.host = f"unix://{self.socket}"
        self.certificates = self.run / "certificates" / "client"
        self.python = python()
        self.env = {"DOCKER_HOST": self.host, "DOCKER_CONFIG": str(self.run / "client")}

    @property
    def packages(self) -> list[str]:
        return [f"{sysconfig.get_path('purelib')}:/packages:ro"]

    def member(self) -> str:
        """A user whom the engine's socket lets in, as the labs' other one is not. It stays."""
        require_user(MEMBER)
        subprocess.run(["usermod", "-aG", "docker", MEMBER], check=True, capture_output=True)
        return MEMBER

    @contextmanager
    def secure(self) -> Iterator[str]:
        """The address at which it speaks TLS, led in from this machine's network while in here."""
        with socket.create_server(("127.0.0.1", 0)) as door:
            threading.Thread(target=self._lead_in, args=[door], daemon=True).start()
            yield f"tcp://127.0.0.1:{door.getsockname()[1]}"

    def _lead_in(self, door: socket.socket) -> None:
        [inside] = children(self.daemons.pid(NAMESPACE) or 0)
        with open(f"/proc/{inside}/ns/net") as network:  # this thread's from here on, and that of those it starts
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        with suppress(OSError):  # the door is closed
            while True:
                here, there = door.accept()[0], socket.create_connection(("127.0.0.1", SECURE))
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=_copy, args=ends, daemon=True).start()

    def command(self, *argv: str, timeout: float = 60) -> str:
        """What the engine's own client prints. Raises LabError."""
        done = subprocess.run(
            ["docker", *argv],
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if done.returncode:
            raise LabError(f"docker {' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    def up(self) -> None:
        require_packages(*PACKAGES)
        if not any(self.status().values()):
            self._sweep()
        for folder in (self.run, self.log, self.data):
            folder.mkdir(parents=True, exist_ok=True)
        if self.daemons.pid(NAMESPACE) is None:
            apart = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            pid = self.daemons.start(NAMESPACE, [*apart, "sh", "-c", FIRST])
            until(lambda: bool(children(pid)) and _runs(children(pid)[0], "tini"), 10, "the engine's namespaces")
        self.resume()
        self.start()
        self.load_image()

    def load_image(self) -> None:
        """Have the engine know the base image; one that runs already may know that of another interpreter alone."""
        if not self.command("images", "-q", self.image):
            self.command("import", "--change", "ENV LANG=C.UTF-8", str(tarball()), self.image, timeout=300)

    def down(self) -> None:
        """End the engine and its containers with it."""
        if self.run.is_dir():
            self.daemons.stop(NAMESPACE, 0)
            self._sweep()

    def status(self) -> dict[str, bool]:
        return {name: self.daemons.pid(name) is not None for name in (NAMESPACE, ENGINE)}

    # The engine alone, to break and to mend.

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers."""
        if self.daemons.pid(ENGINE) is None:
            self.resume()
            until(lambda: self.daemons.pid(DOOR) is None, 10, "the end of the last one")
            self._forget_dead_helpers()
            [inside] = children(self.daemons.pid(NAMESPACE) or 0)
            # On this side, it is known by the number that it has here: that of nsenter's child.
            enter = ["nsenter", "--target", str(inside), "--net", "--mount", "--pid"]
            door = self.daemons.start(DOOR, [*enter, "dockerd", *self._options()])
            until(lambda: bool(children(door)) and _runs(children(door)[0], "dockerd"), 10, "dockerd")
            self.daemons.record(ENGINE, children(door)[0])
        try:
            until(lambda: succeeds(["docker", "version"], self.env), 60, "an answer of dockerd")
        except LabError as error:
            said = (self.log / f"{DOOR}.out").read_text(errors="replace")[-3000:]
            raise LabError(f"{error}\n{said}") from None

    def kill(self) -> None:
        """End it as a crash would: its containers go on, until it is started again."""
        self.daemons.kill(ENGINE)

    def stop(self) -> None:
        """End it as an administrator would: it ends its containers."""
        self.daemons.stop(ENGINE, 30)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """It hangs: it is there, and answers nothing."""
        self.daemons.signal(ENGINE, signal.SIGSTOP)

    def resume(self) -> None:
        for name in (ENGINE, DOOR):  # nsenter stops with it, and does not see its end while it is
            if self.daemons.pid(name) is not None:
                self.daemons.signal(name, signal.SIGCONT)

    def _options(self) -> list[str]:
        (self.run / "daemon.json").write_text("{}")  # the machine's own is for its own engine
        folders = {"data-root": self.data, "exec-root": self.run / "exec", "pidfile": self.run / "own.pid"}
        proofs = {f"tls{name}": self._proof("engine") / f"{name}.pem" for name in ("cert", "key")}
        proofs["tlscacert"] = self._proof("client") / "ca.pem"
        more = {"host": self.host, "config-file": self.run / "daemon.json", "cgroup-parent": f"/{CGROUP}"}
        more["shutdown-timeout"] = 5
        options = [f"--{name}={value}" for name, value in {**folders, **more, **proofs}.items()]
        return [*options, f"--host=tcp://127.0.0.1:{SECURE}", "--tlsverify"]

    def _proof(self, name: str) -> Path:
        """A folder with who this is, and the authority that says so, as `docker` looks for them."""
        root = self.run / "certificates"
        authority = root / "authority"
        if not authority.exists():
            _sign(authority, [])
        if not (root / name).exists():
            _sign(root / name, ["-CA", str(authority / "cert.pem"), "-CAkey", str(authority / "key.pem")])
            shutil.copy(authority / "cert.pem", root / name / "ca.pem")
        return root / name

    def _forget_dead_helpers(self) -> None:
        """Its containerd ends with it when it is stopped, and outlives a crash: what is dead is not waited for."""
        (self.run / "own.pid").unlink(missing_ok=True)
        file = self.run / "exec" / "containerd" / "containerd.pid"
        inside = [inner for pid in children(self.daemons.pid(NAMESPACE) or 0) for inner in children(pid)]
        if file.exists() and not any(_runs(pid, "containerd") for pid in inside):
            file.unlink()

    def _sweep(self) -> None:
        """All files, and the control groups that are empty now."""
        for group in Path("/sys/fs/cgroup").glob(f"**/{CGROUP}"):
            for folder in sorted([group, *group.rglob("*/")], reverse=True):
                if folder.is_dir():
                    folder.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)


def _sign(folder: Path, by: list[str]) -> None:
    folder.mkdir(parents=True)
    made = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-days", "30", "-noenc"]
    names = ["-subj", f"/CN={folder.name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(["openssl", "req", "-x509", *kind, *names, *made, *by], check=True, capture_output=True)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _runs(pid: int, program: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == program
    except OSError:
        return False


def main(arguments: list[str]) -> None:
    lab = ContainerLab()
    match arguments:
        case ["up" | "down" | "status" as verb]:
            lab.by_hand(verb)
            if verb == "up":
                print("\n".join(f"export {name}={value}" for name, value in lab.env.items()))
        case ["keep"]:
            lab.keep()
        case ["kill" | "start" | "stop" | "restart" | "pause" | "resume" as verb]:
            getattr(lab, verb)()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
