"""The lab itself: jobs run there over SSH, and what is broken can be mended."""

from __future__ import annotations

import re
import time

import pytest

from executors.tunnel import SSHTunnel
from tests.labs.machine import until
from tests.labs.slurm.lab import SlurmLab


@pytest.fixture
def tunnel(slurm_lab: SlurmLab) -> SSHTunnel:
    return SSHTunnel("lab", ssh_config=slurm_lab.sshd.ssh_config(), job_dir=slurm_lab.job_dir)


def said(tunnel: SSHTunnel, *argv: str) -> str:
    done = tunnel.run(argv, timeout=60)
    assert done.status == 0, done.stderr.decode()
    return done.stdout.decode()


def test_a_job_on_two_nodes_is_run_and_accounted_for(slurm_lab: SlurmLab, tunnel: SSHTunnel) -> None:
    script = b"#!/bin/sh\nsrun sh -c 'echo $(hostname) $CUDA_VISIBLE_DEVICES'\n"
    path = f"{tunnel.job_dir}/two.sh"
    tunnel.put(script, path, 0o755)
    asked = ["--nodes=2", "--ntasks-per-node=2", "--gres=gpu:4", "--account=proj-a", f"--output={path}.out"]
    job = said(tunnel, "sbatch", "--parsable", *asked, path).strip()
    until(lambda: said(tunnel, "sacct", "-nXPj", job, "-o", "state").strip() == "COMPLETED", 30, "the job")
    ranks = tunnel.read(f"{path}.out").decode().split("\n")[:-1]
    nodes = {rank.split()[0] for rank in ranks}
    assert len(ranks) == 4
    assert len(nodes) == 2
    assert all(rank.endswith(" 0,1,2,3") for rank in ranks)
    assert said(tunnel, "sacct", "-nXPj", job, "-o", "account,user,exitcode").strip() == "proj-a|alice|0:0"


def test_a_task_in_a_container(slurm_lab: SlurmLab, tunnel: SSHTunnel) -> None:
    tunnel.put(b"seen", f"{tunnel.job_dir}/file")
    image = slurm_lab.image("plain")
    container = [f"--container-image={image}", "--container-workdir=/work"]
    mounts = f"--container-mounts=/usr:/usr:ro,/etc:/etc:ro,{tunnel.job_dir}:/work"
    look = 'ls /; cat file; echo made >made; grep -o " /usr [^ ]* ro" /proc/mounts'
    shown = said(tunnel, "srun", "--account=proj-a", *container, mounts, "sh", "-c", look)
    assert "in_the_image" in shown
    assert "home" not in shown
    assert "\nseen /usr " in shown
    assert tunnel.read(f"{tunnel.job_dir}/made") == b"made\n"
    broken = tunnel.run(
        ["srun", "--account=proj-a", *container, "--container-mounts=/no/folder:/x", "true"], timeout=60
    )
    assert broken.status != 0
    assert b"container: mounting /no/folder: No such file or directory" in broken.stderr


def test_a_node_has_what_the_tests_import_and_nobody_else_can_delete_it(slurm_lab: SlurmLab, tunnel: SSHTunnel) -> None:
    look = "import torch; print(torch.__file__)"
    where = said(tunnel, "srun", "--account=proj-a", slurm_lab.trainer, "-c", look).strip()
    assert where.startswith(str(slurm_lab.folder))
    assert not list((slurm_lab.folder / "packages").iterdir())  # from outside
    mounts = said(tunnel, "srun", "--account=proj-a", "cat", "/proc/mounts")
    assert re.search(rf" {slurm_lab.folder}/packages \S+ ro,", mounts)


def test_what_slurm_refuses(slurm_lab: SlurmLab, tunnel: SSHTunnel) -> None:
    done = tunnel.run(["sbatch", "--account=nobody", "--wrap=true"], timeout=30)
    assert done.status == 1
    assert b"Invalid account" in done.stderr


def test_a_node_goes_and_comes_back(slurm_lab_alone: SlurmLab, tunnel: SSHTunnel) -> None:
    slurm_lab_alone.off(3)
    slurm_lab_alone.command("scontrol", "update", "nodename=node3", "state=down", "reason=test")
    assert not slurm_lab_alone.status()["node3"]
    slurm_lab_alone.on(3)
    slurm_lab_alone.wait_until_idle()
    assert said(tunnel, "srun", "--account=proj-a", "--nodelist=node3", "hostname") == "node3\n"


@pytest.mark.parametrize("name", ["slurmctld", "slurmdbd", "munged", "sshd"])
def test_a_daemon_crashes_and_is_started_again(slurm_lab_alone: SlurmLab, tunnel: SSHTunnel, name: str) -> None:
    slurm_lab_alone.kill(name)
    assert not slurm_lab_alone.status()[name]
    slurm_lab_alone.start(name)
    assert slurm_lab_alone.status()[name]
    assert said(tunnel, "srun", "--account=proj-b", "echo", "back") == "back\n"


def test_dropped_sessions_leave_their_commands(slurm_lab_alone: SlurmLab, tunnel: SSHTunnel) -> None:
    sign = f"{tunnel.job_dir}/sign"
    said(tunnel, "sh", "-c", 'mkdir -p "$1"; (sleep 1; touch "$2") >/dev/null 2>&1 &', "sh", tunnel.job_dir, sign)
    slurm_lab_alone.drop_ssh()
    time.sleep(1.5)
    assert tunnel.read(sign) == b""
