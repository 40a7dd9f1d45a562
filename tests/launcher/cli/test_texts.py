"""Every help text and every error of the command line, word for word, in the files of `snapshots/`.

UPDATE_SNAPSHOTS=1 pytest tests/launcher/cli/test_texts.py     # writes them anew, to be read before they are committed
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from command import WORKSPACE, gemma_launch

from executors.architecture import local_architecture
from gemma_models.api import pretrain
from gemma_models.settings import Trainer
from launcher.config import Partial
from launcher.serialization import to_yaml

SNAPSHOTS = Path(__file__).parent / "snapshots"
UPDATE = bool(os.environ.get("UPDATE_SNAPSHOTS"))

ENTRYPOINTS = ("train", "pretrain", "finetune", "validate", "import", "export", "preprocess", "generate")
HELP = {
    "help": "",
    **{f"help-{name}": f"{name} --help" for name in (*ENTRYPOINTS, "env", "experiment", "completion")},
    **{f"help-experiment-{name}": f"experiment {name} --help" for name in ("list", "status", "logs", "cancel")},
    "help-workspace": "train --help --workspace mine.py",
    "help-broken-workspace": "finetune -h --workspace wrong.py",
}
SHOWN = {
    "env": "env --factory gemma2_2b --gpu h100",
    "env-of-many": "env --factory 'gemma3_1b_pretrain(num_nodes=2, num_gpus_per_node=8)' --gpu b200 "
    "trainer.strategy.pipeline_model_parallel_size=2",
    "env-without-gpu": "env --factory gemma3_270m",
    "env-set-already": "env --factory gemma2_2b --executor tuned --workspace tuned.py",
    "env-of-a-cpu": "env --factory gemma3_270m trainer.accelerator=cpu",
}
USAGE = {
    "env-without-recipe": "env",
    "no-command": "experiment",
    "unknown-command": "fintune",
    "unknown-subcommand": "experiment lgos x",
    "unknown-option": "finetune --factry gemma3_1b",
    "no-recipe": "finetune trainer.max_steps=5",
    "recipe-without-option": "finetune gemma3_270m",
    "override-with-dashes": "finetune --factory gemma3_1b --trainer.max_steps=5",
    "option-without-value": "finetune --factory",
    "exclusive-options": "finetune --factory gemma3_1b --yaml recipe.yaml",
    "direct-and-executor": "finetune --factory gemma3_1b --direct --executor local",
    "direct-and-executor-override": "train --factory job --workspace mine.py --direct executor.ntasks_per_node=2",
    "rank-below-0": "experiment logs x --rank -1",
    "no-experiment": "experiment status",
    "no-shell": "completion",
    "unknown-shell": "completion fsh",
    "limit-0": "experiment list --limit 0",
}
ERRORS = {
    "env-that-cannot-work": "env --factory gemma2_2b --executor wrong --workspace tuned.py",
    "environment-that-cannot-work": "finetune --factory gemma2_2b --executor wrong --workspace tuned.py "
    "data.train_path=here data.validation_path=here resume.restore_config.path=there",
    "unknown-gpu": "env --factory gemma2_2b --gpu h10",
    "recipe-of-a-workspace-elsewhere": "train --factory mine",
    "unknown-recipe": "finetune --factory gemma3_270",
    "unknown-recipe-with-workspace": "pretrain --factory jbo --workspace mine.py",
    "no-recipe-at-all": "generate --factory gemma3_1b",
    "unmarked-recipe": "train --factory unmarked --workspace mine.py",
    "hidden-recipe": "train --factory _hidden --workspace mine.py",
    "recipe-of-another-entrypoint": "finetune --factory job --workspace mine.py",
    "recipe-that-cannot-be-validated": "validate --factory job --workspace mine.py",
    "recipe-that-raises": "train --factory broken --workspace mine.py",
    "recipe-argument-unknown": "finetune --factory 'gemma3_1b(num_gpus=8)'",
    "recipe-argument-of-a-wrong-type": "finetune --factory 'gemma3_1b(num_nodes=two)'",
    "recipe-argument-as-an-override": "finetune --factory gemma3_1b peft_scheme=dora",
    "recipe-argument-out-of-range": "finetune --factory 'gemma3_1b(peft_scheme=qlora)'",
    "recipe-that-is-code": """finetune --factory '__import__("os").system("true")'""",
    "recipe-argument-that-is-code": "finetune --factory 'gemma3_1b(num_nodes=1+1)'",
    "recipe-not-closed": "finetune --factory 'gemma3_1b('",
    "recipe-of-no-name": "finetune --factory '[gemma3_1b]'",
    "unknown-executor": "train --factory job --executor pairr --workspace mine.py",
    "executor-argument-unknown": "train --factory job --executor 'pair(count=2)' --workspace mine.py",
    "executor-override-unknown": "train --factory job --workspace mine.py executor.ntask_per_node=2",
    "executor-override-of-a-wrong-type": "train --factory job --workspace mine.py executor.ntasks_per_node=two",
    "executor-override-out-of-range": "train --factory job --workspace mine.py executor.ntasks_per_node=0",
    "override-unknown": "finetune --factory gemma3_1b trainer.max_step=5",
    "override-of-a-wrong-type": "finetune --factory gemma3_1b trainer.max_steps=many",
    "override-of-an-unknown-value": "train --factory job --workspace mine.py settings=quik",
    "not-an-override": "finetune --factory gemma3_1b trainer.max_steps",
    "missing-value": "finetune --factory gemma3_1b --yes",
    "missing-argument": "export source=here",
    "prompts-that-are-no-list": "generate path=here prompts=hello",
    "validation-without-data": "validate --factory gemma3_1b resume.restore_config.path=here --yes",
    "values-that-do-not-go-together": "pretrain --factory gemma3_1b trainer.strategy.tensor_model_parallel_size=3",
    "counts-that-disagree": "pretrain --factory gemma3_1b executor.ntasks_per_node=2",
    "nobody-to-ask": "train --factory job --workspace mine.py",
    "workspace-that-is-not-there": "train --factory job --workspace nowhere.py",
    "workspace-that-cannot-be-loaded": "train --factory job --workspace wrong.py",
    "workspace-with-a-syntax-error": "train --factory job --workspace syntax.py",
    "workspace-that-exits": "train --factory job --workspace exits.py",
    "workspace-that-launches": "train --factory job --workspace launches.py",
    "workspace-that-is-no-python": "train --factory job --workspace mine.txt",
    "yaml-that-is-not-there": "finetune --yaml nowhere.yaml",
    "yaml-of-another-entrypoint": "finetune --yaml pretrain.yaml",
    "yaml-of-no-task": "finetune --yaml list.yaml",
    "yaml-with-a-misspelt-name": "pretrain --yaml misspelt.yaml",
    "yaml-that-is-none": "pretrain --yaml mine.py",
    "yaml-written-to-an-override": "finetune --factory gemma3_1b --to-yaml trainer.max_steps=5",
    "yaml-that-is-there-already": "finetune --factory gemma3_1b --to-yaml there.yaml",
    "yaml-in-no-folder": "finetune --factory gemma3_1b --to-yaml nowhere/recipe.yaml",
    "unknown-experiment": "experiment status gemma",
    "unknown-experiment-logs": "experiment logs gemma",
    "unknown-experiment-cancel": "experiment cancel gemma",
}
CASES = HELP | SHOWN | USAGE | ERRORS
TUNED = """import launcher as run

tuned = run.LocalExecutor(gpu="h200")
tuned.env_vars = {"TORCH_NCCL_HIGH_PRIORITY": "0", "PYTORCH_CUDA_ALLOC_CONF": "backend:native"}
wrong = run.LocalExecutor(gpu="h100", env_vars={"NVTE_FUSED_ATTN": "0", "NCCL_DEBUG": "INFO"})
"""
PRETRAIN = to_yaml(Partial(pretrain, trainer=Trainer(max_steps=1)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the cases find in the current folder."""
    files = {
        "mine.py": WORKSPACE,
        "mine.txt": WORKSPACE,
        "wrong.py": "import launcher as run\n\nexecutor = run.LocalExecutor(ntask_per_node=2)\n",
        "syntax.py": "import launcher as run\n\ndef recipe(:\n",
        "exits.py": "import sys\nsys.exit(3)\n",
        "tuned.py": TUNED,
        "launches.py": "import launcher as run\n\nrun.run(run.Partial(dict), direct=True)\n",
        "there.yaml": "",
        "list.yaml": "- 1\n",
        "pretrain.yaml": PRETRAIN,
        "misspelt.yaml": PRETRAIN.replace("max_steps", "max_stps"),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variables that `env` looks at, which a machine for training may well have."""
    for name in os.environ:
        if name.startswith(("CUDA_", "NCCL_", "NVTE_", "PYTORCH_", "TORCH_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_what_it_was(name: str, folder: Path, launcher_home: Path, bare: None) -> None:
    if name == "env-without-gpu" and local_architecture() is not None:
        pytest.skip("this machine's GPUs are known")
    done = gemma_launch(*shlex.split(CASES[name]), folder=folder)
    assert "Traceback" not in done.stderr
    expected = 0 if name in HELP | SHOWN else 2 if name in USAGE else 1
    assert done.returncode == expected, done.stderr
    found = "\n".join(
        [f"$ gemma-launch {CASES[name]}".rstrip(), *(f"exit {status}" for status in [done.returncode] if status)]
        + [part.rstrip("\n") for part in (done.stdout, done.stderr) if part]
    )
    found = found.replace(str(launcher_home), "HOME").replace(str(folder), "FOLDER") + "\n"
    file = SNAPSHOTS / f"{name}.txt"
    if UPDATE:
        file.write_text(found)
    assert file.read_text() == found


def test_no_snapshot_is_left_over() -> None:
    assert {file.stem for file in SNAPSHOTS.iterdir()} == set(CASES)


def test_a_snapshot_holds_nothing_of_this_machine() -> None:
    for file in SNAPSHOTS.iterdir():
        assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|var|opt|work)\b|-packages", file.read_text())
