"""The guides' examples, run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gemma_runs import SMALLEST
from peft import LoraConfig, get_peft_model

from tests.gemma_models.conversion.hub_server import hub
from tests.gemma_models.tiny import hf_model
from tests.labs.containers.lab import ContainerLab
from tests.labs.slurm.lab import SlurmLab
from tests.walk import Reader, with_cluster, with_engine

DOCS = Path(__file__).parent.parent / "docs"
SCRIPTS = {
    f"{path.stem}-{number}": script
    for path in sorted(DOCS.glob("*.md"))
    if path.stem not in ("containers", "data", "slurm")  # whose scripts belong together
    for number, script in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL), 1)
    if "__main__" in script
}
LAST_WORDS = {
    "configuration-1": "0.0001 ['embedding']\n100.0",
    "configuration-2": """
Trainer has no parameter 'max_stps'; it has max_steps, accelerator
  set at: script.py:16
  try: 'max_steps'
trainer.max_steps is '500' (str), but Trainer takes int
  set at: script.py:19
  try: 500
""",
    "configuration-3": """
valid.seq_length: 512 -> 2048
lr: 0.0001 -> 0.0003
""",
    "configuration-4": "modules, peft\n  try: max_steps=5 8",
    "configuration-5": "<Config[Model(num_layers=4, hidden_size=257)]> Model(num_layers=4, hidden_size=256)",
    "configuration-6": "True lr: 0.0003 -> 0.0001\n['/data/my own.jsonl', [0.5, 0.5], 0.0003]",
    "configuration-7": """
schedule is a lambda, which cannot be found again by name
  set at: script.py:7
  try: def, at top level
""",
    "experiments-1": "'report': <Status.SUCCEEDED: 'succeeded'>}",
    "experiments-2": "rank 1 of 2\nhi\n",
    "experiments-3": "rank_0.out| done\nscript {'script': <Status.SUCCEEDED: 'succeeded'>}",
    "experiments-4": "0",
    "recipes-1": "4 8\n4 4 32768",
    "recipes-2": "200 64 32\n0.0001 100",
    "training-1": """
runs/small/checkpoints
runs/small/checkpoints/step_0000006
runs/small/metrics.jsonl
runs/small/profile
runs/small/profile/rank_0_steps_3_4.json
runs/small/tensorboard
""",
    "training-2": "['linear_qkv', 'linear_proj', 'linear_fc1', 'linear_fc2'] 64.0",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs_and_says_what_it_should(name: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPTS[name])
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(LAST_WORDS[name].strip())


def test_recipes_for_a_reader_of_its_guide(launcher_home: Path, tmp_path: Path) -> None:
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    page = re.sub(r"^    \$ torchrun .*?\n\n", "", page, flags=re.DOTALL | re.MULTILINE)  # test_run_recipe.py runs that
    assert Reader(tmp_path, launcher_home, {}).walk(page) == 3


def test_data_for_a_reader_of_its_guide(launcher_home: Path, hf_gemma3_270m: Path, tmp_path: Path) -> None:
    page = (DOCS / "data.md").read_text(encoding="utf-8")
    assert Reader(tmp_path, launcher_home, {"gemma-3-1b-it": str(hf_gemma3_270m)}).walk(page) == 6


def test_slurm_for_a_reader_of_its_guide(slurm_lab: SlurmLab, launcher_home: Path, tmp_path: Path) -> None:
    page = (DOCS / "slurm.md").read_text(encoding="utf-8")
    assert with_cluster(tmp_path, launcher_home, slurm_lab).walk(page) == page.count("\n    $ ") == 15


def test_containers_for_a_reader_of_its_guide(container_lab: ContainerLab, launcher_home: Path, tmp_path: Path) -> None:
    page = (DOCS / "containers.md").read_text(encoding="utf-8")
    assert with_engine(tmp_path, launcher_home, container_lab).walk(page) == page.count("\n    $ ") == 15


def test_checkpoints_for_a_reader_of_the_guide(launcher_home: Path, gemma_tokenizer: Any, tmp_path: Path) -> None:
    """Of the hub there is what a download needs, and of the model its tokenizer and a small rest."""
    model = hf_model(replace(SMALLEST, vocab_size=262_144))
    (tmp_path / "hub").mkdir()
    model.save_pretrained(tmp_path / "hub")
    gemma_tokenizer.save_pretrained(tmp_path / "hub")
    page = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    with hub() as server:
        server.models["google/gemma-3-270m"] = tmp_path / "hub"
        environment = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "hf"), "NEMO_CACHE_DIR": ""}
        reader = Reader(tmp_path, launcher_home, {}, environment=environment)
        adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        adapter.peft_config["default"].base_model_name_or_path = "google/gemma-3-270m"
        adapter.save_pretrained(reader.folder / "adapter")
        assert reader.walk(page) == page.count("\n    $ ") == 8
