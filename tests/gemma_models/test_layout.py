"""Which layouts a model can have: asked before anything is queued, and answered with what to type instead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import launcher
from gemma_models import gemma3_1b
from gemma_models.architectures import ARCHITECTURES
from gemma_models.layout import check_recipe, check_training
from gemma_models.settings import MegatronStrategy, Trainer
from launcher.errors import ConfigError


def check(size: str, *, tp: int = 1, pp: int = 1, nodes: int = 1, devices: int = 1, ranks: int | None = None) -> None:
    strategy = MegatronStrategy(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
    trainer = Trainer(max_steps=1, num_nodes=nodes, devices=devices, strategy=strategy)
    check_training(ARCHITECTURES[size], trainer, 128, nodes * devices if ranks is None else ranks)


@pytest.mark.parametrize(
    ("size", "tp", "pp", "nodes", "devices"),
    [
        ("gemma2_2b", 2, 1, 1, 2),
        ("gemma2_9b", 8, 1, 1, 8),
        ("gemma2_27b", 8, 2, 2, 8),
        ("gemma3_270m", 4, 1, 1, 8),  # one group of keys, copied to each rank
        ("gemma3_1b", 2, 13, 13, 2),
        ("gemma3_12b", 4, 1, 1, 4),
        ("gemma3_27b", 8, 2, 4, 8),
    ],
)
def test_layouts_that_work(size: str, tp: int, pp: int, nodes: int, devices: int) -> None:
    check(size, tp=tp, pp=pp, nodes=nodes, devices=devices)


def test_a_size_that_does_not_divide_the_heads() -> None:
    with pytest.raises(ConfigError) as raised:
        check("gemma3_1b", tp=8, devices=8)
    assert str(raised.value).splitlines() == [
        "trainer.strategy.tensor_model_parallel_size = 8 does not divide model.num_attention_heads = 4",
        "  try: one of [1, 2, 4]",
    ]


def test_a_size_that_divides_neither_heads_nor_groups() -> None:
    model = replace(
        ARCHITECTURES["gemma3_27b"], num_attention_heads=24, num_query_groups=8, vocab_size=24, ffn_hidden_size=24
    )
    strategy = MegatronStrategy(tensor_model_parallel_size=12)
    with pytest.raises(ConfigError, match=r"12 neither divides model.num_query_groups = 8 nor is a multiple") as raised:
        check_training(model, Trainer(max_steps=1, devices=12, strategy=strategy), 128, 12)
    assert "try: one of [1, 2, 4, 8, 24]" in str(raised.value)


def test_a_vocabulary_that_does_not_divide() -> None:
    """262208 = 64 x 4097: with eight heads, 8 is fine; the feed-forward and the vocabulary are asked as well."""
    check("gemma3_4b", tp=8, devices=8)
    two = MegatronStrategy(tensor_model_parallel_size=2)
    odd = replace(ARCHITECTURES["gemma3_4b"], vocab_size=262_207)
    with pytest.raises(ConfigError, match=r"does not divide model.vocab_size = 262207"):
        check_training(odd, Trainer(max_steps=1, devices=2, strategy=two), 8, 2)


def test_stages_that_do_not_divide_the_layers() -> None:
    with pytest.raises(ConfigError, match=r"parallel_size = 4 does not divide model.num_layers = 26") as raised:
        check("gemma3_1b", pp=4, devices=4)
    assert "try: one of [1, 2, 13, 26]" in str(raised.value)


def test_processes_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"trainer.devices = 6 .* shared out into groups of 2 x 2") as raised:
        check("gemma3_1b", tp=2, pp=2, devices=6)
    assert "try: trainer.devices=4" in str(raised.value)


@pytest.mark.parametrize("field", ["tp", "pp", "nodes", "devices"])
def test_sizes_below_one(field: str) -> None:
    with pytest.raises(ConfigError, match="every parallel size must be at least 1"):
        check("gemma3_1b", **{field: 0})


def test_ranks_that_disagree() -> None:
    with pytest.raises(ConfigError, match="not the number of processes that run it, 16") as raised:
        check("gemma3_1b", nodes=2, devices=4, ranks=16)
    assert "try: trainer.devices=8, or an executor with ntasks_per_node=4" in str(raised.value)


def test_a_recipe_is_checked_before_it_is_queued(tmp_path: Path) -> None:
    """The executor's count against the recipe's: nothing starts, and the line that set the value is named."""
    recipe = gemma3_1b.pretrain_recipe(dir=tmp_path)
    recipe.trainer.devices = 3  # the line that the error names
    with pytest.raises(ConfigError, match=r"trainer.devices = 3 .*processes that run it, 2") as raised:
        launcher.run(recipe, executor=launcher.LocalExecutor(ntasks_per_node=2))
    lines = Path(__file__).read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if line.endswith("# the line that the error names"))
    recipe_line, executor_line = (raised.value.where or "").split(" and ")
    assert recipe_line.endswith(f"test_layout.py:{number}")
    assert executor_line.endswith(f"test_layout.py:{number + 2} (the executor)")
    assert list(tmp_path.rglob("task.json")) == []


def test_an_adapter_that_cannot_be_is_found_before_anything_runs() -> None:
    recipe = gemma3_1b.finetune_recipe(peft_scheme="lora")
    recipe.data.train_path, recipe.resume.restore_config.path = "train.jsonl", "weights"
    recipe.peft.dim = 0
    with pytest.raises(ConfigError, match=r"peft\.dim is 0; the rank of an adapter is at least 1") as caught:
        check_recipe(recipe, ranks=1)
    assert "test_layout.py" in (caught.value.where or "")
