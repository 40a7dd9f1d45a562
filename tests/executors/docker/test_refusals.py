"""What the engine says when it will not, in our words; and that nothing is left of what it would not run."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path
from typing import Any

import in_containers
import pytest

import launcher as run
from executors.docker.containers import EXPERIMENT
from executors.docker.engine import Engine
from experiments.store import Store
from launcher.errors import LaunchError, TunnelError
from tests.labs.containers.lab import ContainerLab
from tests.labs.machine import require_user

SCRIPT = str(Path(in_containers.__file__))


def refused(lab: ContainerLab, **settings: Any) -> LaunchError:
    """Why a task does not run; nothing is left of it there."""
    code = run.PatternPackager(include_pattern=SCRIPT, relative_path=str(Path(SCRIPT).parent))
    experiment = run.Experiment("refused")
    executor = run.DockerExecutor(**{"container_image": lab.image, "packager": code} | settings)
    experiment.add(run.Partial(in_containers.work, 0.0), executor=executor, name="task")
    with pytest.raises(LaunchError) as error:
        experiment.run(progress=False)
    for words in (["ps", "-aq"], ["volume", "ls", "-q"], ["network", "ls", "-q"]):
        assert lab.command(*words, "--filter", f"label={EXPERIMENT}={experiment.id}") == ""
    return error.value


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"container_image": "no-such:image"}, r"(?s)has no image no-such:image.*set at.*docker pull no-such:image"),
        ({"volumes": ["/no/such/folder:/data"]}, "(?s)bind source path does not exist: /no/such/folder.*try: volumes="),
        ({"memory": "1k"}, "(?s)memory limit.*try: memory="),
    ],
)
def test_before_anything_is_submitted(container_lab: ContainerLab, settings: dict[str, Any], words: str) -> None:
    error = refused(container_lab, nodes=2, **settings)
    assert not isinstance(error, run.ExperimentFailed)
    assert re.search(words, str(error)), str(error)
    assert not list(Store().all())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_gpus": 1}, ["could not select device driver", "try: install nvidia-container-toolkit"]),
        ({"python": "python9"}, ['exec: "python9"', "try: python='/path/to/python'"]),
        ({"user": "nobody-here"}, ["unable to find user", "try: user='1000:1000'"]),
        ({"network": "no-such-network"}, ["network no-such-network not found", "try: network=None"]),
        ({"ulimits": ["memlock=-1"]}, ["rlimit", "try: ulimits=[]"]),
    ],
)
def test_when_it_is_to_start(container_lab: ContainerLab, settings: dict[str, Any], words: list[str]) -> None:
    said = str(refused(container_lab, **settings))
    assert all(part in said for part in words), said


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TunnelError) as error, Engine(f"unix://{tmp_path}/none.sock").asked("it"):
        pass
    assert f"no engine answers at unix://{tmp_path}/none.sock: there is no socket" in str(error.value)
    with pytest.raises(TunnelError, match="nobody listens"), Engine("tcp://127.0.0.1:9").asked("it"):
        pass


def test_a_socket_that_is_somebody_elses(container_lab: ContainerLab) -> None:
    require_user()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setuid(pwd.getpwnam("alice").pw_uid)
        try:
            with Engine(container_lab.host).asked("it"):
                os._exit(1)
        except TunnelError as error:
            os._exit(0 if "you may not use the engine" in str(error) and "usermod" in str(error) else 2)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
