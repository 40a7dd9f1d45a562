"""What a cluster that is 50 ms away costs, beside this project's peers: `python -m benchmarks.slurm`.

The cluster is the Slurm lab of the tests (see tests/labs/slurm: it needs root on a machine to spare), reached through a
real sshd and a proxy that delays and counts what passes. Every tool runs the same jobs, in cold processes, from a small
git repository; jobs are held, so that none takes the scheduler's time, but for the one whose log is followed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.launch import Row, format_rows
from benchmarks.tools import NEMO_RUN, OURS, PROGRAMS, ROOT, Installed, here, install
from tests.labs.machine import LABS, until
from tests.labs.proxy import Proxy
from tests.labs.slurm.lab import SlurmLab
from tests.labs.sshd import Sshd

ROUND_TRIP = 0.05  # seconds
PATIENCE = 900.0  # seconds for a case
CHATTERED = sum(len(f"{line}\n") + 141 * len("100000 ") + 1 for line in range(300))
"""Bytes that CHATTER writes (see programs/work.py)."""
SESSION = "Starting session: "  # what sshd logs for each command


class CannotRun(Exception):
    """A tool did not do what it was asked. Says why, on a line."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """What one command of a tool took of the line to the cluster. turns: round trips, those of logging in too."""

    seconds: float
    connections: int
    commands: int
    turns: int
    sent: int
    received: int
    output: str


class Cluster:
    """The lab, as far away as it is to be."""

    def __init__(self, lab: SlurmLab, folder: Path, sessions: int) -> None:
        self.lab = lab
        more = f"SetEnv SLURM_CONF={lab.env['SLURM_CONF']}\nLogLevel VERBOSE\nMaxSessions {sessions}"
        self.sshd = Sshd(Path(folder), more=more).start()
        self.proxy = Proxy(self.sshd.host, self.sshd.port, delay=ROUND_TRIP / 2)
        self.alias = f"[{self.sshd.host}]:{self.sshd.port}"
        self.config = self.sshd.ssh_config(Port=self.proxy.port, HostKeyAlias=self.alias)
        self.mark = f"bench-{secrets.token_hex(4)}"
        self.job_dir = str(self.sshd.home / self.mark)

    def use(self, command: Sequence[str], *, folder: Path, env: dict[str, str], log: Path) -> Use:
        """Raises CannotRun."""
        before = self._counts()
        started = time.perf_counter()
        with open(log, "a", encoding="utf-8") as words:
            try:
                done = subprocess.run(
                    command,
                    cwd=folder,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=words,
                    text=True,
                    timeout=PATIENCE,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise CannotRun(f"{' '.join(command[:4])} has not ended after {PATIENCE:g} s") from None
        seconds = time.perf_counter() - started
        if done.returncode:
            said = [*log.read_text(errors="replace").splitlines(), *done.stdout.splitlines()]
            errors = [line for line in said if re.match(r"[\w.]+(Error|Exception)\b", line)]
            last = (errors or [line for line in said if line.strip()] or ["nothing"])[-1]
            raise CannotRun(f"{' '.join(command[:4])} ended with {done.returncode}: {last.strip()}")
        counts = [after - was for after, was in zip(self._counts(), before, strict=True)]
        names = ("connections", "commands", "turns", "sent", "received")
        return Use(seconds=seconds, output=done.stdout, **dict(zip(names, counts, strict=True)))

    def _counts(self) -> list[int]:
        proxy = self.proxy
        return [proxy.connections, self.sshd.log().count(SESSION), proxy.turns, proxy.sent, proxy.received]

    def jobs(self) -> list[str]:
        """Ids of all jobs of this run that have not ended."""
        lines = self.lab.command("squeue", "-h", "-o", "%A %k").splitlines()
        return [line.split()[0] for line in lines if line.endswith(f" {self.mark}")]

    def cancel(self) -> None:
        if ids := self.jobs():
            self.lab.command("scancel", *ids)
            until(lambda: not self.jobs(), 60, "the end of what was cancelled")

    def sbatch(self, count: int) -> float:
        """Seconds that the scheduler itself takes for so many, on the login node."""
        script = "#!/bin/sh\n#SBATCH --hold\nsleep 1\n"
        options = ["--account=proj-a", f"--comment={self.mark}", "--output=/dev/null", "--mem=500M"]
        started = time.perf_counter()
        for _ in range(count):
            subprocess.run(
                ["sbatch", *options],
                input=script,
                text=True,
                env=os.environ | self.lab.env,
                user=self.sshd.user,
                cwd="/",
                check=True,
                capture_output=True,
            )
        return time.perf_counter() - started


class Bench:
    """The tools on the cluster, and the table."""

    def __init__(
        self, cluster: Cluster, tools: Sequence[Installed], folder: Path, counts: Sequence[int], quick: bool
    ) -> None:
        self.cluster = cluster
        self.quick = quick
        self.tools = tools
        self.folder = folder
        self.counts = counts
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._work = folder / "slurm_work"
        shutil.rmtree(self._work, ignore_errors=True)
        shutil.copytree(PROGRAMS, self._work, ignore=shutil.ignore_patterns("__pycache__"))
        git = ["git", "-C", str(self._work), "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "programs"]):
            subprocess.run([*git, *arguments], check=True)
        # Its rsync starts ssh, which is to know the host as the others do.
        ssh = folder / "slurm_bin" / "ssh"
        ssh.parent.mkdir(exist_ok=True)
        config = cluster.sshd.ssh_config(
            f"Host {cluster.sshd.host}\n  HostKeyAlias {cluster.alias}\n  UserKnownHostsFile {cluster.sshd.known_hosts}"
        )
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
        ssh.chmod(0o755)

    def run(self) -> list[Row]:
        self._add("submit 1, first time", self._each(lambda tool: self._submit(tool, "held", 1)))
        found: dict[str, Use] = {}
        for count in self.counts:
            self.cluster.cancel()
            found = self._each(lambda tool, n=count: self._submit(tool, "held", n))  # type: ignore[misc]
            self._add(f"submit {count}", found)
        ids = {tool: _id(use) for tool, use in found.items()}
        self._add(f"status of {count}", self._each(lambda tool: self._ask(tool, "status", ids), ids))
        self.cluster.cancel()
        self.rows.append(Row(f"sbatch itself, {count} times", "s", {OURS.name: self.cluster.sbatch(count)}))
        self.cluster.cancel()
        if self.quick:
            return self.rows
        found = self._each(self._follow)
        self._add(f"a log of {CHATTERED / 1e3:.0f} kB followed for 30 s", found)
        each = {tool: use.received / CHATTERED for tool, use in found.items()}
        self.rows.append(Row("  bytes received for each of them", "", each))
        return self.rows

    def _follow(self, tool: Installed) -> Use:
        use = self._ask(tool, "logs", {tool.tool.name: _id(self._submit(tool, "chatter", 1))})
        self.cluster.cancel()
        return use

    def _each(self, case: Callable[[Installed], Use], only: Container[str] | None = None) -> dict[str, Use]:
        found: dict[str, Use] = {}
        for tool in self.tools:
            if only is not None and tool.tool.name not in only:
                continue
            try:
                found[tool.tool.name] = case(tool)
            except CannotRun as error:
                self.notes.append(f"{tool.tool.name} did not: {error}")
        return found

    def _env(self, tool: Installed) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        env["PATH"] = f"{tool.bin}:{self.folder / 'slurm_bin'}:{env['PATH']}"
        env[tool.tool.state or "STATE"] = str(self.folder / "slurm_state" / tool.tool.name)
        return env

    def _submit(self, tool: Installed, case: str, count: int) -> Use:
        cluster, server = self.cluster, self.cluster.sshd
        before = len(cluster.jobs())
        command = [tool.python]
        if tool.tool is OURS:
            command += ["ours_on_slurm.py", case, str(count), cluster.mark, cluster.config, cluster.job_dir]
        else:
            where = [server.host, str(cluster.proxy.port), server.user, str(server.identity), cluster.job_dir]
            command += ["with_nemo_run_on_slurm.py", case, str(count), cluster.mark, *where]
        use = cluster.use(command, folder=self._work, env=self._env(tool), log=self.folder / "slurm.log")
        if len(cluster.jobs()) - before != count:
            raise CannotRun(f"{len(cluster.jobs()) - before} of {count} jobs are in the queue")
        return use

    def _ask(self, tool: Installed, what: str, ids: dict[str, str]) -> Use:
        follow = ["--follow"] if tool.tool is OURS and what == "logs" else []
        command = [str(tool.bin / ("gemma-launch" if tool.tool is OURS else "nemorun")), "experiment", what]
        command += [ids[tool.tool.name], *follow]
        return self.cluster.use(command, folder=self._work, env=self._env(tool), log=self.folder / "slurm.log")

    def _add(self, name: str, found: dict[str, Use]) -> None:
        def row(name: str, unit: str, value: Callable[[Use], float]) -> None:
            self.rows.append(Row(name, unit, {tool: value(use) for tool, use in found.items()}))

        first = len(self.rows)
        row(name, "s", lambda use: use.seconds)
        row("  connections", "", lambda use: use.connections)
        row("  remote commands", "", lambda use: use.commands)
        row("  round trips, logging in too", "", lambda use: use.turns)
        row("  bytes sent", "kB", lambda use: use.sent / 1e3)
        row("  bytes received", "kB", lambda use: use.received / 1e3)
        print(format_rows(self.rows[first:], [tool.tool.name for tool in self.tools]), file=sys.stderr)


def _id(use: Use) -> str:
    """The last word that it printed."""
    return re.findall(r"\S+", use.output)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["ours", "nemo-run"], action="append", help="this tool alone")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100], help="jobs of one Experiment")
    parser.add_argument("--sessions", type=int, default=10, help="of one connection at once; sshd's own limit is 10")
    parser.add_argument("--quick", action="store_true", help="no log is followed")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench", help="where to work")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(exist_ok=True)
    shutil.rmtree(folder / "slurm_state", ignore_errors=True)
    (folder / "slurm.log").unlink(missing_ok=True)
    chosen = options.only or ["ours", "nemo-run"]
    tools = [here(OURS)] * ("ours" in chosen) + [install(NEMO_RUN, folder)] * ("nemo-run" in chosen)
    place = LABS / f"bench_{os.getpid()}"
    with SlurmLab().shared() as lab:
        place.mkdir()
        place.chmod(0o755)
        cluster = Cluster(lab, place, options.sessions)
        try:
            with cluster.proxy:
                bench = Bench(cluster, tools, folder, options.counts, options.quick)
                rows = bench.run()
        finally:
            cluster.cancel()
            cluster.sshd.stop()
            shutil.rmtree(cluster.job_dir, ignore_errors=True)
            shutil.rmtree(place, ignore_errors=True)
    names = [tool.tool.name for tool in tools]
    print(
        f"{f'a round trip of {ROUND_TRIP * 1000:g} ms, ' + time.strftime('%Y-%m-%d'):46}",
        *(f"{name:>21}" for name in names),
    )
    print(format_rows(rows, names))
    print(*bench.notes, sep="\n")
    if options.json:
        options.json.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
