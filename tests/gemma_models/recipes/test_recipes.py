"""Recipes: light to build, each its own, and shown in full: a change of any value is a change of a golden file.

python tests/gemma_models/recipes/test_recipes.py     # writes the golden files anew
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import gemma_models
from gemma_models import api, gemma2_2b, gemma3_1b, gemma3_270m
from gemma_models.architectures import ARCHITECTURES
from gemma_models.recipes import FINETUNE, LORA, PRETRAIN, Recipes
from gemma_models.recipes.table import GEMMA2_FINETUNE, GEMMA2_LORA, GEMMA2_PRETRAIN, Defaults
from launcher.config import Partial, arguments
from launcher.errors import ConfigError
from launcher.serialization import dumps, loads, to_yaml

GOLDEN = Path(__file__).parent / "golden"
SIZES: dict[str, Recipes] = {"gemma2_2b": gemma2_2b, "gemma3_270m": gemma3_270m, "gemma3_1b": gemma3_1b}


def every() -> dict[str, tuple[Partial[Any], Defaults]]:
    """Each recipe under the name of its golden file, with the row of the table that it comes from."""
    found = {}
    for size, recipes in SIZES.items():
        rows = (PRETRAIN, LORA, FINETUNE)
        if size.startswith("gemma2"):
            rows = (GEMMA2_PRETRAIN, GEMMA2_LORA, GEMMA2_FINETUNE)
        found[f"{size}_pretrain"] = recipes.pretrain_recipe(), rows[0]
        found[f"{size}_finetune_lora"] = recipes.finetune_recipe(peft_scheme="lora"), rows[1]
        found[f"{size}_finetune_none"] = recipes.finetune_recipe(peft_scheme="none"), rows[2]
    return found


@pytest.mark.parametrize("name", every())
def test_a_recipe_is_what_it_was(name: str) -> None:
    assert to_yaml(every()[name][0]) == (GOLDEN / f"{name}.yaml").read_text()


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(every())


@pytest.mark.parametrize("name", every())
def test_values_of_the_table_reach_the_tree(name: str) -> None:
    recipe, row = every()[name]
    size = name[: name.index("_", 7)]
    assert {field: getattr(recipe.model, field) for field in asdict(ARCHITECTURES[size])} == asdict(ARCHITECTURES[size])
    assert row == Defaults(
        max_steps=recipe.trainer.max_steps,
        seq_length=recipe.data.seq_length,
        global_batch_size=recipe.data.global_batch_size,
        lr=recipe.optim.config.lr,
        min_lr=recipe.optim.lr_scheduler.min_lr,
        warmup_steps=recipe.optim.lr_scheduler.warmup_steps,
        adam_beta2=recipe.optim.config.adam_beta2,
        eval_every=recipe.trainer.val_check_interval,
        save_every=recipe.log.ckpt.every_n_train_steps,
        seed=recipe.trainer.seed,
        adapter_dim=recipe.peft.dim if name.endswith("lora") else None,
        adapter_alpha=recipe.peft.alpha if name.endswith("lora") else None,
    )
    assert (recipe.trainer.accelerator, recipe.trainer.precision) == ("gpu", "bf16")


def test_arguments_reach_the_tree() -> None:
    recipe = gemma3_1b.finetune_recipe(name="sft", dir="/ckpt", num_nodes=2, num_gpus_per_node=8, peft_scheme=None)
    assert (recipe.log.name, recipe.log.dir) == ("sft", "/ckpt")
    assert (recipe.trainer.num_nodes, recipe.trainer.devices) == (2, 8)
    assert recipe.peft is None
    assert gemma3_1b.pretrain_recipe().data.vocab_size == 262_144


def test_packing_is_said_where_it_is_wanted() -> None:
    assert gemma2_2b.finetune_recipe(packed_sequence=True).data.packed_sequence is True
    assert "packed_sequence" not in arguments(gemma2_2b.finetune_recipe().data)


def test_another_peft_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="peft_scheme is 'qlora'") as raised:
        gemma3_1b.finetune_recipe(peft_scheme="qlora")  # type: ignore[arg-type]
    assert "try: peft_scheme='lora', or 'none'" in str(raised.value)


def test_what_must_be_given_is_missed() -> None:
    import launcher

    recipe = gemma3_270m.finetune_recipe()
    with pytest.raises(ConfigError, match=r"data\.train_path is missing"):
        launcher.run(recipe, direct=True)
    recipe.data.train_path = "examples.jsonl"
    with pytest.raises(ConfigError, match=r"resume\.restore_config\.path is missing"):
        launcher.run(recipe, direct=True)


def test_a_changed_recipe_changes_no_other() -> None:
    before = {name: dumps(recipe) for name, (recipe, _) in every().items()}
    for recipe, _ in every().values():
        recipe.model.num_layers = 1
        recipe.trainer.max_steps = 7
        recipe.trainer.strategy.tensor_model_parallel_size = 4
        recipe.optim.config.lr = 1.0
        recipe.optim.lr_scheduler.warmup_steps = 1
        recipe.log.ckpt.save_last_k = 9
        recipe.data.seq_length = 3
        if "peft" in dir(recipe) and recipe.peft is not None:
            recipe.peft.target_modules.append("linear_q")
    assert {name: dumps(recipe) for name, (recipe, _) in every().items()} == before
    assert (ARCHITECTURES["gemma3_1b"].num_layers, ARCHITECTURES["gemma3_270m"].num_layers) == (26, 18)


def test_nothing_is_shared_within_a_recipe() -> None:
    """A shared part would be marked in the file: changing it in one place would change it in another."""
    assert not any("$same" in dumps(recipe) for recipe, _ in every().values())


@pytest.mark.parametrize("name", every())
def test_a_saved_recipe_is_the_recipe(name: str) -> None:
    recipe, _ = every()[name]
    assert loads(dumps(recipe)) == recipe


def test_entry_points() -> None:
    assert gemma3_1b.pretrain_recipe().__fn_or_cls__ is api.pretrain
    assert gemma3_1b.finetune_recipe().__fn_or_cls__ is api.finetune
    for size in SIZES:
        assert getattr(gemma_models, size) is SIZES[size]


def test_building_one_needs_nothing_heavy() -> None:
    """In a process of its own: built, changed, shown and saved without torch, numpy or a tokenizer."""
    shown = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["saved"]


LIGHT = """
import sys
from gemma_models import gemma3_1b, gemma3_270m
from launcher.serialization import dumps, to_yaml
for recipe in (gemma3_1b.pretrain_recipe(), gemma3_270m.finetune_recipe()):
    recipe.trainer.max_steps = 5
    assert dumps(recipe) and to_yaml(recipe)
heavy = {name.partition(".")[0] for name in sys.modules} & {
    "torch", "megatron", "transformers", "safetensors", "numpy", "paramiko", "rich"}
assert not heavy, heavy
print("saved")
"""


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, (recipe, _) in every().items():
        (GOLDEN / f"{name}.yaml").write_text(to_yaml(recipe))
