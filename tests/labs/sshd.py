"""A real OpenSSH server on a port of its own, which lets the lab's user in with a key made for it."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import socket
import subprocess
from pathlib import Path

from tests.labs.machine import USER, Daemons, LabError, children, descendants, require_packages, require_user, until

CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_ed25519
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication {pam}
UsePAM {pam}
UseDNS no
PrintMotd no
Subsystem sftp internal-sftp
{more}
"""


class Sshd:
    """An sshd whose files lie in `folder`. `known_hosts` and `identity` are what a client needs.

    more: further lines of its configuration. pam: it asks what PAM
    has it ask. program: another name to run it by, which is the name PAM knows it by.
    port: 0 for a free one. lasting: it outlives the process that starts it, which else takes it along, however it ends.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        more: str = "",
        program: str = "/usr/sbin/sshd",
        lasting: bool = False,
        pam: bool = False,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self.user = USER
        self.folder = folder
        self.program = program
        self.lasting = lasting
        self.daemons = Daemons(folder, folder)
        self.identity = folder / "id_ed25519"
        self.known_hosts = folder / "known_hosts"
        self.settings = CONFIG.format(port=self.port, folder=folder, more=more, pam="yes" if pam else "no")

    @property
    def home(self) -> Path:
        return Path(require_user().pw_dir)

    def start(self) -> Sshd:
        """Start it if it does not run, and wait until it answers."""
        require_packages("openssh-server", "openssh-client")
        require_user()
        self.folder.mkdir(parents=True, exist_ok=True)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks its unprivileged half in
        for name in ("host_ed25519", "id_ed25519"):
            if not (self.folder / name).exists():
                make_key(self.folder / name)
        if not self.known_hosts.exists():
            _write(self.folder / "authorized_keys", self.identity.with_suffix(".pub").read_text())
            self.know()
        config, log = self.folder / "sshd_config", self.folder / "sshd.log"
        _write(config, self.settings)
        bound = [] if self.lasting else ["setpriv", "--pdeathsig", "KILL", "--"]
        self.daemons.start("sshd", [*bound, self.program, "-D", "-f", str(config), "-E", str(log)])
        try:
            until(self._answers, 20, f"sshd at port {self.port}")
        except LabError:
            raise LabError(f"sshd does not answer: {self.log() if log.exists() else ''}") from None
        return self

    def know(self, key: Path | None = None) -> None:
        """Write known_hosts anew, with the server's key or another."""
        public = (key or self.folder / "host_ed25519").with_suffix(".pub").read_text().split()[:2]
        _write(self.known_hosts, f"[{self.host}]:{self.port} {' '.join(public)}\n")

    def ssh_config(self, more: str = "", **settings: object) -> str:
        """A configuration file of a client's, in which this server is the host "lab". Another file each time."""
        file = self.folder / f"config_{secrets.token_hex(4)}"
        known = {
            "HostName": self.host,
            "Port": self.port,
            "User": self.user,
            "IdentityFile": self.identity,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.known_hosts,
            **settings,
        }
        lines = ["Host lab", *(f"  {name} {value}" for name, value in known.items() if value is not None)]
        file.write_text("\n".join(lines) + f"\n{more}\n")
        return str(file)

    def stop(self) -> None:
        """End it and the sessions that it holds."""
        self.resume()
        self.drop_sessions()
        self.daemons.stop("sshd", 5)

    def kill(self) -> None:
        """End it and its sessions at once; `start` starts it again."""
        for pid in self._pids():
            with _gone():
                os.kill(pid, signal.SIGKILL)
        until(lambda: self.daemons.pid("sshd") is None, 10, "the end of sshd")

    def drop_sessions(self) -> None:
        """End its connections, as a broken line would; commands that they run go on, and the server too."""
        for pid in self._pids()[:-1]:
            with _gone():
                os.kill(pid, signal.SIGKILL)

    def pause(self) -> None:
        """Answer nothing any more, while connections stay open."""
        for pid in self._pids():
            with _gone():
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in self._pids():
            with _gone():
                os.kill(pid, signal.SIGCONT)

    def connections(self) -> int:
        """How many it holds."""
        pid = self.daemons.pid("sshd")
        return 0 if pid is None else len(children(pid))

    def log(self) -> str:
        return (self.folder / "sshd.log").read_text()

    def _pids(self) -> list[int]:
        """The server's and its connections' processes, without the commands that they run; the server last."""
        pid = self.daemons.pid("sshd")
        if pid is None:
            return []
        program = os.path.realpath(self.program)
        return [*(child for child in descendants(pid) if _program(child) == program), pid]

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False


def _write(file: Path, text: str) -> None:
    """Write a file that others may be reading; leave one that is right as it is."""
    if not file.exists() or file.read_text() != text:
        new = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
        new.write_text(text)
        new.replace(file)


def make_key(path: Path, passphrase: str = "", type_: str = "ed25519") -> Path:
    command = ["ssh-keygen", "-q", "-t", type_, "-N", passphrase, "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def free_port() -> int:
    """One that nothing listens at, below those that the kernel gives to connections that go out."""
    while True:
        port = random.randrange(20_000, 30_000)  # noqa: S311
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


def _gone() -> contextlib.suppress:
    return contextlib.suppress(ProcessLookupError)


def _program(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""
