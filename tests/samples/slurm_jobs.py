"""Jobs whose real job.sh is submitted by hand, without an experiment or the launcher's own submission around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from submitted import make_plan

from executors.slurm.executor import SlurmExecutor
from executors.tunnel import SSHTunnel
from launcher import worker
from tests.labs.machine import LabError, until
from tests.labs.slurm.lab import SlurmLab


class SlurmJob:
    """One job in the lab. Its folder is looked into from outside, which the tests can, as root of the same machine."""

    def __init__(self, lab: SlurmLab, scratch: Path, task: Any, job_dir: str = "", **settings: Any) -> None:
        self.lab = lab
        # Apart from the launcher's own: its worker is all that lies there of our packages.
        place = job_dir or f"{lab.job_dir}/by_hand"
        self.tunnel = SSHTunnel("lab", ssh_config=lab.sshd.ssh_config(), job_dir=place)
        given = {"account": "proj-a", "python": lab.python, "mem": "1G", **settings}
        self.plan = make_plan(SlurmExecutor(tunnel=self.tunnel, **given), scratch, task)
        assert self.plan.remote is not None
        self.folder = self.plan.remote
        for name, text in self.plan.files.items():
            mode = 0o600 if name == "environment.sh" else 0o644
            self.tunnel.put(text.encode(errors="surrogateescape"), str(self.folder / name), mode)
        self.tunnel.put(Path(worker.__file__), str(self._worker()))
        argv = ["sbatch", "--parsable", "--export=NONE", f"--chdir={self.folder}", str(self.folder / "job.sh")]
        done = self.tunnel.run(argv, timeout=60)
        assert done.status == 0, done.stderr.decode()
        self.id = int(done.stdout)

    def _worker(self) -> Path:
        import shlex

        words = shlex.split(self.plan.files["job.sh"].partition("exec srun")[2])
        return Path(next(word for word in words if word.endswith("/worker.py")))

    def read(self, name: str) -> str:
        """A file of the job's; "" where there is none."""
        try:
            return (self.folder / name).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_for(self, name: str, lines: int = 1, seconds: float = 60) -> str:
        """The text of a file, once it has that many lines."""
        try:
            until(lambda: self.read(name).count("\n") >= lines, seconds, f"{name} of {self.folder}")
        except LabError as error:
            raise LabError(f"{error}:\n{self.log}") from None
        return self.read(name)

    @property
    def log(self) -> str:
        return self.read("launch.log")

    def cancel(self) -> None:
        self.tunnel.run(["scancel", f"--name={self.plan.job}", str(self.id)], timeout=60)

    def end(self) -> list[str]:
        """Exit status, and the reason."""
        return self.wait_for("ended", 2, 90).splitlines()

    @property
    def reasons(self) -> list[str]:
        """Why it was started again, each time."""
        return [line.split()[1] for line in self.read("requeues").splitlines()]
