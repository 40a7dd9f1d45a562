"""docs/cli.md: its workspace and every line of it that begins with `$`, in their order."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command import gemma_launch

from experiments.store import Store
from gemma_models.architectures import ARCHITECTURES
from tests.gemma_models.tiny import hf_model, tiny

TEXT = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
LINES = re.findall(r"^    \$ gemma-launch (.*)", TEXT.replace("\\\n", ""), re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, hf_gemma3_270m: Path) -> Path:
    """What the page speaks of: the workspace, and a model, for which a tiny one with Gemma's tokenizer stands here."""
    [workspace] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "gemma_workspace.py").write_text(workspace)
    vocabulary = ARCHITECTURES["gemma3_270m"].vocab_size
    model = hf_model(replace(tiny("gemma3_270m"), vocab_size=vocabulary, num_layers=2, sliding_window_pattern=2))
    model.save_pretrained(tmp_path / "gemma-3-270m")
    for file in [*hf_gemma3_270m.glob("tokenizer*"), hf_gemma3_270m / "generation_config.json"]:
        shutil.copy(file, tmp_path / "gemma-3-270m")
    return tmp_path


def test_every_line_runs(folder: Path) -> None:
    assert len(LINES) == 16
    printed = {}
    for line in LINES:
        done = gemma_launch(*shlex.split(line), folder=folder, OMP_NUM_THREADS="1")
        assert done.returncode == 0, (line, done.stderr)
        printed[line] = done.stdout

    def output(begin: str) -> str:
        return next(text for line, text in printed.items() if line.startswith(begin))

    assert "gemma3_270m      gemma_models.gemma3_270m.finetune_recipe" in output("finetune --help")
    assert "max_steps: 500" in output("finetune --factory gemma3_270m --dryrun")
    assert "CUDA_DEVICE_MAX_CONNECTIONS=8" in output("env")
    assert re.search(r"\btiny +gemma_workspace\.py:18", output("pretrain --help"))
    trained = json.loads(output("pretrain --factory tiny --executor one"))
    validated = json.loads(output("validate"))
    assert validated["val_loss"] == pytest.approx(trained["val_loss"], abs=1e-6)
    assert validated["checkpoint"] == trained["checkpoint"]
    assert json.loads(output("pretrain --yaml"))["step"] == 2
    assert "rank_0.out| step 3  max_steps 3" in output("experiment logs longer")
    assert "status   succeeded" in output("experiment status longer")
    assert len(output("generate").splitlines()) >= 2
    assert output("import") == "imported\n"
    assert (folder / "exported" / "model.safetensors").exists()
    assert sorted(record.title for record in Store().all()) == ["longer", "tiny", "two"]
    assert output("experiment list").count("succeeded") == 3
