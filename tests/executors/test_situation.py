"""What is read from a recipe and its executor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from sample_tasks import Trainer, train

import launcher as run
from executors.architecture import Architecture
from executors.situation import Situation, names_nvls, situation_of
from gemma_models import gemma2_2b, gemma3_1b

HOPPER = run.LocalExecutor(gpu="h100", nodes=2, ntasks_per_node=8)


def test_a_recipe() -> None:
    recipe = gemma2_2b.finetune_recipe(num_nodes=2, num_gpus_per_node=8)
    recipe.trainer.strategy.tensor_model_parallel_size = 2
    recipe.trainer.strategy.pipeline_model_parallel_size = 4
    found = situation_of(recipe, HOPPER)
    assert found == Situation(
        architecture=Architecture.HOPPER,
        nodes=2,
        devices=8,
        tp=2,
        pp=4,
        precision="bf16",
        family="gemma2",
        softcap=True,
        peft=True,
    )
    assert (found.ranks, found.dp) == (16, 2)
    assert found.describe() == "gemma2, adapters, bf16, TP2 PP4 CP1 DP2"
    whole = situation_of(gemma3_1b.pretrain_recipe(), run.LocalExecutor(gpu="b200"))
    assert whole is not None
    assert (whole.peft, whole.softcap, whole.family) == (False, False, "gemma3")


def test_what_gets_no_variables() -> None:
    on_cpu = gemma2_2b.finetune_recipe()
    on_cpu.trainer.accelerator = "cpu"
    plain: list[Any] = [
        on_cpu,
        run.Partial(print, "hello"),
        run.Partial(train, trainer=run.Config(Trainer)),
        run.Partial(own, trainer=run.Config(OwnTrainer, strategy=run.Config(DDP))),
        run.Script(inline="true"),
    ]
    assert [situation_of(task, HOPPER) for task in plain] == [None] * 5


@dataclass(kw_only=True)
class Strategy:
    """What Megatron can be told, more than the recipes of today say."""

    tensor_model_parallel_size: int = 1
    context_parallel_size: int = 2
    sequence_parallel: bool = True
    use_megatron_fsdp: bool = True
    ddp: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class DDP:
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = True
    nccl_ub: bool = True


@dataclass(kw_only=True)
class OwnTrainer:
    accelerator: str = "gpu"
    strategy: Strategy = field(default_factory=Strategy)
    ddp: DDP = field(default_factory=DDP)
    cuda_graph_impl: str = "local"
    deterministic_mode: bool = True
    attention_backend: str = "fused"


def own(trainer: OwnTrainer) -> None:
    """A training of one's own."""


def test_what_only_other_recipes_say_is_found_by_megatrons_names() -> None:
    found = situation_of(run.Partial(own, trainer=run.Config(OwnTrainer)), run.LocalExecutor(gpu="a100"))
    assert found == Situation(
        architecture=Architecture.AMPERE,
        cp=2,
        sequence_parallel=True,
        fsdp=True,
        overlap=True,
        user_buffers=True,
        cuda_graphs=True,
        deterministic=True,
        attention_backend="fused",
    )
    off = run.Partial(own, trainer=run.Config(OwnTrainer, cuda_graph_impl="none", deterministic_mode=False))
    off.trainer.strategy.use_megatron_fsdp = off.trainer.ddp.nccl_ub = False
    without = situation_of(off, run.LocalExecutor(gpu="a100"))
    assert without is not None
    assert not (without.fsdp or without.user_buffers or without.cuda_graphs or without.deterministic)


def test_in_this_process_the_counts_are_the_recipes() -> None:
    found = situation_of(gemma2_2b.finetune_recipe(num_gpus_per_node=4), None)
    assert found is not None
    assert (found.nodes, found.devices, found.container) == (1, 4, False)


@pytest.mark.parametrize(
    ("algorithms", "nvls"),
    [
        ("", False),
        ("Ring", False),
        ("NVLS", True),
        ("ring,nvlstree", True),
        ("^nvls", False),
        ("^tree,nvls", False),
        ("ring;allreduce:tree,nvls", True),
        ("allreduce:^nvls;broadcast:ring", False),
    ],
)
def test_nvls_is_asked_for_by_name(algorithms: str, nvls: bool) -> None:
    assert names_nvls(algorithms) is nvls
    assert Situation().with_given({"NCCL_ALGO": algorithms}).nvls is nvls
