"""docker/Dockerfile is built on the lab's base image, and a task runs in what it makes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import in_containers
import pytest

import launcher as run
from tests.labs.containers.lab import ContainerLab

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(Path(in_containers.__file__))


@pytest.fixture
def image(container_lab: ContainerLab, tmp_path: Path) -> Iterator[str]:
    """Without the training stack, of some gigabytes: what is installed is an argument of the build."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("launcher", "executors", "experiments", "gemma_models"):  # for pip, here as in the image
        (tmp_path / name).mkdir()
    wheels = str(tmp_path / "wheels")
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--dest", wheels, "setuptools>=77", "wheel", str(tmp_path)]
    subprocess.run(fetch, check=True, timeout=300)
    for made in (tmp_path / "wheels").glob("gemma_launcher*"):
        made.unlink()
    tag = f"gemma-launcher-test:{tmp_path.name.lower()}"
    arguments = [f"BASE={container_lab.image}", "PIP_OPTIONS=--no-index", "EXTRAS="]
    options = [option for argument in arguments for option in ("--build-arg", argument)]
    file = str(ROOT / "docker" / "Dockerfile")
    container_lab.command("build", "-t", tag, "-f", file, *options, str(tmp_path), timeout=300)
    yield tag
    container_lab.command("rmi", "-f", tag)


def test_a_task_runs_in_the_image(image: str) -> None:
    code = run.PatternPackager(include_pattern=SCRIPT, relative_path=str(Path(SCRIPT).parent))
    look = "import importlib.metadata as m; print(m.version('fiddle'), [d.name for d in m.distributions()])"
    with run.Experiment("image") as experiment:
        script = run.Script(inline=f'python3 -c "{look}"')
        experiment.add(script, executor=run.DockerExecutor(container_image=image, packager=code), name="look")
        experiment.run(progress=False)
    said = (experiment.folder / "look" / "rank_0.out").read_text()
    assert "fiddle" in said and "gemma-launcher" not in said
