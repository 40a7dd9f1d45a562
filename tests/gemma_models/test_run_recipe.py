"""`python -m gemma_models.run_recipe`: in two processes of torchrun, and what it says of wrong usage."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import launcher
from gemma_models import gemma3_270m, run_recipe
from gemma_models.recipes import CONFIGS
from launcher.errors import CheckpointError, LaunchError
from launcher.overrides import apply

MODULE = [sys.executable, "-m", "gemma_models.run_recipe"]
GUIDE = Path(__file__).parent.parent.parent / "docs" / "recipes.md"


def environment(**values: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **values}


def test_two_processes_of_torchrun(tmp_path: Path) -> None:
    """The guide's own command."""
    [command] = re.findall(r"^    \$ (torchrun .*?)\n\n", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    words = shlex.split(command.replace("\\\n", " "))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:]],
        cwd=tmp_path,
        env=environment(SAVE_DIR=str(tmp_path / "kept")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / "kept/tiny/checkpoints/step_0000002"
    assert json.loads(done.stdout)["checkpoint"] == str(checkpoint), "said once, and not by both ranks"
    assert json.loads((checkpoint / "checkpoint.json").read_text())["world_size"] == 2
    again = gemma3_270m.pretrain_recipe("tiny", tmp_path / "kept")
    apply(again, [word for word in words if word.startswith(("model.", "trainer."))])
    again.trainer.max_steps, again.optim.lr_scheduler.warmup_steps, again.trainer.val_check_interval = 3, 1, None
    with pytest.raises(CheckpointError, match="holds checkpoints of another run"):
        launcher.run(again, direct=True)


def test_a_mistake_is_said_once_and_not_by_every_rank(tmp_path: Path) -> None:
    arguments = [*MODULE, "--recipe", "gemma2_2b_sft_config", "train.train_itters=5"]
    ranks = [
        subprocess.Popen(
            arguments,
            env=environment(RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2"),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = ranks[0].communicate()[1]
    assert ranks[0].returncode == 1
    assert said.startswith("error: train.train_itters is neither in the recipe")
    assert "try: train.train_iters" in said
    assert "Traceback" not in said
    time.sleep(0.2)
    assert ranks[1].poll() is None, "its end would have torchrun end rank 0, perhaps before it has said it"
    ranks[1].kill()
    assert ranks[1].communicate()[1] == ""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "--recipe is missing"),
        (["--recipe", "gemma2_2b_finetune_confg"], 2, "try: 'gemma2_2b_finetune_config'"),
        (["--recipe", "gemma3_1b_peft", "--peft", "qlora"], 2, "invalid choice: 'qlora'"),
        (["--recipe", "gemma3_1b_peft", "--pef", "lora"], 2, "unrecognized arguments: --pef"),
        (["--recipe", "gemma3_1b_pretrain", "--peft", "lora"], 2, "--peft lora is for fine-tuning"),
        (["--recipe", "gemma3_1b_sft", "data.train_path=x"], 1, "resume.restore_config.path is missing"),
        (["--recipe", "gemma2_27b_pretrain"], 1, "490 GB each"),
    ],
)
def test_wrong_usage(arguments: list[str], status: int, words: str, capsys: Any, alone: None) -> None:
    with pytest.raises(SystemExit) as raised:
        run_recipe.main(arguments)
    assert raised.value.code == status
    assert words in capsys.readouterr().err


def test_help_lists_the_recipes(capsys: Any, alone: None) -> None:
    with pytest.raises(SystemExit):
        run_recipe.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name}\n" in shown for name in CONFIGS)


@pytest.mark.parametrize("spelling", ["--peft", "--peft-scheme", "--peft_scheme"])
@pytest.mark.parametrize("dash", ["-", "_"])
def test_options_with_dashes_and_underscores(spelling: str, dash: str, alone: None) -> None:
    recipe = run_recipe.recipe_of(
        ["--recipe", "gemma3_1b_finetune", f"--pretrained{dash}checkpoint", "weights", "data.train_path=x", spelling,
         "dora", f"--seq{dash}length=512", "train.train_iters=100", "data.validation_path=y"]
    )  # fmt: skip
    assert (type(recipe.peft).__name__, recipe.peft.dim, recipe.data.seq_length) == ("Config", 8, 512)
    assert recipe.resume.restore_config.path == "weights"
    assert "DoRA" in repr(recipe.peft)


def test_the_counts_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "16"), ("LOCAL_WORLD_SIZE", "8"), ("RANK", "3")):
        monkeypatch.setenv(name, value)
    recipe = run_recipe.recipe_of(["--recipe", "gemma2_27b_pretrain_config"])
    assert (recipe.trainer.num_nodes, recipe.trainer.devices) == (2, 8)
    assert recipe.trainer.strategy.pipeline_model_parallel_size == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "7")
    with pytest.raises(LaunchError, match="WORLD_SIZE 16 is no multiple of LOCAL_WORLD_SIZE 7"):
        run_recipe.recipe_of(["--recipe", "gemma2_27b_pretrain_config"])


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
