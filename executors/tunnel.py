"""How commands and files get to where jobs are submitted: over SSH, or right here on a login node.

    tunnel = SSHTunnel("login.cluster.example", user="alice", job_dir="/scratch/alice/jobs")
    tunnel.run(["sbatch", "--parsable", path], timeout=60).stdout

All there needs is POSIX sh. What is typed travels as arguments, never as part of a script.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import os
import posixpath
import re
import secrets
import shlex
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from launcher.errors import TunnelError
from launcher.strict import Strict

if TYPE_CHECKING:
    from executors.ssh.config import Host

# The command is a child, whose death by a signal is 128 + its number, so that a session which was killed stands apart.
# The mark comes before its own output: whatever the login shell's start-up files print is before that.
MARK = 'printf %s "$1"; printf %s "$1" >&2; shift; '
RUN = MARK + '"$@" </dev/null; exit "$?"'
# What the command leaves of its input is read all the same: see executors.ssh.connection._Command.
FEED = MARK + '"$@"; set -- "$?"; cat >/dev/null; exit "$1"'
# The size is compared because a connection that breaks off looks like the end of the file.
PUT = (
    'LC_ALL=C; export LC_ALL; if [ -d "$1" ]; then echo "$1: is a folder" >&2; exit 1; fi; '
    'mkdir -p "${1%/*}/" || exit; '
    'umask 077; trap \'rm -f "$2"\' EXIT; trap "exit 1" HUP PIPE TERM; cat >"$2" || exit; '
    'if [ "$(wc -c <"$2")" -ne "$3" ]; then echo "it broke off" >&2; exit 1; fi; '
    'chmod "$4" "$2" && mv -f "$2" "$1"'
)
READ = (
    'LC_ALL=C; export LC_ALL; if [ -d "$1" ]; then echo "$1: is a folder" >&2; exit 1; fi; exec <"$1" || exit; '
    'if [ -n "$3" ]; then tail -c "+$2" | head -c "$3"; else tail -c "+$2"; fi'
)
# What stands between quotes in sh, and has a meaning there in csh or fish, which may be the login shell.
STRANGE = re.compile(rb"[\\\r\n!]")
PLAIN = frozenset(range(ord(" "), 127)) - frozenset(b"\\'!")  # what means itself there in all of them
LONGEST_COMMAND = 120_000  # bytes; Linux passes no longer argument to the remote shell
SLOWEST = 100_000  # bytes a second; a file that travels slower than this is given up
PATIENCE = 60.0  # seconds for a small file
# What `ssh -G` takes for a name, and never for an option.
NAMES = {
    "host": re.compile(r"[^\s\x00-\x1f/@-][^\s\x00-\x1f/@]*"),
    "user": re.compile(r"[^\s\x00-\x1f-][^\s\x00-\x1f]*"),
}


@dataclass(frozen=True)
class Completed:
    """A command that ended. `status` is as a shell gives it: 128 + N where signal N killed it, 127 if there is none."""

    status: int
    stdout: bytes
    stderr: bytes


@dataclass(kw_only=True)
class Tunnel(Strict, ABC):
    """Commands and files of one place. Safe to use from several threads.

    job_dir: the folder there that holds all our state; an absolute path.
    """

    strict_error = TunnelError

    job_dir: str = ""

    @property
    @abstractmethod
    def name(self) -> str:
        """The place, as messages name it: "user@host"."""

    @property
    @abstractmethod
    def whereabouts(self) -> Hashable:
        """Equal for tunnels to the same user of the same host."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held open. It may be used again, and opens again what it needs."""

    @abstractmethod
    def _execute(self, argv: list[str], source: BinaryIO | None, timeout: float | None) -> tuple[int, bytes, bytes]:
        """Status, stdout and stderr of a command that reads all of `source`; of one without input where it is None."""

    def check(self) -> None:
        """Refuse settings that cannot work. Connects nowhere. Raises TunnelError."""
        if self.job_dir == "":
            raise TunnelError(
                f"{type(self).__name__}.job_dir is not set: the folder there that holds all our state",
                where=self.where("job_dir"),
                hint="job_dir='/home/USER/jobs'",
            )
        self._absolute(self.job_dir, where=self.where("job_dir"))

    def run(self, argv: Sequence[str], *, input: bytes = b"", timeout: float | None) -> Completed:
        """Run a command there, in the home folder, and wait for its end; a status that is not 0 is no error.

        timeout: seconds; None waits for ever.
        Raises TunnelError; `lost` tells whether the command may have run.
        """
        return self._run(argv, io.BytesIO(input) if input else None, timeout)

    def put(self, data: bytes | Path, path: str, mode: int = 0o644) -> None:
        """Write a file there, its folders too; it is there whole, or as it was. Nobody else reads it before `mode`.

        data: its contents, or the file here that has them.
        Raises TunnelError.
        """
        self._absolute(path)
        with contextlib.ExitStack() as stack:
            source: BinaryIO
            if isinstance(data, Path):
                try:
                    source = stack.enter_context(data.open("rb"))
                except OSError as error:
                    raise TunnelError(f"cannot read {data}, which is to be sent: {error.strerror}") from None
                size = os.fstat(source.fileno()).st_size
            else:
                source, size = io.BytesIO(data), len(data)
            beside = posixpath.join(posixpath.dirname(path), f".{secrets.token_hex(8)}.part")
            done = self._run(
                ["sh", "-c", PUT, "put", path, beside, str(size), f"{mode:o}"], source, PATIENCE + size / SLOWEST
            )
        if done.status:
            raise self._denied("write", path, done)

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> bytes:
        """A file there from a byte on, at most `limit` bytes; b"" at its end or beyond.

        Raises FileNotFoundError where there is none, TunnelError for the rest.
        """
        self._absolute(path)
        timeout = PATIENCE + (2**30 if limit is None else limit) / SLOWEST
        argv = ["sh", "-c", READ, "read", path, str(offset + 1), "" if limit is None else str(limit)]
        done = self._run(argv, None, timeout)
        if done.stderr.rstrip().endswith((b"No such file", b"No such file or directory")):
            raise FileNotFoundError(f"there is no {path} on {self.name}")
        if done.status:
            raise self._denied("read", path, done)
        return done.stdout

    def _run(self, argv: Sequence[str], source: BinaryIO | None, timeout: float | None) -> Completed:
        self.check()
        if isinstance(argv, str) or not argv or any("\0" in word for word in argv):
            raise TunnelError(f"{argv!r} is no command: it takes a list of texts without NUL characters")
        mark = f"--{secrets.token_hex(8)}--"
        status, *outputs = self._execute(
            ["sh", "-c", RUN if source is None else FEED, "sh", mark, *argv], source, timeout
        )
        stdout, stderr = (output.partition(mark.encode()) for output in outputs)
        if not stdout[1]:
            said = b"\n".join(outputs).decode(errors="replace").strip()
            raise TunnelError(f"{self.name} did not run the command; it said: {said or f'(exit status {status})'}")
        return Completed(status, stdout[2], stderr[2])

    def _denied(self, verb: str, path: str, done: Completed) -> TunnelError:
        said = done.stderr.decode(errors="replace").strip() or f"exit status {done.status}"
        hint = None
        if "Permission denied" in said or "Read-only file system" in said:
            hint = (
                f"job_dir='...' for a folder on {self.name} that you may write to, such as one below your $HOME there"
            )
        elif "No space left" in said or "quota" in said.lower():
            hint = f"make room on {self.name}, or job_dir='...' on another file system"
        return TunnelError(f"cannot {verb} {path} on {self.name}: {said}", where=self.where("job_dir"), hint=hint)

    def _absolute(self, path: str, where: str | None = None) -> None:
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise TunnelError(
                f"{path!r} is no absolute path; a shell's ~ and $HOME mean nothing here",
                where=where,
                hint="job_dir='/home/USER/jobs'",
            )


@dataclass(kw_only=True)
class LocalTunnel(Tunnel):
    """This machine, for a launcher that runs on a login node."""

    @property
    def name(self) -> str:
        return f"{getpass.getuser()}@{socket.gethostname()}"

    @property
    def whereabouts(self) -> Hashable:
        return "here"

    def close(self) -> None:
        pass

    def _execute(self, argv: list[str], source: BinaryIO | None, timeout: float | None) -> tuple[int, bytes, bytes]:
        data = source.read() if isinstance(source, io.BytesIO) else None
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if data is not None else source or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path.home(),
            start_new_session=True,  # Ctrl-C is ours to act on; and all of it can be ended together
        )
        try:
            stdout, stderr = process.communicate(data, timeout)
        except subprocess.TimeoutExpired:
            raise TunnelError(f"{self.name} did not end the command within {timeout:g} s", lost=True) from None
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if process.returncode < 0:
            raise TunnelError(f"a command on {self.name} was killed from outside; it may have run", lost=True)
        return process.returncode, stdout, stderr


@dataclass
class SSHTunnel(Tunnel):
    """A host over SSH, as ~/.ssh/config says; what is given here wins over that.

    Its key must be in known_hosts: one that is unknown, or has changed, is refused. Equal tunnels of one process share
    one connection, which is opened when first needed and again when it was lost, so that a passphrase or second factor
    is asked for once a connection.

    host: a name or address, or a Host of ~/.ssh/config.
    identity: the private key's file.
    ssh_config: read instead of ~/.ssh/config.
    """

    host: str
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    job_dir: str = field(default="", kw_only=True)
    ssh_config: str | None = field(default=None, kw_only=True)

    @property
    def name(self) -> str:
        return str(self._host())

    @property
    def whereabouts(self) -> Hashable:
        host = self._host()
        return host.user, host.hostname, host.port, host.jump

    def check(self) -> None:
        super().check()
        for name, pattern in NAMES.items():
            value = getattr(self, name)
            if not (name == "user" and value is None) and not (isinstance(value, str) and pattern.fullmatch(value)):
                raise TunnelError(
                    f"SSHTunnel.{name} is {value!r}, which names no {name}",
                    where=self.where(name),
                    hint="host='login.cluster.example', user='alice', port=22",
                )
        if self.port is not None and (type(self.port) is not int or not 0 < self.port < 2**16):
            raise TunnelError(f"SSHTunnel.port is {self.port!r}", where=self.where("port"), hint="port=22")

    def close(self) -> None:
        """Close the connection, for every tunnel that shares it."""
        from executors.ssh.connection import connection

        connection(self._host()).close()

    def _host(self) -> Host:
        from executors.ssh.config import resolve

        self.check()
        return resolve(self.host, user=self.user, port=self.port, identity=self.identity, config=self.ssh_config)

    def _execute(self, argv: list[str], source: BinaryIO | None, timeout: float | None) -> tuple[int, bytes, bytes]:
        from executors.ssh.connection import connection

        command = _for_any_shell(os.fsencode(shlex.join(argv)))
        if len(command) > LONGEST_COMMAND:
            raise TunnelError(
                f"a command of {len(command):,} bytes is longer than {self.name} takes", hint="send it as its input"
            )
        return connection(self._host()).execute(command, source, timeout)


def _for_any_shell(line: bytes) -> bytes:
    """A line for sh as a line that every login shell hands to sh unchanged."""
    if not STRANGE.search(line):
        return line
    plain = b"".join(bytes([byte]) if byte in PLAIN else b"\\0%03o" % byte for byte in line)
    return b"""sh -c 'eval "exec $(printf %b "$0")"' '""" + plain + b"'"
