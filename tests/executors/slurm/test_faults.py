"""job.sh where nodes fail and jobs of higher priority come."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_jobs import SlurmJob

from launcher.script import Script
from tests.labs.slurm.lab import SlurmLab

WAIT = Script(inline='cd "$GEMMA_LAUNCHER_JOB_DIR"; echo >>up; sleep 1000')


def test_nodes_that_fail_count_and_preemption_does_not(
    slurm_lab_alone: SlurmLab, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    lab = slurm_lab_alone
    two = SlurmJob(lab, tmp_path / "two", WAIT, nodes=2, nodelist="node[3-4]", retries=1)
    first = SlurmJob(lab, tmp_path / "first", WAIT, nodelist="node4", retries=1)
    whole = SlurmJob(lab, tmp_path / "whole", WAIT, nodelist="node2", gpus_per_node=4, retries=1)
    once = SlurmJob(lab, tmp_path / "once", WAIT, nodelist="node2", gpus_per_node=4)
    jobs = (two, first, whole, once)
    for job in jobs:
        request.addfinalizer(job.cancel)
    for job in jobs:
        job.wait_for("up", job.plan.ranks)
    urgent = ["-Aproj-a", "-purgent", "-wnode2", "--gres=gpu:8", "--export=NONE", "-o/dev/null", "--wrap=sleep 1"]
    done = two.tunnel.run(["sbatch", "--parsable", *urgent], timeout=60)
    assert done.status == 0, done.stderr
    lab.off(4)  # for `first` it is the node of the script, for `two` it is not
    lab.command("scontrol", "update", "nodename=node4", "state=down", "reason=t")
    lab.on(4)
    lab.wait_until_idle()
    for job, reason in ((two, "node-failure"), (first, "node-failure"), (whole, "preempted")):
        job.wait_for("started", 2)
        job.wait_for("up", 2 * job.plan.ranks)
        assert job.reasons == [reason], job.log
    assert "no-requeue" in once.end()[1]
    # A node that fails again is one too many; that there was preemption leaves the one retry.
    lab.command("scontrol", "update", "nodename=node[2,4]", "state=down", "reason=t")
    lab.wait_until_idle()
    assert first.end() == ["1", "out-of-retries node-failure"]
    assert two.end() == ["1", "out-of-retries node-failure"]
    whole.wait_for("up", 3)
    assert whole.reasons == ["preempted", "node-failure"]
