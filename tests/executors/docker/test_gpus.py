"""Which GPUs a task gets: on a real engine, whose nvidia hook says yes to everything and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import launcher as run
from experiments.store import Store
from launcher.errors import ExecutorError
from tests.labs.containers.lab import ContainerLab

SHOW = run.Script(inline='echo "$NVIDIA_VISIBLE_DEVICES"; date +%s.%N; sleep 2; date +%s.%N')


@pytest.fixture
def gpu_lab(container_lab_alone: ContainerLab, tmp_path: Path) -> Iterator[ContainerLab]:
    """The engine gives GPUs where it finds this program when it starts, which each container with some calls."""
    hook = tmp_path / "nvidia-container-runtime-hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        container_lab_alone.restart()
    yield container_lab_alone
    container_lab_alone.restart()


def test_each_task_has_its_gpus_to_itself_and_those_that_are_named_are_not_waited_for(gpu_lab: ContainerLab) -> None:
    wanted: dict[str, dict[str, Any]] = {
        "two": {"num_gpus": 2, "nodes": 2},
        "one": {"num_gpus": 1},
        "named": {"device_requests": [{"device_ids": ["1", "3"], "capabilities": [["gpu"]]}]},
        "none": {},
    }
    with run.Experiment("gpus") as experiment:
        for name, settings in wanted.items():
            executor = run.DockerExecutor(container_image=gpu_lab.image, **settings)
            experiment.add(SHOW, executor=executor, name=name)
        experiment.run(progress=False)
    logs = {task.name: task.folder for task in Store().get(experiment.id).tasks}
    lines = {name: (folder / "rank_0.out").read_text().split("\n") for name, folder in logs.items()}
    assert (logs["two"] / "rank_1.out").read_text().split("\n")[0] == "2,3"
    assert {name: said[0] for name, said in lines.items()} == {"two": "0,1", "one": "0", "named": "1,3", "none": ""}
    began, ended = ({name: float(said[index]) for name, said in lines.items()} for index in (1, 2))
    assert ended["two"] < began["one"]
    assert began["named"] < ended["two"] and began["none"] < ended["two"]
    said = [event.get("detail", "") for event in Store().get(experiment.id).task("one").events()]
    assert any("waits for its GPUs, which two of" in detail for detail in said), said


def test_tasks_that_run_together_cannot_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    executor = run.DockerExecutor(container_image="image", num_gpus=2)
    experiment = run.Experiment("together")
    experiment.add([SHOW, SHOW], executor=executor, name="both")
    with pytest.raises(ExecutorError, match=r"(?s)run together, and num_gpus gives each.*set at.*device_requests"):
        experiment.dryrun()
