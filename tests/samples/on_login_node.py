"""A launch script that a test starts on the lab's login node: CASE."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from on_cluster import fail_on, work

import launcher as run


def tasks(case: str) -> tuple[Any, dict[str, Any]]:
    """The first task of a case, and what its executor is given besides."""
    wait = 'echo ready; until test -e "$GEMMA_LAUNCHER_JOB_DIR/stop"; do sleep 0.1; done; '
    wait += 'echo 7 >"$GEMMA_LAUNCHER_JOB_DIR/saved"; exit 75'
    broken = {"slurm_setup": ["export PYTHONHOME=/nowhere"]}
    return {
        "two": (run.Partial(work, 0.0), {"nodes": 2, "ntasks_per_node": 2}),
        "bad": (run.Partial(fail_on, 1), {"ntasks_per_node": 2}),
        "refused": (run.Partial(work, 0.0), {"parameters": {"slurm_partition": "nowhere"}}),
        "misspelt": (run.Partial(work, 0.0), {"parameters": {"slurm_acount": "proj-a"}}),
        "broken": (run.Partial(work, 0.0), {"parameters": broken}),
        "limit": (
            run.Script(inline=f'test "$GEMMA_LAUNCHER_RESTART" = 1 && exit 0; {wait}'),
            {"timeout_min": 5, "retries": 1},
        ),
        "short": (run.Partial(work, 1.0), {}),
        "long": (run.Partial(work, 300.0), {}),
    }[case]


def main(case: str, *flags: str) -> None:
    task, more = tasks(case)
    own = {"mem_gb": 1, "slurm_account": "proj-a", **more.pop("parameters", {})}
    here = os.path.dirname(__file__)
    code = run.PatternPackager(include_pattern=f"{here}/*.py", relative_path=here)
    cluster = run.SubmititExecutor(parameters=own, env_vars={"HF_TOKEN": "hf_secret"}, packager=code, **more)
    with run.Experiment(case) as experiment:
        first = experiment.add(task, executor=cluster, name="first", tail_logs="tail" in flags)
        if "alone" not in flags:
            second = cluster.clone(nodes=1, ntasks_per_node=1)
            experiment.add(run.Partial(work, 0.0), executor=second, name="second", dependencies=[first])
        results = experiment.run(detach="detach" in flags, progress=False)
    print(json.dumps([result.value for result in results]))


if __name__ == "__main__":
    main(*sys.argv[1:])
