"""A launch script that tests start in a process of its own: SSH_CONFIG JOB_DIR PYTHON SECONDS [detach]."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import launcher as run


def work(seconds: float) -> dict[str, Any]:
    """What a rank is."""
    print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}", flush=True)
    time.sleep(seconds)
    return {"world": int(os.environ["WORLD_SIZE"]), "first": os.environ["MASTER_ADDR"], "folder": os.getcwd()}


def fail_on(rank: int) -> None:
    if int(os.environ["RANK"]) == rank:
        raise ValueError(f"rank {rank} is broken")
    time.sleep(60)


def main(ssh_config: str, job_dir: str, python: str, seconds: str, *flags: str) -> None:
    tunnel = run.SSHTunnel("lab", ssh_config=ssh_config, job_dir=job_dir)
    cluster = run.SlurmExecutor(
        account="proj-a",
        python=python,
        mem="1G",
        env_vars={"HF_TOKEN": "hf_secret"},
        packager=run.PatternPackager(include_pattern=__file__, relative_path=os.path.dirname(__file__)),
        tunnel=tunnel,
    )
    with run.Experiment("on a cluster") as experiment:
        first = experiment.add(run.Partial(work, float(seconds)), executor=cluster, name="first")
        experiment.add(run.Partial(work, 0.0), executor=cluster, name="second", dependencies=[first])
        experiment.run(detach="detach" in flags, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
