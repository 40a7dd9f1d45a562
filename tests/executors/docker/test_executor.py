"""What a DockerExecutor refuses before it asks an engine, and what its dry run shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import launcher as run
from gemma_models import gemma3_1b
from launcher.errors import ExecutorError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"container_image": None}, "there is nothing to run(.|\n)*container_image='nvcr.io"),
        ({"container_image": "an image"}, "container_image is 'an image'"),
        ({"memory": "64 GB"}, "memory is '64 GB'(.|\n)*memory='64g'"),
        ({"shm_size": 16}, "shm_size is 16"),
        ({"cpus": 0}, "cpus is 0"),
        ({"num_gpus": -1}, "num_gpus is -1"),
        ({"num_gpus": 1, "device_requests": [{"count": 1}]}, "exclude each other"),
        ({"device_requests": [{"devices": ["0"]}]}, "device_requests has 'devices'(.|\n)*'device_ids'"),
        ({"privileged": "yes"}, "privileged is 'yes'"),
        ({"ulimits": ["memlok=-1"]}, "ulimits has 'memlok'(.|\n)*'memlock'"),
        ({"ulimits": "memlock=-1"}, "must be a list"),
        ({"volumes": ["data:data"]}, "volumes.0. is 'data:data'"),
        ({"volumes": ["./data:/data"]}, "no absolute path, and no volume's name"),
        ({"volumes": ["/a:/data", "/b:/data"]}, "/data is taken"),
        ({"ipc_mode": "hosts"}, "ipc_mode is 'hosts'"),
        ({"network": "none", "nodes": 2}, "network is 'none', and 2 nodes are to meet"),
        ({"network": "bridge", "nodes": 2}, "do not know one another by name"),
        ({"launcher": "torchrn"}, "launcher is 'torchrn'(.|\n)*'torchrun'"),
        ({"additional_kwargs": {"cap_ad": ["X"]}}, "has 'cap_ad'(.|\n)*'cap_add'"),
        ({"additional_kwargs": {"mem_limit": "1g"}}, "is set by the launcher(.|\n)*memory"),
        ({"additional_kwargs": {"shm_size": "1g"}}, "is an attribute of its own"),
        ({"additional_kwargs": {"devices": object()}}, "not JSON serializable"),
        ({"host": "gpu-server"}, "host is 'gpu-server'(.|\n)*ssh://"),
        ({"env_vars": {"A": "\udc80"}}, "env_vars.'A'. is no text"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ExecutorError, match=words):
        run.DockerExecutor(**{"container_image": "image"} | settings).check()


@pytest.mark.parametrize(
    ("path", "settings", "words"),
    [
        ("checkpoints", {}, r"log.dir is 'checkpoints'.*set at.*log.dir='/runs', with volumes=\['/data/runs:/runs'\]"),
        ("/runs", {"volumes": ["/data:/runs:ro"]}, "log.dir is '/runs'"),
        ("/runs2", {"volumes": ["/data:/runs"]}, "log.dir is '/runs2'.*try: log.dir='/runs'$"),
        ("/runs", {"volumes": ["/data:/runs"]}, None),
        (Path("/runs/mine"), {"volumes": ["/a:/b", "kept:/runs"]}, None),
        ("/runs/../tmp", {"volumes": ["/data:/runs"]}, "log.dir is '/runs/../tmp'"),
        ("/runs/old", {"volumes": ["/data:/runs", "/old:/runs/old:ro"]}, "log.dir is '/runs/old'.*log.dir='/runs'$"),
        ("/runs/old/new", {"volumes": ["/data:/runs:ro", "/old:/runs/old"]}, None),
        ("/runs/mine", {"volumes": ["/data:/runs/"]}, None),
        ("/elsewhere", {"additional_kwargs": {"volumes_from": ["data"]}}, None),
    ],
)
def test_checkpoints_that_would_go_with_their_containers_are_refused(
    path: Any, settings: dict[str, Any], words: str | None
) -> None:
    recipe = gemma3_1b.pretrain_recipe(name="run", dir="somewhere")
    recipe.trainer.accelerator = "cpu"
    recipe.log.dir = path
    executor = run.DockerExecutor(container_image="image", **settings)
    if words is None:
        run.Experiment("kept").add(recipe, executor=executor)
    else:
        with pytest.raises(ExecutorError, match=f"(?s){words}"):
            run.Experiment("kept").add(recipe, executor=executor)


def test_a_misspelt_field_names_the_nearest() -> None:
    with pytest.raises(ExecutorError, match=r"(?s)no attribute 'container_imag'.*'container_image'"):
        run.DockerExecutor(container_imag="image")


def test_the_dry_run_shows_the_very_containers(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    executor = run.DockerExecutor(
        container_image="trainer:1",
        nodes=2,
        ntasks_per_node=4,
        num_gpus=4,
        launcher="torchrun",
        memory="64g",
        ulimits=["memlock=-1"],
        volumes=["/data:/data:ro"],
        env_vars={"HF_TOKEN": "hf_secret", "MARK": "a 'b'"},
        additional_kwargs={"cap_add": ["SYS_PTRACE"]},
    )
    experiment = run.Experiment("shown")
    experiment.add(run.Script(inline="true"), executor=executor, name="train")
    experiment.dryrun()
    said = capsys.readouterr().out
    job = f"train.{experiment.id}"
    for line in (
        f"container {job}.0",
        f"container {job}.1",
        "image           trainer:1",
        f'volumes         ["{job}:/gemma-launcher", "/data:/data:ro"]',
        'device_requests [{"device_ids": ["4", "5", "6", "7"], "capabilities": [["gpu"]]}]',
        'ulimits         ["memlock=-1"]',
        "mem_limit       64g",
        'cap_add         ["SYS_PTRACE"]',
        "env     HF_TOKEN=(secret)",
        "env     MARK='a '\"'\"'b'\"'\"''",
        "--nnodes=2 --node-rank=1",
    ):
        assert line in said, line
    assert "hf_secret" not in said


def test_it_is_built_and_shown_where_nothing_of_docker_is_installed(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = """
import sys
sys.modules["docker"] = None
import launcher as run
experiment = run.Experiment("laptop")
experiment.add(run.Script(inline="true"), executor=run.DockerExecutor(container_image="image"))
experiment.dryrun()
try:
    experiment.run()
except run.LaunchError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=None)
    assert "pip install 'gemma-launcher[docker]'" in done.stdout, done.stderr
