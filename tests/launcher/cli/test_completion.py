"""What a shell is offered: asked as its script asks, and once by a real bash."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import WORKSPACE, gemma_launch

from experiments.store import Store


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gemma_workspace.py").write_text("print('never run')\n" + WORKSPACE)
    return tmp_path


def offered(line: str) -> list[str]:
    words = line.split(" ")
    done = gemma_launch(
        _GEMMA_LAUNCH_COMPLETE="bash_complete", COMP_WORDS=f"gemma-launch {line}", COMP_CWORD=str(len(words))
    )
    assert done.stderr == ""
    return [found.partition(",")[2] for found in done.stdout.splitlines() if found]


def test_commands_and_options() -> None:
    assert offered("exp") == ["export", "experiment"]
    assert offered("experiment l") == ["list", "logs"]
    assert offered("finetune --dr") == ["--dryrun"]
    assert offered("completion ") == ["bash", "zsh", "fish"]


def test_recipes() -> None:
    assert offered("finetune --factory ")[:3] == ["job", "holding", "broken"]
    assert offered("finetune --factory gemma2_2b") == ["gemma2_2b", "gemma2_2b_8k"]
    assert offered("train --factory gemma3_1b_p") == ["gemma3_1b_pretrain"]
    assert offered("generate --factory g") == []


def test_recipes_of_a_file_that_is_named(folder: Path) -> None:
    (folder / "other.py").write_text("def mine() -> run.Partial[int]: ...\n")
    assert offered("finetune --workspace other.py --factory m") == ["mine"]


def test_executors() -> None:
    assert offered("train --executor ") == ["local", "pair", "single"]


def test_experiments() -> None:
    assert offered("experiment status ") == []
    for name in ("first-one", "first-two", "second"):
        Store().create(name, name, [{"name": "prepare", "folder": "prepare"}])
    assert offered("experiment status first") == ["first-one", "first-two"]
    assert offered("experiment logs --follow s") == ["second"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_names_the_command(shell: str) -> None:
    done = gemma_launch("completion", shell)
    assert done.returncode == 0
    assert "_GEMMA_LAUNCH_COMPLETE" in done.stdout
    assert f"{shell}_complete" in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_itself(folder: Path) -> None:
    script = """
        eval "$(gemma-launch completion bash)"
        COMP_WORDS=(gemma-launch pretrain --factory gemma3_2) COMP_CWORD=3
        _gemma_launch_completion gemma-launch
        echo "${COMPREPLY[@]}"
    """
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env={"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "gemma3_270m gemma3_270m_32k\n", done.stderr
