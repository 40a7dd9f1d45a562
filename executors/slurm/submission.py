"""Jobs on a Slurm cluster: what it would say of them, their files, and that each is submitted once.

A job is known by its name, which is unique for ever; its id is used again after a crash of the scheduler. An intent
with the name is written before sbatch, a journal with the id after it (`submission` and `job_id` in the job's folder),
so that whoever finds an intent alone looks for the name before anything is submitted.

Each function is one command there, whatever the number of jobs.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from executors.slurm.limits import objection, partitions
from executors.slurm.remote import answers, call, listed
from executors.tunnel import PATIENCE, SLOWEST, Tunnel
from launcher.errors import TunnelError

A_JOB = 5.0  # seconds that a slow scheduler may take for each
STARTS = re.compile(r"to start at (\d+)(?:.* in partition (\S+))?")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One to be submitted: the folder there that has its job.sh, and its name.

    needs: folders of the jobs that it waits for; how, `dependency` says.
    """

    folder: str
    name: str
    needs: tuple[str, ...] = ()
    dependency: str = "afterok"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the scheduler says of a job beforehand: why it would never run, or when it could start (unix seconds)."""

    objection: str = ""
    start: float | None = None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """missing: digests of packages that are not there. answers: by the key of what was asked."""

    missing: tuple[str, ...]
    answers: Mapping[str, Answer]


def survey(tunnel: Tunnel, digests: Iterable[str], tests: Mapping[str, str]) -> Survey:
    """Ask what is to be sent, and what Slurm says of scripts (or their `#SBATCH` lines alone). Changes nothing.

    Raises TunnelError where there is no Slurm, or none that answers.
    """
    texts = {key: text if text.startswith("#!") else f"#!/bin/sh\n{text}" for key, text in tests.items()}
    lines = [line for text in texts.values() for line in (str(len(text.splitlines())), *text.splitlines())]
    timeout = PATIENCE + A_JOB * len(tests)
    said = answers(call(tunnel, "survey", tunnel.job_dir, *digests, input=listed(lines), timeout=timeout))
    limits = partitions([line for line, _ in said])
    judged = [(line, words) for line, words in said if line in ("yes", "no")]
    found: dict[str, Answer] = {}
    for (key, text), (verdict, words) in zip(texts.items(), judged, strict=True):
        starts = STARTS.search(words)
        if verdict == "no":
            found[key] = Answer(objection=words)
        elif starts is None:
            found[key] = Answer()
        else:
            found[key] = Answer(objection=objection(text, limits, starts[2]), start=float(starts[1]))
    missing = tuple(line.partition(" ")[2] for line, _ in said if line.startswith("missing "))
    return Survey(missing=missing, answers=found)


def upload(tunnel: Tunnel, archives: Mapping[str, Path]) -> None:
    """Send packages, by digest; each is there whole, or not at all. Raises TunnelError."""
    for digest, path in archives.items():
        tunnel.put(path, f"{tunnel.job_dir}/packages/{digest}.tar.gz")


def place(tunnel: Tunnel, job_dir: str, experiment_id: str, tar: bytes, code: Mapping[str, str], own: str) -> None:
    """Make an experiment's folder there, whole or not at all. Asked again for the same, it does nothing.

    tar: its files. code: digests of uploaded packages by the folders that they are unpacked to. own: that of our own,
    which is unpacked beside its archive.
    Raises TunnelError.
    """
    pairs = [word for pair in code.items() for word in pair]
    placed = hashlib.sha256(json.dumps([pairs, own]).encode() + tar).hexdigest()
    packed = gzip.compress(tar, mtime=0)  # the files of many jobs are much alike
    arguments = [job_dir, experiment_id, placed, str(len(packed)), own, *pairs]
    call(tunnel, "place", *arguments, input=packed, timeout=10 * PATIENCE + len(packed) / SLOWEST)


def submit(tunnel: Tunnel, jobs: Sequence[Job]) -> dict[str, int | str]:
    """Submit jobs that are not yet, in order: by folder the id of each, or why Slurm refused it, in its own words.

    Asked again, by whomever and after whatever, it submits what was not.
    Raises TunnelError, `lost` too where Slurm does not answer: some may be submitted, and asking again tells.
    """
    return dict(zip([job.folder for job in jobs], _ask(tunnel, "submit", jobs), strict=True))


def find(tunnel: Tunnel, jobs: Sequence[Job]) -> dict[str, int | None]:
    """The ids of those that are submitted; None for those that never were, or that the scheduler has lost.

    Raises TunnelError, where Slurm does not answer too.
    """
    found = _ask(tunnel, "find", jobs)
    return {job.folder: int(id_) if id_ else None for job, id_ in zip(jobs, found, strict=True)}


def cancel(tunnel: Tunnel, jobs: Sequence[Job], now: bool = False) -> None:
    """End jobs, waiting or running, and take their secrets away; those that are not there are no error.

    now: leave them no time. Raises TunnelError, where Slurm does not answer too.
    """
    _ask(tunnel, "kill" if now else "cancel", jobs)


def resubmission(tunnel: Tunnel, job: Job) -> Job:
    """What to submit for a job that the scheduler has lost: its journal is put aside, unless it is there after all.

    Its name there will have .2, .3, ... at the end; the intent in its folder says so, and whoever asks here does not
    see it. Raises TunnelError, where Slurm does not answer too.
    """
    (said,) = _ask(tunnel, "forget", [job])
    if isinstance(said, str) and said:
        raise TunnelError(said, where=tunnel.where("job_dir"))
    return job


def _ask(tunnel: Tunnel, verb: str, jobs: Sequence[Job]) -> list[int | str]:
    if not jobs:
        return []
    fields = [
        field for job in jobs for field in (job.folder, job.name, job.dependency, str(len(job.needs)), *job.needs)
    ]
    timeout = 3 * PATIENCE + A_JOB * len(jobs)
    said = answers(call(tunnel, "submission", verb, tunnel.job_dir, input=listed(fields), timeout=timeout))
    return [words if line == "no" else int(line[3:]) if line[3:] else "" for line, words in said]
