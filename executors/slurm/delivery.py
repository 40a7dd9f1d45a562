"""Before a cluster is given a job: what its scheduler thinks of it, and everything that it needs, in place."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from executors.archive import archive, own_package
from executors.base import Plan
from executors.files import write_files
from executors.package import Package
from executors.slurm import submission
from executors.tunnel import Tunnel
from launcher.errors import ExecutorError
from launcher.worker import JobFiles

FAR = 365 * 24 * 3600.0  # seconds; behind jobs without a time limit, Slurm's guess is of another age
PRIVATE = {"environment.sh", JobFiles("").secrets.name}
"""Nobody but their owner may read these."""
ADVICE: Final = {
    "account": "account='...': `sacctmgr show assoc user=$USER` there shows yours",
    "qos": "qos='...': `sacctmgr show assoc user=$USER format=account,qos` there shows yours",
    "feature": "constraint='...': `sinfo -o '%N %f'` there shows what nodes are called",
    "gres": "gres='...': `sinfo -o '%N %G'` there shows what nodes have",
    "time": "time='...' for less: `sinfo -s` there shows what each partition allows",
    "node": "fewer nodes, or less of each: `sinfo -Nl` there shows what a node has, `sinfo -s` what partitions do",
    "partition": "partition='...': `sinfo -s` there shows all of them",
}
"""What to look at, by what the scheduler objects to; the first that fits."""


def deliver(tunnel: Tunnel, plans: Sequence[Plan]) -> list[str]:
    """Have the scheduler judge the jobs, then send what is not there yet. The plans are of one experiment.

    What may be seen of their files is in the folders here that mirror theirs, too.

    Returns when it thinks that each could start. Raises ExecutorError with its words for what it would not run, and
    TunnelError.
    """
    for plan in plans:
        write_files(plan)
    own = own_package()
    packages: dict[str, Package] = {own.digest: own}
    code: dict[str, str] = {}
    for plan in plans:
        if plan.package is not None and plan.copy is not None:
            code[plan.copy.name] = plan.package.digest
            packages[plan.package.digest] = plan.package
    asked = {plan.name: _asked(plan) for plan in plans}
    survey = submission.survey(tunnel, packages, {text: text for text in asked.values()})
    notes = []
    for plan in plans:
        answer = survey.answers[asked[plan.name]]
        if answer.objection:
            raise ExecutorError(
                f"task {plan.name!r}: Slurm on {tunnel.name} would not run it: {answer.objection}",
                hint=_advice(answer.objection),
            )
        if answer.start is not None and answer.start < time.time() + FAR:
            notes.append(f"task {plan.name!r}: {tunnel.name} could start it {_when(answer.start)}")
    submission.upload(tunnel, {digest: archive(packages[digest]) for digest in survey.missing})
    experiment = plans[0].folder.parent
    submission.place(tunnel, tunnel.job_dir, experiment.name, _files(experiment, plans), code, own.digest)
    return notes


def _asked(plan: Plan) -> str:
    """What a job asks for, without what is its own: jobs that ask for the same are judged once."""
    lines = plan.files["job.sh"].splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith("#SBATCH") and not line.startswith("#SBATCH --job-name"))


def _advice(objection: str) -> str | None:
    return next((advice for word, advice in ADVICE.items() if word in objection.lower()), None)


def _when(start: float) -> str:
    if start <= time.time() + 60:
        return "now"
    return time.strftime("about %Y-%m-%d %H:%M", time.localtime(start))


def _files(experiment: Path, plans: Sequence[Plan]) -> bytes:
    """The experiment's description and its jobs' files, as a tar archive. Secrets are in it, and never on this disk."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:

        def add(name: str, data: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600 if Path(name).name in PRIVATE else 0o644
            tar.addfile(entry, io.BytesIO(data))

        for path in [experiment / "experiment.json", *sorted(experiment.glob("*.diff"))]:
            add(path.name, path.read_bytes())
        for plan in plans:
            for path in sorted(plan.folder.iterdir()):
                if path.is_file() and path.name != "events.jsonl":
                    add(f"{plan.folder.name}/{path.name}", path.read_bytes())
            if plan.secrets:
                secrets = json.dumps(plan.secrets).encode()
                add(f"{plan.folder.name}/{JobFiles('').secrets.name}", secrets)
    return buffer.getvalue()
