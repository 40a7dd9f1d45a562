"""Recipes: light to build, each its own, and shown in full: a change of any value is a change of a golden file.

python tests/samples/every_recipe.py     # writes the golden files anew
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import every_recipe
import pytest
from every_recipe import GOLDEN, every

import gemma_models
from gemma_models import api, gemma2_2b, gemma2_9b, gemma2_27b, gemma3_1b, gemma3_270m
from gemma_models.architectures import ARCHITECTURES
from gemma_models.memory import LARGEST, state_bytes
from gemma_models.recipes import NAMES
from gemma_models.recipes.aliases import ALIASES, meaning
from gemma_models.recipes.table import RECIPES, Defaults
from launcher.config import Config, build, check_task
from launcher.errors import ConfigError
from launcher.serialization import dumps, loads

EVERY = every()
GUIDE = GOLDEN.parents[3] / "docs" / "recipes.md"


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """Every recipe as YAML, from a process that may have no torch, no network and no token."""
    script = Path(every_recipe.__file__)
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "SAVE_DIR")}
    done = subprocess.run(
        [sys.executable, str(script), "--show"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", EVERY)
def test_a_recipe_is_what_it_was(name: str, shown: dict[str, str]) -> None:
    assert shown[name] == (GOLDEN / f"{name}.yaml").read_text()


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(EVERY)


@pytest.mark.parametrize("event", [("import", ("torch.nn",)), ("socket.connect", ()), ("open", ("/x/token", "r", 0))])
def test_what_a_recipe_may_not_do_is_noticed(event: tuple[str, Any]) -> None:
    from every_recipe import forbid

    with pytest.raises(RuntimeError):
        forbid(*event)


@pytest.mark.parametrize("name", EVERY)
def test_values_of_the_table_reach_the_tree(name: str) -> None:
    recipe = EVERY[name]()
    own, _, scheme = name.partition("_finetune_")
    own = own.removesuffix("_pretrain")
    row = RECIPES[own]["pretrain" if not scheme else "finetune" if scheme == "none" else "adapters"]
    size = own.removesuffix("_8k").removesuffix("_32k")
    assert {field: getattr(recipe.model, field) for field in asdict(ARCHITECTURES[size])} == asdict(ARCHITECTURES[size])
    strategy, peft = recipe.trainer.strategy, getattr(recipe, "peft", None) if scheme else None
    packed = scheme == "packed"
    assert row == Defaults(
        max_steps=recipe.trainer.max_steps,
        seq_length=recipe.data.seq_length,
        global_batch_size=row.global_batch_size if packed else recipe.data.global_batch_size,
        packed_global_batch_size=recipe.data.global_batch_size if packed else row.packed_global_batch_size,
        micro_batch_size=recipe.data.micro_batch_size,
        lr=recipe.optim.config.lr,
        min_lr=recipe.optim.lr_scheduler.min_lr,
        warmup_steps=recipe.optim.lr_scheduler.warmup_steps,
        adam_beta2=recipe.optim.config.adam_beta2,
        eval_every=recipe.trainer.val_check_interval,
        save_every=recipe.log.ckpt.every_n_train_steps,
        seed=recipe.trainer.seed,
        distributed_optimizer=strategy.use_distributed_optimizer,
        adapter_dim=peft.dim if peft else None,
        adapter_alpha=row.adapter_alpha if scheme == "dora" else peft.alpha if peft else None,
        dora_alpha=peft.alpha if scheme == "dora" else row.dora_alpha,
        num_nodes=recipe.trainer.num_nodes,
        num_gpus_per_node=recipe.trainer.devices,
        tensor_parallel=strategy.tensor_model_parallel_size,
        pipeline_parallel=strategy.pipeline_model_parallel_size,
        context_parallel=strategy.context_parallel_size,
    )
    assert (recipe.trainer.accelerator, recipe.trainer.precision) == ("gpu", "bf16")
    assert getattr(recipe.data, "packed_sequence", False) is packed


@pytest.mark.parametrize("name", EVERY)
def test_a_recipe_can_run_on_its_own_gpus(name: str) -> None:
    """Its layout is one, its batch can be shared out, and what a GPU of 80 GB holds before activations leaves room."""
    recipe = EVERY[name]()
    if "finetune" in name:
        recipe.data.train_path = recipe.data.validation_path = "examples.jsonl"
        recipe.resume.restore_config.path = "weights"
    check_task(recipe, recipe.trainer.num_nodes * recipe.trainer.devices)
    strategy = recipe.trainer.strategy
    model_parallel = strategy.tensor_model_parallel_size * strategy.pipeline_model_parallel_size
    data_parallel = (
        recipe.trainer.num_nodes * recipe.trainer.devices // model_parallel // strategy.context_parallel_size
    )
    assert data_parallel >= 1
    assert recipe.data.global_batch_size % (recipe.data.micro_batch_size * data_parallel) == 0
    peft = build(recipe.peft) if "finetune" in name else None
    assert state_bytes(build(recipe.model), build(recipe.trainer), peft) < 64e9


@pytest.mark.parametrize(
    ("nodes", "gpus", "layout"),
    [(None, None, (8, 2, 1)), (1, 8, (8, 1, 1)), (2, 4, (4, 2, 1)), (4, 8, (8, 2, 1)), (1, 6, (2, 1, 1))],
)
def test_other_gpus_get_the_parts_of_the_layout_that_fit(
    nodes: int | None, gpus: int | None, layout: tuple[int, int, int]
) -> None:
    strategy = gemma2_27b.finetune_recipe(num_nodes=nodes, num_gpus_per_node=gpus, peft_scheme="none").trainer.strategy
    found = strategy.tensor_model_parallel_size, strategy.pipeline_model_parallel_size, strategy.context_parallel_size
    assert found == layout


def test_a_layout_that_no_gpu_can_hold_is_refused() -> None:
    recipe = gemma2_27b.pretrain_recipe(num_nodes=1, num_gpus_per_node=1)
    with pytest.raises(ConfigError, match="490 GB each of weights, gradients and optimizer state") as raised:
        check_task(recipe, 1)
    assert "test_recipes.py" in str(raised.value)
    recipe.trainer.accelerator = "cpu"  # whose memory nobody knows
    check_task(recipe, 1)
    whole = gemma2_9b.pretrain_recipe(num_gpus_per_node=1)
    assert 166e9 < state_bytes(build(whole.model), build(whole.trainer), None) < LARGEST
    check_task(whole, 1)


@pytest.mark.parametrize("wrong", [{"num_nodes": 0}, {"num_gpus_per_node": "8"}])
def test_a_count_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="must be a whole number of at least 1"):
        gemma3_1b.pretrain_recipe(**wrong)


def test_checkpoints_go_where_the_run_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = gemma3_1b.pretrain_recipe(name="mine")
    monkeypatch.delenv("SAVE_DIR", raising=False)
    assert build(recipe.log).folder() == Path("checkpoints/mine")
    monkeypatch.setenv("SAVE_DIR", "/scratch/ada")  # of the cluster, where the recipe was not made
    assert build(recipe.log).folder() == Path("/scratch/ada/mine")
    recipe.log.dir = "here"
    assert build(recipe.log).folder() == Path("here/mine")


def test_arguments_reach_the_tree() -> None:
    recipe = gemma3_1b.finetune_recipe(name="sft", dir="/ckpt", num_nodes=2, num_gpus_per_node=8, peft_scheme=None)
    assert (recipe.log.name, recipe.log.dir) == ("sft", "/ckpt")
    assert (recipe.trainer.num_nodes, recipe.trainer.devices) == (2, 8)
    assert recipe.peft is None
    assert gemma3_1b.pretrain_recipe().data.vocab_size == 262_144


def test_another_peft_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="peft_scheme is 'qlora'") as raised:
        gemma3_1b.finetune_recipe(peft_scheme="qlora")  # type: ignore[arg-type]
    assert "try: peft_scheme='lora', 'dora', or 'none'" in str(raised.value)


def test_what_must_be_given_is_missed() -> None:
    import launcher

    recipe = gemma3_270m.finetune_recipe()
    with pytest.raises(ConfigError, match=r"data\.train_path is missing"):
        launcher.run(recipe, direct=True)
    recipe.data.train_path = "examples.jsonl"
    with pytest.raises(ConfigError, match=r"resume\.restore_config\.path is missing"):
        launcher.run(recipe, direct=True)


def test_a_changed_recipe_changes_no_other() -> None:
    some = {
        name: make for name, make in EVERY.items() if name.startswith(("gemma2_27b_p", "gemma3_1b_", "gemma3_270m_f"))
    }
    before = {name: dumps(make()) for name, make in some.items()}
    for make in some.values():
        recipe = make()
        recipe.model.num_layers = 1
        recipe.trainer.max_steps = 7
        recipe.trainer.strategy.tensor_model_parallel_size = 16
        recipe.optim.config.lr = 1.0
        recipe.optim.lr_scheduler.warmup_steps = 1
        recipe.log.ckpt.save_last_k = 9
        recipe.data.seq_length = 3
        if "peft" in dir(recipe) and recipe.peft is not None:
            recipe.peft.target_modules.append("linear_q")
    assert {name: dumps(make()) for name, make in some.items()} == before
    assert (ARCHITECTURES["gemma3_1b"].num_layers, ARCHITECTURES["gemma3_270m"].num_layers) == (26, 18)


def test_nothing_is_shared_within_a_recipe() -> None:
    """A shared part would be marked in the file: changing it in one place would change it in another."""
    assert not any("$same" in dumps(make()) for make in EVERY.values())


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_recipe_is_the_recipe(name: str) -> None:
    recipe = EVERY[name]()
    assert loads(dumps(recipe)) == recipe


def test_entry_points() -> None:
    assert gemma3_1b.pretrain_recipe().__fn_or_cls__ is api.pretrain
    assert gemma3_1b.finetune_recipe().__fn_or_cls__ is api.finetune
    for name in NAMES:
        assert getattr(gemma_models, name).name == name
        assert name in dir(gemma_models)
    assert isinstance(gemma2_2b.finetune_recipe().peft, Config)


def test_the_guides_tables_are_those_of_the_code() -> None:
    """UPDATE_SNAPSHOTS=1 writes them anew."""
    kinds = {"pretrain": ("pretraining", "pretrain"), "finetune": ("every weight", "finetune_none")}
    kinds["adapters"] = ("adapters", "finetune_lora")
    columns = "recipe|what|GPUs|TP|PP|CP|GB|length|batch|learning rate|warm-up|steps"
    defaults = [columns.split("|"), ["---"] * 12]
    for name, rows in RECIPES.items():
        for kind, row in rows.items():
            what, file = kinds[kind]
            recipe = EVERY[f"{name}_{file}"]()
            peft = build(recipe.peft) if kind == "adapters" else None
            held = state_bytes(build(recipe.model), build(recipe.trainer), peft) / 1e9
            defaults.append([
                f"`{name}`" if kind == "pretrain" else "",
                what + (f", rank {row.adapter_dim}, alpha {row.adapter_alpha:g}" if peft else ""),
                f"{row.num_nodes} x {row.num_gpus_per_node}" if row.num_nodes > 1 else str(row.num_gpus_per_node),
                str(row.tensor_parallel), str(row.pipeline_parallel), str(row.context_parallel), f"{held:.0f}",
                str(row.seq_length), f"{row.global_batch_size} ({row.micro_batch_size})",
                f"{row.lr:g} to {row.min_lr:g}", str(row.warmup_steps), f"{row.max_steps:,}",
            ])  # fmt: skip
    aliases = [["Megatron-Bridge", "here"], ["---"] * 2]
    aliases += [[f"`{path}`", _target(path)] for path in ALIASES]
    text = expected = GUIDE.read_text()
    for name, table in {"defaults": defaults, "aliases": aliases}.items():
        before, rest = expected.split(f"<!-- {name} -->\n")
        body = "".join(f"| {' | '.join(row)} |\n" for row in table)
        expected = f"{before}<!-- {name} -->\n{body}<!-- end -->{rest.partition('<!-- end -->')[2]}"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        GUIDE.write_text(expected)
    assert text == expected


def _target(path: str) -> str:
    """What a path stands for, by what an override of it becomes."""
    recipe = gemma3_1b.finetune_recipe()
    value = "DIR/NAME" if path in ("checkpoint.save", "checkpoint.load") else "X"
    return ", ".join(f"`{text.removesuffix('=X')}`" for text in meaning(recipe, f"{path}={value}"))
