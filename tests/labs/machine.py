"""What the labs need of the machine that they run on: packages, an unprivileged user, daemons that are found again.

A lab runs real daemons, some as root, started here and never by the system. Every one is known by its process id and
start time, kept in a file, so that whoever comes later (another test process, or one after a crash) signals that very
process and none that got its number since.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

LABS = Path("/tmp/gemma-launcher-labs")  # noqa: S108  # known to every process, reachable by every user; made by root
USER = "alice"


class LabError(Exception):
    """The lab cannot be brought up here. Says what to do."""


def require_root() -> None:
    if os.geteuid() != 0:
        raise LabError("the labs run real daemons (sshd, slurmctld): run the tests as root, on a machine to spare")


def require_packages(*names: str) -> None:
    """Install the Debian packages that are missing. Raises LabError."""
    require_root()
    with FileLock(_folder() / "packages.lock"):
        missing = [name for name in names if not _installed(name)]
        if not missing:
            return
        if shutil.which("apt-get") is None:
            raise LabError(f"this machine has no apt-get to install {' '.join(missing)} with: install them, run again")
        # No package may start a daemon by itself: ours are started by us, with settings of their own.
        policy = Path("/usr/sbin/policy-rc.d")
        ours = not policy.exists()
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        try:
            install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
            # A fresh machine has no index, an old one an index of packages that are gone.
            if _apt(install) and (_apt(["apt-get", "update", "-qq"]) or _apt(install)):
                said = (_folder() / "apt.log").read_text(errors="replace")[-2000:]
                raise LabError(f"cannot install {' '.join(missing)}; is a package mirror within reach?\n{said}")
        finally:
            if ours:
                policy.unlink()


def require_user(name: str = USER) -> pwd.struct_passwd:
    """An unprivileged user who can log in with a key. It stays: other tests and the labs share it."""
    require_root()
    with FileLock(_folder() / "users.lock"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            home = _folder() / "home" / name
            home.parent.mkdir(exist_ok=True)
            command = ["useradd", "--create-home", "--home-dir", str(home), "--shell", "/bin/bash", name]
            subprocess.run(command, check=True, capture_output=True)
            # A password of "!" means locked, and sshd then refuses keys too; "*" only means that there is none.
            subprocess.run(["usermod", "-p", "*", name], check=True, capture_output=True)
            return pwd.getpwnam(name)


class Daemons:
    """Processes by name, each with its pid file NAME.pid ("pid start-time") in one folder and its output in another."""

    def __init__(self, run: Path, log: Path) -> None:
        self.run = run
        self.log = log

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        user: str | None = None,
        env: Mapping[str, str] = {},
        cwd: Path = Path("/"),
    ) -> int:
        """Start one, in a session of its own, unless it runs already."""
        if (running := self.pid(name)) is not None:
            return running
        account = None if user is None else pwd.getpwnam(user)
        with (self.log / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=cwd,
                env={**os.environ, "LC_ALL": "C.UTF-8", **env},
                user=None if account is None else account.pw_uid,
                group=None if account is None else account.pw_gid,
                extra_groups=None if account is None else [],
            )
        self.record(name, process.pid)
        return process.pid

    def record(self, name: str, pid: int) -> None:
        started = start_time(pid)
        if started is None:
            raise LabError(f"{name} ended at once: see {self.log}")
        new = self.run / f"{name}.pid.new"
        new.write_text(f"{pid} {started}")
        new.replace(self.run / f"{name}.pid")

    def pid(self, name: str) -> int | None:
        """Its process id while it runs."""
        try:
            pid, started = map(int, (self.run / f"{name}.pid").read_text().split())
        except (OSError, ValueError):
            return None
        return pid if start_time(pid) == started else None

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.run.glob("*.pid"))

    def signal(self, name: str, number: int) -> None:
        pid = self.pid(name)
        if pid is None:
            raise LabError(f"{name} does not run")
        os.kill(pid, number)

    def kill(self, name: str) -> None:
        """End it at once, as a crash would."""
        self.signal(name, signal.SIGKILL)
        until(lambda: self.pid(name) is None, 10, f"the end of {name}")

    def stop(self, name: str, seconds: float = 10) -> None:
        """End it well, or not, after some seconds. It need not run."""
        if (pid := self.pid(name)) is not None:
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)
            try:
                until(lambda: self.pid(name) is None, seconds, name)
            except LabError:
                self.kill(name)
        (self.run / f"{name}.pid").unlink(missing_ok=True)


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None if it ended (a zombie has). Reaps our own."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        # The name of the program, in brackets, may hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(pid: int) -> Iterator[int]:
    """Its children, theirs, and so on; the deepest first."""
    for child in children(pid):
        yield from descendants(child)
        yield child


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something holds. Raises LabError."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise LabError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.02)


def succeeds(argv: Sequence[str], env: Mapping[str, str] = {}) -> bool:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, env={**os.environ, **env}, timeout=60
    )
    return done.returncode == 0


def _folder() -> Path:
    LABS.mkdir(mode=0o755, exist_ok=True)
    if LABS.stat().st_uid != os.geteuid():
        raise LabError(f"{LABS} belongs to someone else: take it away, and run the tests again")
    return LABS


def _installed(package: str) -> bool:
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status}", package], capture_output=True, text=True, check=False
    )
    return done.stdout == "installed"


def _apt(command: Sequence[str]) -> int:
    with (_folder() / "apt.log").open("ab") as log:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, env=env, timeout=600
        ).returncode
