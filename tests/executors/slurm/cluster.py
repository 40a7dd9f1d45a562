"""Jobs for tests in the Slurm lab, by hand: a folder there with a job.sh, and what root sees of it."""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Sequence
from typing import Any

from executors.slurm.submission import Job, place
from executors.tunnel import SSHTunnel, Tunnel
from tests.labs.slurm.lab import SlurmLab

HELD = "#SBATCH --hold\n"


class Counted(SSHTunnel):
    """Says how many commands it was asked for."""

    commands = 0

    def _execute(self, *arguments: Any) -> tuple[int, bytes, bytes]:
        Counted.commands += 1
        return super()._execute(*arguments)


class Cluster:
    """The lab, as one test uses it. tunnel: a clean line."""

    def __init__(self, lab: SlurmLab) -> None:
        self.lab = lab
        self.mark = secrets.token_hex(4)
        self.tunnel = self.reach()

    def reach(self, port: int | None = None) -> Counted:
        """A tunnel of its own, through a proxy's port perhaps."""
        server = self.lab.sshd
        known = f"[{server.host}]:{server.port}"
        config = server.ssh_config(Port=port or server.port, HostKeyAlias=known)
        return Counted("lab", ssh_config=config, job_dir=self.lab.job_dir)

    def jobs(self, count: int, body: str = "true", options: str = "", **settings: Any) -> list[Job]:
        """New jobs, placed there and not submitted."""
        group = secrets.token_hex(3)
        script = f"#!/bin/bash\n#SBATCH --account=proj-a\n#SBATCH --output=/dev/null\n{options}{body}\n".encode()
        names = [f"task_{n}" for n in range(count)]
        experiment = f"{self.mark}-{group}"
        own = "0" * 64
        self.tunnel.run(["mkdir", "-p", f"{self.tunnel.job_dir}/packages/{own}"], timeout=10)
        place(self.tunnel, self.tunnel.job_dir, experiment, tar({f"{name}/job.sh": script for name in names}), {}, own)
        folder = f"{self.tunnel.job_dir}/experiments/{experiment}"
        return [Job(folder=f"{folder}/{name}", name=f"{name}.{experiment}", **settings) for name in names]

    def known(self, jobs: Sequence[Job]) -> dict[str, list[int]]:
        """The ids that the scheduler, and accounting, have of each name."""
        found: dict[str, set[int]] = {job.name: set() for job in jobs}
        lines = self.lab.command("squeue", "-h", "-t", "all", "-u", self.lab.sshd.user, "-o", "%F|%j")
        lines += self.lab.command("sacct", "-XDPn", "-u", self.lab.sshd.user, "-S", "now-1hours", "-o", "JobID,JobName")
        for line in lines.splitlines():
            id_, _, name = line.partition("|")
            if name in found:
                found[name].add(int(id_.partition("_")[0]))
        return {name: sorted(ids) for name, ids in found.items()}

    def account(self, id_: int | str, change: str) -> None:
        """Change what accounting has of a job, as SQL: states that this lab does not bring about by itself."""
        socket = f"--socket={self.lab.env['MYSQL_UNIX_PORT']}"
        statement = f"UPDATE lab_job_table SET {change} WHERE id_job={int(id_)} ORDER BY job_db_inx DESC LIMIT 1"  # noqa: S608
        self.lab.command("mariadb", "--no-defaults", socket, "slurm_acct_db", "-e", statement)

    def accounted(self, id_: int | str) -> bool:
        return bool(self.lab.command("sacct", "-XPn", "-j", str(id_), "-o", "JobID").strip())

    def clean(self) -> None:
        lines = self.lab.command("squeue", "-h", "-u", self.lab.sshd.user, "-o", "%F|%j").splitlines()
        if ids := [id_ for id_, _, name in (line.partition("|") for line in lines) if f".{self.mark}-" in name]:
            self.lab.command("scancel", *ids)
        self.tunnel.close()


def tar(files: dict[str, bytes], mode: int = 0o644) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as packed:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            packed.addfile(entry, io.BytesIO(data))
    return made.getvalue()


def text(tunnel: Tunnel, path: str) -> str:
    return tunnel.read(path).decode()
