"""job.sh as it is written: files that are kept, to be read by people too. UPDATE_GOLDEN=1 writes them anew."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from submitted import make_plan

from executors.base import Plan
from executors.slurm import script as job
from executors.slurm.executor import SlurmExecutor
from executors.tunnel import FEED, PUT, READ, RUN, SSHTunnel
from gemma_models.api import generate
from launcher.config import Partial
from launcher.script import Script
from tests.labs.machine import require_packages

GOLDEN = Path(__file__).parent / "golden"
HOST = {"account": "proj-a", "partition": "gpu", "time": "04:00:00"}
EIGHT = {"ntasks_per_node": 8, "gpus_per_node": 8, "cpus_per_task": 12, "mem": "0", "exclusive": True}


def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any, after: tuple[str, ...], **settings: Any) -> Plan:
    class Own:
        digest = "0" * 16

    monkeypatch.setattr("executors.archive.own_package", Own)
    tunnel = SSHTunnel("login.cluster.example", user="alice", job_dir="/scratch/alice/jobs")
    return make_plan(SlurmExecutor(tunnel=tunnel, **{**HOST, **settings}), tmp_path / "train", task, after=after)


def training() -> Any:
    return Partial(dict, steps=10)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "one_node": (training, EIGHT),
    "two_nodes_torchrun": (training, {**EIGHT, "nodes": 2, "launcher": "torchrun", "gres": "gpu:h100:8"}),
    "two_nodes_process_a_gpu": (
        training,
        {**EIGHT, "nodes": 2, "gpus_per_task": 1, "setup_lines": ["module load cuda"]},
    ),
    "pyxis": (
        training,
        {
            **EIGHT,
            "container_image": "nvcr.io#nvidia/nemo:25.04",
            "container_mounts": ["/scratch/data:/data:ro", "/models"],
            "container_workdir": "/workspace",
            "container_env": ["NCCL_DEBUG"],
            "env_vars": {"HF_HOME": "/data/hf", "HF_TOKEN": "hf_abc"},
            "srun_args": ["--mpi=pmix"],
        },
    ),
    "array": (lambda: Script("prepare", m=True), {"array": "0-31%4", "mem_per_cpu": "4G", "qos": "low"}),
    "dependency": (training, {**EIGHT, "dependency_type": "afterany"}),
    "signal_and_requeue": (training, {**EIGHT, "retries": 3, "signal": "USR1@300", "constraint": "h100&nvme"}),
    "generate_tp8_pp4": (
        lambda: Partial(generate, "/models/gemma-3-27b-it", ["Why is the sky blue?"]),
        {**EIGHT, "nodes": 4, "segment": 4},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_packages("shellcheck")
    task, settings = CASES[name]
    made = plan(tmp_path, monkeypatch, task(), ("prepare",) if name == "dependency" else (), **settings)
    text = made.files["job.sh"]
    file = GOLDEN / f"{name}.sh"
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()
    assert f"--- job.sh\n{text.rstrip()}\n---" in made.to_text()
    assert "hf_abc" not in made.to_text() + made.files["environment.sh"] + text
    checked = subprocess.run(["shellcheck", "-"], input=text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


TEMPLATES = Path(job.__file__).parent / "templates"
TEXTS = {file.name: file.read_text() for file in TEMPLATES.glob("*.sh")}
WITH_PRELUDE = ("place.sh", "query.sh", "submission.sh", "survey.sh")
ALONE = {name: text for name, text in TEXTS.items() if name not in (*WITH_PRELUDE, "job.sh", "prelude.sh")}
EVERYWHERE = {"put": PUT, "read": READ, "run": RUN, "feed": FEED, **ALONE} | {
    name: TEXTS["prelude.sh"] + TEXTS[name] for name in WITH_PRELUDE
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_what_runs_beside_sbatch_is_sh(name: str) -> None:
    require_packages("shellcheck")
    # What of the prelude a script does not use is no mistake in it.
    command = ["shellcheck", "--shell=sh", "--exclude=SC2034", "-"]
    checked = subprocess.run(command, input=EVERYWHERE[name], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
