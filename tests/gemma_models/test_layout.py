"""Which layouts a model can have: asked before anything is queued, and answered with what to type instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gemma_models import gemma3_1b
from gemma_models.architectures import ARCHITECTURES
from gemma_models.checks import check_recipe, check_training
from gemma_models.layout import check_generation, layers_of_chunks
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


@pytest.mark.parametrize(
    ("size", "pp", "vp", "expected"),
    [
        ("gemma3_27b", 4, None, [16, 16, 15, 15]),
        ("gemma3_1b", 4, None, [7, 7, 6, 6]),
        ("gemma3_27b", 4, 2, [8, 8, 8, 8, 8, 8, 7, 7]),
        ("gemma2_27b", 2, None, [23, 23]),
    ],
)
def test_stages_share_the_layers(size: str, pp: int, vp: int | None, expected: list[int]) -> None:
    strategy = MegatronStrategy(pipeline_model_parallel_size=pp, virtual_pipeline_model_parallel_size=vp)
    check_training(ARCHITECTURES[size], Trainer(max_steps=1, devices=pp, strategy=strategy), 128, pp)
    assert layers_of_chunks(ARCHITECTURES[size].num_layers, strategy) == expected


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "sequence parallel alone": (
        {"sequence_parallel": True},
        "trainer.strategy.sequence_parallel is set, and trainer.strategy.tensor_model_parallel_size is 1",
        "trainer.strategy.sequence_parallel=False",
    ),
    "a sequence that tensor-parallel ranks cannot share": (
        {"tensor_model_parallel_size": 4, "sequence_parallel": True, "seq_length": 130},
        "data.seq_length = 130 is no multiple of 4: trainer.strategy.sequence_parallel shares it out over 4",
        "data.seq_length=132",
    ),
    "a sequence that cannot be cut into chunks": (
        {"context_parallel_size": 4, "seq_length": 100},
        "data.seq_length = 100 is no multiple of 8: trainer.strategy.context_parallel_size = 4 takes it apart into 8",
        "data.seq_length=104",
    ),
    "both at once": (
        {"tensor_model_parallel_size": 4, "sequence_parallel": True, "context_parallel_size": 2, "seq_length": 100},
        "data.seq_length = 100 is no multiple of 8",
        "data.seq_length=104",
    ),
    "chunks on one stage": (
        {"virtual_pipeline_model_parallel_size": 2},
        "virtual_pipeline_model_parallel_size = 2 with trainer.strategy.pipeline_model_parallel_size = 1",
        "trainer.strategy.virtual_pipeline_model_parallel_size=None",
    ),
    "one chunk a stage": (
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 1},
        "virtual_pipeline_model_parallel_size = 1",
        "trainer.strategy.virtual_pipeline_model_parallel_size=None",
    ),
    "too few micro-batches for chunks": (
        {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2, "global_batch_size": 6},
        "data.global_batch_size = 6 makes 6 micro-batches a step",
        "data.global_batch_size=8",
    ),
    "a layout of another model": (
        {"pipeline_model_parallel_size": 4, "pipeline_model_parallel_layout": [7, 7, 7, 7]},
        "pipeline_model_parallel_layout = [7, 7, 7, 7] does not share out model.num_layers = 26 over 4 chunks",
        "trainer.strategy.pipeline_model_parallel_layout=[7, 7, 6, 6], or None",
    ),
    "a stage without layers": (
        {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": [26, 0]},
        "does not share out model.num_layers = 26 over 2 chunks, one layer each at least",
        "trainer.strategy.pipeline_model_parallel_layout=[13, 13]",
    ),
    "more stages than layers": (
        {"pipeline_model_parallel_size": 27},
        "trainer.strategy.pipeline_model_parallel_size = 27 makes 27 chunks of model.num_layers = 26",
        "at most 26 chunks",
    ),
    "weights gathered of no one": (
        {"overlap_param_gather": True, "overlap_grad_reduce": True, "use_distributed_optimizer": False},
        "overlap_param_gather is set, and trainer.strategy.use_distributed_optimizer is not",
        "trainer.strategy.use_distributed_optimizer=True",
    ),
    "weights gathered, gradients not reduced": (
        {"overlap_param_gather": True, "overlap_grad_reduce": False, "use_distributed_optimizer": True},
        "overlap_param_gather is set, and trainer.strategy.overlap_grad_reduce is not",
        "trainer.strategy.overlap_grad_reduce=True",
    ),
    "recorded steps on a processor that records none": (
        {"accelerator": "cpu", "cuda_graphs": True},
        "trainer.cuda_graphs is set, and trainer.accelerator is 'cpu'",
        "trainer.cuda_graphs=False",
    ),
    "recorded steps of several stages": (
        {"pipeline_model_parallel_size": 2, "cuda_graphs": True},
        "trainer.cuda_graphs is set, and trainer.strategy.pipeline_model_parallel_size is not 1",
        "trainer.cuda_graphs=False",
    ),
    "recorded steps of split sequences": (
        {"context_parallel_size": 2, "cuda_graphs": True},
        "trainer.cuda_graphs is set, and trainer.strategy.context_parallel_size is not 1",
        "trainer.cuda_graphs=False",
    ),
    "recorded steps whose gradients are reduced meanwhile": (
        {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "cuda_graphs": True},
        "trainer.cuda_graphs is set, and trainer.strategy.overlap_grad_reduce is not False",
        "trainer.cuda_graphs=False",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_by_name(name: str) -> None:
    values, message, hint = REFUSED[name]
    recipe = gemma3_1b.pretrain_recipe()
    recipe.data.seq_length, recipe.data.global_batch_size, recipe.data.micro_batch_size = 128, 8, 1
    for field, value in values.items():
        owner = next(part for part in (recipe.data, recipe.trainer.strategy, recipe.trainer) if hasattr(part, field))
        setattr(owner, field, value)
    strategy = recipe.trainer.strategy
    recipe.trainer.devices = (
        strategy.tensor_model_parallel_size * strategy.pipeline_model_parallel_size * strategy.context_parallel_size
    )
    with pytest.raises(ConfigError) as raised:
        check_recipe(recipe, ranks=recipe.trainer.devices)
    assert message in str(raised.value) and f"try: {hint}" in str(raised.value)
    assert "test_layout.py" in (raised.value.where or "")


@pytest.mark.parametrize("name", ["sequence_parallel", "context_parallel_size", "virtual_pipeline_model_parallel_size"])
def test_what_texts_are_not_generated_in(name: str) -> None:
    strategy = MegatronStrategy(tensor_model_parallel_size=2, **{name: 2})
    with pytest.raises(ConfigError, match=f"strategy.{name} = 2 is for training"):
        check_generation(strategy, ranks=2)


def test_processes_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"trainer.devices = 6 .* shared out into groups of 2 x 2") as raised:
        check("gemma3_1b", tp=2, pp=2, devices=6)
    assert "try: trainer.devices=4" in str(raised.value)
    with pytest.raises(ConfigError, match=r"trainer.devices = 3 x trainer.num_nodes = 2 processes") as raised:
        check("gemma3_1b", tp=2, pp=2, devices=3, nodes=2)
    assert str(raised.value).endswith("try: trainer.devices=2")


@pytest.mark.parametrize("field", ["tp", "pp", "nodes", "devices"])
def test_sizes_below_one(field: str) -> None:
    with pytest.raises(ConfigError, match="every parallel size must be at least 1"):
        check("gemma3_1b", **{field: 0})


def test_ranks_that_disagree() -> None:
    with pytest.raises(ConfigError, match="not the number of processes that run it, 16") as raised:
        check("gemma3_1b", nodes=2, devices=4, ranks=16)
    assert "try: trainer.devices=8, or an executor with ntasks_per_node=4" in str(raised.value)
