"""Which GPUs a task gets: on a real engine, whose nvidia hook says yes to everything and changes nothing."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import launcher as run
from executors.docker import turns
from executors.docker.containers import labels
from executors.docker.engine import Engine
from executors.docker.turns import Turn
from experiments.store import Store
from launcher.errors import ExecutorError
from tests.labs.containers.lab import ContainerLab

SHOW = run.Script(inline='echo "$NVIDIA_VISIBLE_DEVICES"; date +%s.%N; sleep 5; date +%s.%N')


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


LAUNCH = """
import sys
import launcher as run
run.run(run.Script(inline="date +%s.%N; sleep 1; date +%s.%N"),
    run.DockerExecutor(container_image=sys.argv[1], num_gpus=1), name="one", progress=False)
"""


def start(image: str, home: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "GEMMA_LAUNCHER_HOME": str(home)}
    home.mkdir()
    return subprocess.Popen([sys.executable, "-c", LAUNCH, image], cwd=home, env=env)


def test_launchers_that_start_at_once_take_turns(gpu_lab: ContainerLab, tmp_path: Path) -> None:
    homes = [tmp_path / str(number) for number in range(4)]
    for process in [start(gpu_lab.image, home) for home in homes]:
        assert process.wait() == 0
    times = sorted(next(home.glob("experiments/*/script/rank_0.out")).read_text().split() for home in homes)
    assert all(ended < began for (_, ended), (began, _) in itertools.pairwise(times)), times
    assert "turn" not in gpu_lab.command("volume", "ls")


def test_a_launcher_that_was_killed_in_its_turn(gpu_lab: ContainerLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "STALE", 2.0)
    engine, one = Engine(gpu_lab.host), run.DockerExecutor(container_image=gpu_lab.image, num_gpus=1)
    with Turn(engine).taken(labels("t.killed", one.store)) as ours, Turn(engine).taken({}) as others:
        assert ours and not others
    turn = Turn(engine).taken(labels("t.killed", one.store))
    assert turn.__enter__()  # and it is never left
    run.run(SHOW, one, name="next", progress=False)
    turn = Turn(engine).taken(labels("t.killed", one.store))
    assert turn.__enter__()
    assert one.prune(lambda *_: False) == ["volume gemma-launcher.turn"]


def test_tasks_that_run_together_cannot_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    executor = run.DockerExecutor(container_image="image", num_gpus=2)
    experiment = run.Experiment("together")
    experiment.add([SHOW, SHOW], executor=executor, name="both")
    with pytest.raises(ExecutorError, match=r"(?s)run together, and num_gpus gives each.*set at.*device_requests"):
        experiment.dryrun()
