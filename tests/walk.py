"""A page of the guides, walked through as its reader would: its scripts are written, its commands run, in their order.

A block of Python that begins with `# name.py` is that file, tracked by git. An indented line that begins with `$` is a
command; the lines below it are what it prints, where `...` stands for any lines. What differs from run to run (ids,
times, nodes) is made the same on both sides before they are compared.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.labs.containers.lab import ContainerLab
from tests.labs.slurm.lab import SlurmLab

HOST = "login.cluster.example"
CHANGING = (
    (r"-\d{8}-\d{6}-[0-9a-f]{6}", "-ID"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?", "WHEN"),
    (r"(could start it|starts) (now|about (\d+-\d+-\d+ )?\S+)", r"\1 WHEN"),
    (r"\b(job|StepId=) ?\d+", r"\1 N"),
    (r"\bnode\d+-[0-9a-f]{8}\b", "NODE"),
    (r"(node\d+|node\[[\d,-]+\])", "NODE"),
    (r"[0-9a-f]{64}", "DIGEST"),
    (r"commit [0-9a-f]{12}", "commit C"),
    (r"\d+ 0 \d{10} ", "N 0 TIME "),
    (r"\d+ files of", "N files of"),
    (r"(loss|val) \d+\.\d+", r"\1 X"),
    (r"[\d,]+ tokens/s", "N tokens/s"),
    (r" {2,}", "  "),
)
# There or not, as the queue has it: a short job may have ended before anybody looked.
PASSING = re.compile(r"^task '[^']+': (job N(: pending.*| on NODE)|container .*)\n", re.MULTILINE)


class Reader:
    """Somebody with a laptop, and a git repository in `folder`.

    means: what a page says, and what stands for it here, in this order. programs: scripts of sh, by name, that are
        found before those of this machine. environment: more of it.
    """

    def __init__(
        self,
        root: Path,
        home: Path,
        means: Mapping[str, str],
        *,
        programs: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = root / "project"
        self.folder.mkdir()
        self._means = {**means, "/home/ada/.gemma-launcher": str(home), "/home/ada/project": str(self.folder)}
        own = root / "programs"
        own.mkdir()
        for name, script in (programs or {}).items():
            (own / name).write_text(f"#!/bin/sh\n{script}\n")
            (own / name).chmod(0o755)
        path = os.pathsep.join([str(own), str(Path(sys.executable).parent), os.environ["PATH"]])
        # As on a terminal, what goes to stdout and to stderr comes in the order in which it was written.
        ours = {"PATH": path, "GEMMA_LAUNCHER_HOME": str(home), "COLUMNS": "100", "PYTHONUNBUFFERED": "1"}
        self._environment = {**os.environ, **ours, **(environment or {})}
        self._git("init", "-q")

    def walk(self, page: str) -> int:
        """Returns how many commands there were."""
        count = 0
        for part in re.split(r"(^```python\n.*?^```\n)", page, flags=re.DOTALL | re.MULTILINE):
            if found := re.match(r"```python\n# (\w+\.py)\n(.*)```", part, re.DOTALL):
                self.write(found[1], found[2])
            elif not part.startswith("```"):
                for command, expected in _commands(part):
                    count += 1
                    self.run(command, expected)
        return count

    def write(self, name: str, script: str) -> None:
        (self.folder / name).write_text(self._real(script))
        self._git("add", name)
        self._git("-c", "user.name=Ada", "-c", "user.email=ada@example.com", "commit", "-qm", "as in the guide")

    def run(self, command: str, expected: str) -> None:
        done = subprocess.run(
            shlex.split(self._real(command)),
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        said = self._same(done.stdout)
        pattern = "".join(
            r"(.*\n)*?" if line.strip() == "..." else re.escape(line) for line in self._same(expected).splitlines(True)
        )
        assert re.fullmatch(pattern, said), f"$ {command}\n{done.stdout}\n--- and not\n{expected}"

    def _git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.folder, check=True, capture_output=True)

    def _real(self, text: str) -> str:
        for written, meant in self._means.items():
            text = text.replace(written, meant)
        return text

    def _same(self, text: str) -> str:
        for written, meant in sorted(self._means.items(), key=lambda item: -len(item[1])):
            text = text.replace(meant, written)
        for pattern, replacement in CHANGING:
            text = re.sub(pattern, replacement, text)
        return PASSING.sub("", text.rstrip("\n") + "\n") if text.strip() else ""


def with_cluster(root: Path, home: Path, lab: SlurmLab) -> Reader:
    """A reader who has an account on the lab."""
    config = lab.sshd.ssh_config()
    Path(config).write_text(Path(config).read_text().replace("Host lab", f"Host lab {HOST}"))
    ssh = shlex.join(["/usr/bin/ssh", "-F", config])  # whose ~/.ssh/config it is
    means = {"/home/alice/jobs": f"{lab.job_dir}/walked", "/opt/train/bin/python": lab.trainer}
    return Reader(root, home, means, programs={"ssh": f'exec {ssh} "$@"'})


def with_engine(root: Path, home: Path, lab: ContainerLab) -> Reader:
    """A reader who has built the image of the training stack, and has a disk for checkpoints.

    The stack itself, of some gigabytes, is not in the image here: it is mounted where that disk is.
    """
    image, runs = "gemma-launcher-walk:cpu", root / "runs"
    context = root / "image"
    for folder in (context, runs):
        folder.mkdir()
    (context / "Dockerfile").write_text(f"FROM {lab.image}\nENV PYTHONPATH=/packages\n")
    lab.command("build", "-t", image, str(context))
    means = {
        "gemma:cpu": image,
        "/data/runs:/runs": '", "'.join([f"{runs}:/runs", *lab.packages]),
        "/data/runs": str(runs),
        "unix:///var/run/docker.sock": lab.host,
        "laptop:/home/ada/.gemma-launcher": f"{socket.gethostname()}:{home}",
    }
    return Reader(root, home, means, environment=lab.env)


def _commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command and what is said below it."""
    for block in re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE):
        for found in re.finditer(r"^    \$ ((?:.*\\\n)*.*)\n((?:(?!    \$ ).*\n)*)", block, re.MULTILINE):
            said = re.sub(r"^ {4}", "", found[2], flags=re.MULTILINE)
            yield found[1].replace("\\\n", ""), said
