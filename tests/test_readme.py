"""The README's examples, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.labs.containers.lab import ContainerLab
from tests.labs.slurm.lab import SlurmLab
from tests.walk import with_cluster, with_engine

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^### (On a Slurm cluster|In containers)$(.*?)(?=^#)", re.DOTALL | re.MULTILINE)
ELSEWHERE = dict(SECTION.findall(TEXT))
README = SECTION.sub("", TEXT)
SCRIPTS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def execute(script: str, folder: Path) -> str:
    (folder / "script.py").write_text(script)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def gemma_launch(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("gemma-launch")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_launch_script_and_the_commands_after_it(tmp_path: Path) -> None:
    *_, last = execute(SCRIPTS[0], tmp_path).splitlines()
    experiment, loss = last.split()
    assert float(loss) < 6.0, "ln(1024) = 6.9 is where an untrained model stands"
    commands = re.findall(r"^    \$ gemma-launch (experiment .*)", README, re.MULTILINE)
    assert len(commands) == 3
    listing, status, logs = (gemma_launch(*command.split()) for command in commands)
    header = re.search(r"^    (ID  +STATUS.*)", README, re.MULTILINE)
    assert header is not None
    assert listing.splitlines()[0] == header[1]
    assert experiment in listing
    assert "succeeded" in status
    assert "step 20" in logs


def changed(section: str) -> str:
    """The launch script with what a section gives in place of what it has."""
    script = SCRIPTS[0]
    [block] = re.findall(r"```python\n(.*?)```", ELSEWHERE[section], re.DOTALL)
    for statement in re.findall(r"^    \w+ = .*?\n(?=    \w|\Z)", block, re.DOTALL | re.MULTILINE):
        [old] = re.findall(rf"^{statement.partition('=')[0]}= .*\n", script, re.MULTILINE)
        script = script.replace(old, statement)
    return script


def test_the_launch_script_on_a_cluster(slurm_lab: SlurmLab, launcher_home: Path, tmp_path: Path) -> None:
    reader = with_cluster(tmp_path, launcher_home, slurm_lab)
    reader.write("pretrain.py", changed("On a Slurm cluster"))
    assert reader.walk(ELSEWHERE["On a Slurm cluster"]) == 3


def test_the_launch_script_in_containers(container_lab: ContainerLab, launcher_home: Path, tmp_path: Path) -> None:
    reader = with_engine(tmp_path, launcher_home, container_lab)
    reader.write("pretrain.py", changed("In containers"))
    assert reader.walk(ELSEWHERE["In containers"]) == 3


@pytest.mark.parametrize("command", re.findall(r"^    \$ gemma-launch ((?!experiment).*)", README, re.MULTILINE))
def test_the_other_commands(command: str) -> None:
    assert gemma_launch(*command.split())


def test_the_debugging_example(tmp_path: Path) -> None:
    assert "'step': 3" in execute(SCRIPTS[1], tmp_path)


def test_the_fine_tuning_example(tmp_path: Path, hf_gemma3_270m: Path) -> None:
    (tmp_path / ".demo").symlink_to(hf_gemma3_270m.parent)
    shorter = SCRIPTS[2].replace("= 60, None", "= 2, None")
    assert shorter != SCRIPTS[2]
    execute(shorter, tmp_path)
    assert list(tmp_path.glob("todo-*-hf/model.safetensors"))


@pytest.mark.parametrize("word", ["make demo", "make test"])
def test_the_two_commands_are_the_makefiles(word: str) -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    assert word in README
    assert f"\n{word.removeprefix('make ')}:" in makefile
