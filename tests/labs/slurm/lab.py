"""A real Slurm on this one machine: munge, slurmctld, slurmdbd on MariaDB, four nodes with fake GPUs, and an sshd.

Each node is a set of namespaces with an address and a slurmd of its own. The user `alice`, who has no rights beyond
hers, may charge the accounts proj-a and proj-b. All files lie in one folder; beside it the lab leaves the Debian
packages, the user, and nothing else.

By hand, from the repository's root, as root:

    python -m tests.labs.slurm.lab up | down | status
    python -m tests.labs.slurm.lab kill | stop | start | pause | resume  slurmctld | slurmdbd | mariadbd | munged | sshd
    python -m tests.labs.slurm.lab off | on  2          one node
    python -m tests.labs.slurm.lab drop-ssh             the connections, not the server

Tests take the fixture `slurm_lab`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.labs.machine import (
    LABS,
    Daemons,
    LabError,
    children,
    require_packages,
    require_user,
    start_time,
    succeeds,
    until,
)
from tests.labs.slurm import settings
from tests.labs.sshd import Sshd
from tests.labs.users import SharedLab

PACKAGES = (
    "munge",
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurmdbd",
    "mariadb-server",
    "openssh-server",
    "openssh-client",
    "iproute2",
    "gcc",
    "libc6-dev",
    "libslurm-dev",
)


class SlurmLab(SharedLab):
    """The lab of this machine, whether it is up or not.

    sshd: how to reach it; user, home: who is there. job_dir: a folder of this process's own for the launcher's state.
    python: what she can run anywhere. trainer: the same with the packages of the Python that the lab was started with,
    on the nodes alone; those may lie where she cannot look, in a home folder of root's.
    """

    name = "slurm"

    def __init__(self) -> None:
        self.folder = LABS / "slurm"
        self.etc, self.run, self.log, self.state = (self.folder / name for name in ("etc", "run", "log", "state"))
        self.daemons = Daemons(self.run, self.log)
        self.env = {
            "SLURM_CONF": str(self.etc / "slurm.conf"),
            "MYSQL_UNIX_PORT": str(self.run / "mysql" / "socket"),  # where libmariadb looks for "localhost"
        }
        self.python = "/usr/bin/python3"
        self.forgot = False
        self._trainer = self.folder / "trainer"
        self._packages = self.folder / "packages"  # empty; a node sees there what the tests run with

    @property
    def sshd(self) -> Sshd:
        more = f"SetEnv SLURM_CONF={self.env['SLURM_CONF']}"
        return Sshd(self.folder / "ssh", port=settings.SSH_PORT, more=more, lasting=True)

    @property
    def job_dir(self) -> str:
        return str(self.sshd.home / f"jobs_{os.getpid()}")

    @property
    def trainer(self) -> str:
        """Raises LabError where the two Pythons are of different versions: compiled packages are for one."""
        [made] = (self._trainer / "lib").iterdir()
        ours = f"python{sys.version_info.major}.{sys.version_info.minor}"
        if made.name != ours:
            raise LabError(f"{self.python} is {made.name}, and the tests run in {ours}: training needs one version")
        return str(self._trainer / "bin" / "python")

    def image(self, name: str) -> Path:
        """A root file system for --container-image, whose programs are the node's once /usr and /etc are mounted."""
        folder = self.folder / "images" / f"{name}_{os.getpid()}_{secrets.token_hex(3)}"
        folder.mkdir(parents=True)
        for link in ("bin", "lib", "lib64", "sbin"):
            (folder / link).symlink_to(f"usr/{link}")
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o1777)  # where Slurm starts a task whose folder is not in the image
        (folder / "in_the_image").touch()
        return folder

    def command(self, *argv: str, timeout: float = 60) -> str:
        """What a command of Slurm's prints, run here as root (to look, or to break something). Raises LabError."""
        done = subprocess.run(
            argv,
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if done.returncode:
            raise LabError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    # Up and down.

    def up(self) -> None:
        """Start what does not run, and wake what was paused; from nothing, if nothing runs. Raises LabError."""
        require_packages(*PACKAGES)
        running = [name for name, runs in self.status().items() if runs]
        if not running:
            shutil.rmtree(self.folder, ignore_errors=True)
        try:
            for name in running:
                self.resume(name)
            self._prepare()
            for name in ("munged", "mariadbd", "slurmdbd", "slurmctld"):
                self.start(name)
            for node in range(1, settings.NODES + 1):
                self.on(node)
            self.sshd.start()
            self.wait_until_idle()
        except (LabError, subprocess.SubprocessError, OSError) as error:
            raise LabError(f"the Slurm lab does not come up: {error}\n{self._last_words()}") from None

    def down(self) -> None:
        """End all that was started. Jobs go with their nodes."""
        if not self.run.is_dir():
            return
        self.sshd.stop()
        for node in range(1, settings.NODES + 1):
            self.off(node)
        for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            self.daemons.stop(name, 15)
        subprocess.run(["ip", "link", "del", settings.BRIDGE], check=False, capture_output=True)
        shutil.rmtree(self.run)

    def reboot_if_forgotten(self) -> None:
        """End jobs that slurmctld has forgotten: their ids are used again, and a node ends both that have the same."""
        if self.forgot:
            for node in range(1, settings.NODES + 1):
                self.off(node)
                self.on(node)
            self.wait_until_idle()
            self.forgot = False

    def wait_until_idle(self, seconds: float = 60) -> None:
        """Until every node takes jobs; those that a fault took out of service are put back."""

        def ready() -> bool:
            try:
                states = dict(
                    line.split() for line in self.command("sinfo", "-hN", "-p", "batch", "-o", "%N %t").splitlines()
                )
                out = [node for node, state in states.items() if state in ("drain", "drng", "down")]
                if out:
                    self.command("scontrol", "update", f"nodename={','.join(out)}", "state=resume")
            except LabError:
                return False
            return len(states) == settings.NODES and set(states.values()) <= {"idle", "mix", "alloc"}

        until(ready, seconds, f"{settings.NODES} nodes that take jobs")

    # One by one, to break and to mend. Names are those of `status`.

    def status(self) -> dict[str, bool]:
        names = ["munged", "mariadbd", "slurmdbd", "slurmctld", *(f"node{n}" for n in range(1, settings.NODES + 1))]
        found = {name: self.daemons.pid(name) is not None for name in names}
        return {**found, "sshd": self.sshd.daemons.pid("sshd") is not None}

    def kill(self, name: str) -> None:
        """End a daemon as a crash would. slurmctld forgets what it has not saved, some 5 s."""
        self.forgot = self.forgot or name == "slurmctld"
        self.sshd.kill() if name == "sshd" else self.daemons.kill(name)

    def stop(self, name: str) -> None:
        """End a daemon as an administrator would."""
        self.sshd.stop() if name == "sshd" else self.daemons.stop(name, 15)

    def pause(self, name: str) -> None:
        """It hangs: it is there, and answers nothing."""
        self.sshd.pause() if name == "sshd" else self.daemons.signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.sshd.resume() if name == "sshd" else self.daemons.signal(name, signal.SIGCONT)

    def start(self, name: str) -> None:
        """Start a daemon that does not run, and wait until it answers."""
        if name == "sshd":
            self.sshd.start()
        else:
            {
                "munged": self._start_munged,
                "mariadbd": self._start_mariadbd,
                "slurmdbd": self._start_slurmdbd,
                "slurmctld": self._start_slurmctld,
            }[name]()

    def off(self, node: int) -> None:
        """Cut a node's power: all its processes end at once. Slurm sees it some 10 to 30 s later."""
        name = f"node{node}"
        if (pid := self.daemons.pid(name)) is not None:
            inside = children(pid)
            self.daemons.kill(name)  # what it holds is killed with it; its going takes a moment
            until(lambda: all(start_time(child) is None for child in inside), 10, f"the end of {name}")
        (self.run / f"{name}.pid").unlink(missing_ok=True)

    def on(self, node: int) -> None:
        """Boot a node, if it is off."""
        name = f"node{node}"
        if self.daemons.pid(name) is not None:
            return
        (self.state / "slurmd" / name).mkdir(parents=True, exist_ok=True)
        cable = f"{settings.BRIDGE}{node}"
        subprocess.run(["ip", "link", "del", cable], check=False, capture_output=True)  # the kernel may still be at it
        inside = [str(Path(__file__).parent / "node.sh"), name, settings.address(node), str(self.etc / "hosts")]
        inside += [self.env["SLURM_CONF"], sysconfig.get_path("purelib"), str(self._packages)]
        pid = self.daemons.start(
            name,
            [
                "unshare",
                "--net",
                "--uts",
                "--pid",
                "--mount",
                "--fork",
                "--kill-child",
                "sh",
                *inside,
            ],
        )
        until(lambda: bool(children(pid)), 10, f"the first process of {name}")
        first = str(children(pid)[0])
        # Its card is the same as before it was off: the other nodes remember its address for half a minute.
        card = ["eth0", "address", f"02:00:00:00:00:{node:02x}"]
        _ip("link", "add", cable, "type", "veth", "peer", "name", *card, "netns", first)
        _ip("link", "set", cable, "master", settings.BRIDGE, "up")

    def drop_ssh(self) -> None:
        """Break every SSH connection, as a network would; what they run goes on."""
        self.sshd.drop_sessions()

    def leave(self) -> None:
        shutil.rmtree(self.job_dir, ignore_errors=True)

    # How each is started.

    def _prepare(self) -> None:
        for folder in (self.etc, self.run, self.log, self.state, self.state / "dev", self.state / "slurmd"):
            folder.mkdir(parents=True, exist_ok=True)
        for user, names in {
            "munge": (self.run / "munge", self.state / "munge"),
            "slurm": (self.state / "slurmctld",),
            "mysql": (self.run / "mysql", self.state / "mysql"),
        }.items():
            for folder in names:
                folder.mkdir(exist_ok=True)
                shutil.chown(folder, user, user)
        self.log.chmod(0o1777)  # each daemon writes its own
        key = self.etc / "munge.key"
        if not key.exists():
            _write(key, os.urandom(128), "munge", 0o400)
        _write(self.etc / "slurm.conf", settings.slurm_conf(self.etc, self.run, self.log, self.state))
        _write(self.etc / "slurmdbd.conf", settings.slurmdbd_conf(self.run, self.log, self.state), "slurm", 0o600)
        _write(self.etc / "gres.conf", settings.gres_conf(self.state / "dev"))
        _write(self.etc / "cgroup.conf", "")
        _write(self.etc / "plugstack.conf", f"required {self._plugin()}\n")
        _write(self.etc / "hosts", settings.hosts())
        for gpu in range(settings.GPUS):
            device = self.state / "dev" / f"nvidia{gpu}"
            if not device.exists():
                os.mknod(device, 0o20666, os.makedev(1, 3))
                device.chmod(0o666)
        self._packages.mkdir(exist_ok=True)
        if not list(self._trainer.glob("lib/*/*/packages.pth")):
            make = [self.python, "-m", "venv", "--without-pip", str(self._trainer)]
            subprocess.run(make, check=True, capture_output=True, timeout=60)
            [own] = self._trainer.glob("lib/*/site-packages")
            # Of what lies there, .pth files are not read: our own packages come with a job, or are seen to be missing.
            (own / "packages.pth").write_text(f"{self._packages}\n")
        if not succeeds(["ip", "link", "show", settings.BRIDGE]):
            _ip("link", "add", settings.BRIDGE, "type", "bridge")
            _ip("addr", "add", f"{settings.address(0)}/24", "dev", settings.BRIDGE)
            _ip("link", "set", settings.BRIDGE, "up")

    def _plugin(self) -> Path:
        """The stand-in for Pyxis, which gives srun its --container options."""
        plugin = self.state / "container.so"
        source = Path(__file__).parent / "container.c"
        if not plugin.exists() or plugin.stat().st_mtime < source.stat().st_mtime:
            new = plugin.with_suffix(".new")  # what runs has the old one open
            command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(new), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            if done.returncode:
                raise LabError(done.stderr)
            new.replace(plugin)
        return plugin

    def _start_munged(self) -> None:
        if self.daemons.pid("munged") is None:
            for left in ("socket", "socket.lock"):
                (self.run / "munge" / left).unlink(missing_ok=True)
        files = {
            "--socket": self.run / "munge" / "socket",
            "--key-file": self.etc / "munge.key",
            "--pid-file": self.run / "munge" / "own.pid",
            "--seed-file": self.state / "munge" / "seed",
            "--log-file": self.log / "munged.log",
        }
        argv = ["munged", "--foreground", *(f"{option}={file}" for option, file in files.items())]
        self.daemons.start("munged", argv, user="munge")
        until(lambda: succeeds(["munge", "-n", "-S", str(files["--socket"])]), 20, "munged")

    def _start_mariadbd(self) -> None:
        data, made = self.state / "mysql", self.state / "mysql_made"
        if not made.exists():
            install = ["mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={data}", "--skip-test-db"]
            subprocess.run(
                [*install, "--auth-root-authentication-method=socket"], check=True, capture_output=True, timeout=120
            )
            made.touch()
        socket = self.env["MYSQL_UNIX_PORT"]
        options = {
            "datadir": data,
            "socket": socket,
            "pid-file": self.run / "mysql" / "own.pid",
            "innodb-buffer-pool-size": "64M",
            "innodb-log-file-size": "32M",
            "innodb-lock-wait-timeout": 900,
            "innodb-flush-log-at-trx-commit": 0,  # nothing in here must outlive the machine
        }
        argv = ["mariadbd", "--no-defaults", "--skip-networking", "--skip-name-resolve"]
        self.daemons.start("mariadbd", [*argv, *(f"--{key}={value}" for key, value in options.items())], user="mysql")
        client = ["mariadb", "--no-defaults", f"--socket={socket}"]
        until(lambda: succeeds([*client, "-e", "SELECT 1"]), 60, "mariadbd")
        # The system's user slurm is known by its number: there is no password anywhere.
        script = """
            CREATE DATABASE IF NOT EXISTS slurm_acct_db;
            CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED VIA unix_socket;
            GRANT ALL ON slurm_acct_db.* TO slurm@localhost;
        """
        subprocess.run([*client, "-e", script], check=True, capture_output=True, timeout=60)

    def _start_slurmdbd(self) -> None:
        self.daemons.start("slurmdbd", ["slurmdbd", "-D"], user="slurm", env=self.env)
        until(lambda: succeeds(["sacctmgr", "-n", "list", "cluster"], self.env), 60, "slurmdbd")
        if "lab" not in self.command("sacctmgr", "-nP", "list", "cluster", "format=Cluster").split():
            self.command("sacctmgr", "-i", "add", "cluster", "lab")
        user = require_user().pw_name
        for account in settings.ACCOUNTS:
            if not self.command(
                "sacctmgr", "-nP", "list", "assoc", "cluster=lab", f"account={account}", f"user={user}"
            ):
                self.command("sacctmgr", "-i", "add", "account", account, "cluster=lab")
                self.command("sacctmgr", "-i", "add", "user", user, f"account={account}", "cluster=lab")

    def _start_slurmctld(self) -> None:
        self.daemons.start("slurmctld", ["slurmctld", "-D", "-i"], user="slurm", env=self.env)
        until(lambda: succeeds(["scontrol", "ping"], self.env), 30, "slurmctld")

    def _last_words(self) -> str:
        """The ends of all logs."""
        words = []
        for file in sorted([*self.log.glob("*"), *(self.folder / "ssh").glob("*.log")]) if self.log.is_dir() else []:
            if end := file.read_text(errors="replace").splitlines()[-5:]:
                words += [f"{file}:", *(f"  {line}" for line in end)]
        return "\n".join(words)


def _write(file: Path, content: str | bytes, owner: str = "root", mode: int = 0o644) -> None:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    shutil.chown(file, owner, owner)
    file.chmod(mode)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(
            f"ip {' '.join(arguments)}: {done.stderr.strip()} "
            "(the lab makes network namespaces: in a container, that takes --privileged)"
        )


def main(arguments: list[str]) -> None:
    lab = SlurmLab()
    match arguments:
        case ["up" | "down" | "status" as verb]:
            lab.by_hand(verb)
            if verb == "up":
                print(f"ssh -F {lab.sshd.ssh_config()} lab")
        case ["keep"]:
            lab.keep()
        case ["kill" | "stop" | "start" | "pause" | "resume" as verb, name]:
            getattr(lab, verb)(name)
        case ["off" | "on" as verb, node]:
            getattr(lab, verb)(int(node))
        case ["drop-ssh"]:
            lab.drop_ssh()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
