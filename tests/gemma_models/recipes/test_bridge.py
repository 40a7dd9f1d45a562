"""Recipes under Megatron-Bridge's names: the same Partial, and its paths over the same values."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import gemma_models
from gemma_models import gemma2_2b, gemma2_9b, gemma3_1b
from gemma_models.data import IndexedData
from gemma_models.recipes import CONFIGS, NAMES
from gemma_models.recipes.aliases import ALIASES, ARGUMENTS, meaning
from gemma_models.recipes.factories import factories
from gemma_models.settings import Wandb
from launcher.config import Config
from launcher.errors import ConfigError, OverrideError
from launcher.overrides import apply

# A value for each path, and where it is found.
VALUES = {
    "checkpoint.save": ("/runs/lora", {"log.dir": "/runs", "log.name": "lora"}),
    "checkpoint.load": (
        "/runs/lora/checkpoints",
        {"log.dir": "/runs", "log.name": "lora", "resume.resume_if_exists": True},
    ),
    "checkpoint.pretrained_checkpoint": ("a b", {"resume.restore_config.path": "a b"}),
    "dataset.dataset_root": (
        "/data",
        {"data.train_path": "/data/training.jsonl", "data.validation_path": "/data/validation.jsonl"},
    ),
    "mixed_precision": ("bf16_mixed", {"trainer.precision": "bf16"}),
    "model.recompute_granularity": ("full", {"trainer.recompute_granularity": "full"}),
    "model.transformer_impl": ("transformer_engine", {"trainer.transformer_impl": "transformer_engine"}),
    "model.attention_backend": ("flash", {"trainer.attention": "flash"}),
    "dataset.split": ("8,1,1", {"data.split": "8,1,1"}),
    "logger.wandb_project": ("my team's", {"log.wandb.project": "my team's"}),
    "logger.wandb_entity": ("team", {"log.wandb.entity": "team"}),
    "logger.wandb_exp_name": ("first", {"log.wandb.name": "first"}),
    "tokenizer.tokenizer_model": ("folder", {"tokenizer": "folder"}),
}


def value_at(recipe: Any, path: str) -> Any:
    for name in path.split("."):
        recipe = getattr(recipe, name)
    return recipe


@pytest.mark.parametrize("name", CONFIGS)
def test_a_function_gives_the_recipe_of_its_name(name: str) -> None:
    own, _, kind = name.removesuffix("_config").rpartition("_")
    recipes = getattr(gemma_models, own)
    function = getattr(gemma_models, name)
    assert own in NAMES
    assert (function.__name__, name in dir(gemma_models)) == (name, True)
    if kind == "pretrain":
        assert function("mine") == recipes.pretrain_recipe("mine")
    else:
        scheme = "none" if kind == "sft" else "lora"
        assert function("mine") == recipes.finetune_recipe("mine", peft_scheme=scheme)
        assert function(peft="dora") == recipes.finetune_recipe(peft_scheme="dora")
        assert function(peft=None) == recipes.finetune_recipe(peft_scheme="none")


def test_what_a_function_takes_reaches_the_recipe() -> None:
    from gemma_models import gemma2_2b_pretrain_config, gemma2_9b_finetune_config

    assert gemma2_9b_finetune_config is gemma_models.gemma2_9b_finetune_config
    assert list(inspect.signature(gemma2_9b_finetune_config).parameters)[:5] == [
        "name", "pretrained_checkpoint", "peft", "train_iters", "global_batch_size",
    ]  # fmt: skip
    recipe = gemma2_9b_finetune_config(
        "sft", "/models/gemma-2-9b", "none", 200, 64, num_nodes=2, num_gpus_per_node=8, dir="/runs",
        finetune_lr=2e-5, min_lr=1e-6, lr_warmup_iters=5, eval_interval=20, save_interval=40,
        tensor_model_parallel_size=8,
    )  # fmt: skip
    expected = gemma2_9b.finetune_recipe("sft", "/runs", 2, 8, "none")
    expected.resume.restore_config.path = "/models/gemma-2-9b"
    expected.trainer.max_steps, expected.trainer.val_check_interval = 200, 20
    expected.data.global_batch_size, expected.log.ckpt.every_n_train_steps = 64, 40
    expected.optim.config.lr, expected.optim.lr_scheduler.min_lr = 2e-5, 1e-6
    expected.optim.lr_scheduler.warmup_steps = 5
    expected.trainer.strategy.tensor_model_parallel_size = 8
    assert recipe == expected
    further = gemma2_2b_pretrain_config(pretrained_checkpoint="weights", seq_length=1024)
    assert (further.resume.restore_config.path, further.data.seq_length) == ("weights", 1024)


def test_data_paths_are_indexed_data_of_the_recipes_sizes() -> None:
    recipe = gemma_models.gemma2_9b_pretrain_config("mine", ["0.3", "books", "0.7", "web"], 100, 64, seq_length=1024)
    made = gemma2_9b.pretrain_recipe("mine")
    made.trainer.max_steps = 100
    made.data = Config(
        IndexedData,
        data_paths=["0.3", "books", "0.7", "web"],
        seq_length=1024,
        micro_batch_size=2,
        global_batch_size=64,
    )
    assert recipe == made
    assert gemma_models.gemma2_9b_pretrain_config(data_paths="books").data.data_paths == ["books"]


def test_what_a_function_does_not_take_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"gemma3_1b_sft_config takes no 'train_iter'; by name it takes .*seq_"
    ) as raised:
        gemma_models.gemma3_1b_sft_config(train_iter=5)
    assert "'train_iters'" in str(raised.value) or "'eval_iters'" in str(raised.value)
    with pytest.raises(ConfigError, match=r"^peft is 'qlora'\n  try: peft='lora' or peft='dora'"):
        gemma_models.gemma3_1b_peft_config(peft="qlora")


def test_a_value_has_the_line_of_whoever_called() -> None:
    from launcher.config import where

    recipe = gemma_models.gemma3_1b_pretrain_config(train_iters=7)
    assert "test_bridge.py" in str(where(recipe.trainer, "max_steps"))


@pytest.mark.parametrize("path", ALIASES)
def test_a_path_of_bridges_is_a_value_of_ours(path: str) -> None:
    recipe = gemma3_1b.finetune_recipe(peft_scheme="none")
    recipe.trainer.precision = "fp32"
    recipe.data.train_path = recipe.resume.restore_config.path = "not yet"
    recipe.log.wandb = Config(Wandb, project="another")
    if path == "dataset.split":
        recipe.data = Config(IndexedData, data_paths=["books"])
    target = ALIASES[path]
    if path in VALUES:
        text, found = VALUES[path]
    else:
        assert isinstance(target, str)
        old = value_at(recipe, target)
        text, found = (str(not old), {target: not old}) if isinstance(old, bool) else ("3", {target: 3})
    before = {place: value_at(recipe, place) for place in found}
    apply(recipe, [f"{path}={text}"], factories(), aliases=meaning)
    after = {place: value_at(recipe, place) for place in found}
    assert after == found
    assert all(before[place] != after[place] for place in found), "or nothing would be seen"


def test_an_argument_is_the_last_name_of_one_value_alone() -> None:
    """Two paths that end alike must mean one thing: a function takes the name without its section."""
    for name, target in ARGUMENTS.items():
        assert {each for path, each in ALIASES.items() if path.rpartition(".")[2] == name} <= {target}


def test_weights_and_biases_without_any_yet() -> None:
    recipe = gemma3_1b.pretrain_recipe()
    apply(recipe, ["logger.wandb_project=my team's", "logger.wandb_exp_name=first"], factories(), aliases=meaning)
    assert (recipe.log.wandb.project, recipe.log.wandb.name) == ("my team's", "first")


def test_fp8_comes_with_the_layers_that_can() -> None:
    recipe = gemma3_1b.pretrain_recipe()
    apply(recipe, ["mixed_precision=bf16_with_fp8_current_scaling_mixed"], factories(), aliases=meaning)
    trainer = recipe.trainer
    assert (trainer.precision, trainer.transformer_impl, trainer.fp8_recipe) == (
        "bf16",
        "transformer_engine",
        "tensorwise",
    )


def test_a_task_that_is_no_recipe_has_its_own_names() -> None:
    assert meaning(Config(dict, train=Config(dict, train_iters=1)), "train.train_iters=5") == ["train.train_iters=5"]


def test_weights_to_pretrain_from_need_no_place_yet() -> None:
    recipe = gemma3_1b.pretrain_recipe()
    apply(recipe, ["checkpoint.pretrained_checkpoint=weights"], factories(), aliases=meaning)
    assert recipe.resume.restore_config.path == "weights"


def test_names_of_both_kinds_and_operators() -> None:
    recipe = gemma2_2b.finetune_recipe()
    apply(recipe, ["train.global_batch_size*=2", "model.num_layers=4", "peft.dim=8"], factories(), aliases=meaning)
    assert (recipe.data.global_batch_size, recipe.model.num_layers, recipe.peft.dim) == (256, 4, 8)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.train_itters=5"], "(?s)train.train_itters is neither.*try: train.train_iters"),
        (["train.max_steps=5"], "(?s)train.max_steps is neither.*trainer.max_steps"),
        (["model.tensor_model_paralel_size=2"], "(?s)neither.*try: model.tensor_model_parallel_size.*trainer.strategy"),
        (["trainer.max_stps=5"], "(?s)`trainer.max_stps=5` on the command line: trainer has no.*try: trainer.max_"),
        (["train.train_iters=many"], "`train.train_iters=many` on the command line: trainer.max_steps takes int"),
        (["mixed_precision=fp16_mixed"], "`mixed_precision=fp16_mixed` on the command line: trainer.precision"),
        (["checkpoint.save*=2"], "checkpoint.save can be set, and not be changed"),
        (["checkpoint.save=/"], "checkpoint.save is '/', and names no folder"),
        (["checkpoint.save=/a/b", "checkpoint.load=/a/c"], "here are two folders: /a/b and /a/c"),
        (["checkpoint.load=/a/c", "checkpoint.save=/a/b"], "here are two folders: /a/c and /a/b"),
    ],
)  # fmt: skip
def test_a_wrong_override_changes_nothing_and_names_the_nearest(overrides: list[str], words: str) -> None:
    recipe = gemma3_1b.finetune_recipe()
    with pytest.raises(OverrideError, match=words):
        apply(recipe, ["data.seq_length=7", *overrides], factories(), aliases=meaning)
    assert recipe == gemma3_1b.finetune_recipe()


def test_a_run_goes_on_in_its_own_folder() -> None:
    recipe = gemma3_1b.finetune_recipe()
    apply(recipe, ["checkpoint.save=/a/b", "checkpoint.load=/a/b/"], factories(), aliases=meaning)
    assert (recipe.log.dir, recipe.log.name, recipe.resume.resume_if_exists) == ("/a", "b", True)
    assert not gemma_models.gemma3_1b_pretrain_config().resume.resume_if_exists
