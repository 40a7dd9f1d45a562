"""What the recipes start from, and why each value is what it is.

The two anchors are Megatron-Bridge's Gemma recipes (recipes/gemma/h100/gemma2.py, gemma3.py, recipes/common.py) and
NeMo 2.0's (collections/llm/recipes/gemma2*.py, gemma3_1b.py, finetune_default.py). Where both agree, that is the value.

Memory is counted in bytes a parameter: training every weight in bf16 takes 18 (the weight 2, its gradient 4, the master
weight 4, Adam's moments 8; with the distributed optimizer the last 12 are shared by data- and context-parallel ranks),
and adapters on frozen weights take 2. So a recipe of every weight is 47 GB for Gemma 2 2B, 166 GB for 9B, 490 GB for
27B, and 18 GB for Gemma 3 1B, before activations. Bridge's counts of GPUs hold that on GPUs of 80 GB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """One way to train: lengths in tokens, batches in sequences, everything else in optimizer steps.

    Parallel sizes are for ``num_nodes`` x ``num_gpus_per_node`` GPUs; `on` makes them fit others.
    """

    max_steps: int
    seq_length: int
    global_batch_size: int
    micro_batch_size: int
    lr: float
    min_lr: float
    warmup_steps: int
    adam_beta2: float
    eval_every: int
    save_every: int
    seed: int
    # Full training shares its optimizer out, and hides that traffic behind computation; both anchors do for what they
    # pretrain and for every weight (Bridge leaves the overlap out of Gemma 2's pretraining, NeMo has it: it is only
    # ever faster). Adapters are too few for either.
    distributed_optimizer: bool
    packed_global_batch_size: int | None = None
    adapter_dim: int | None = None
    adapter_alpha: float | None = None
    dora_alpha: float | None = None
    num_nodes: int = 1
    num_gpus_per_node: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context_parallel: int = 1

    def on(self, num_nodes: int | None, num_gpus_per_node: int | None) -> Defaults:
        """The same on these GPUs (None: its own): of each parallel size, the largest part that divides them.

        Tensor parallelism, which talks most, stays within a node.
        """
        nodes = self.num_nodes if num_nodes is None else num_nodes
        gpus = self.num_gpus_per_node if num_gpus_per_node is None else num_gpus_per_node
        tensor = gcd(self.tensor_parallel, gpus)
        pipeline = gcd(self.pipeline_parallel, nodes * gpus // tensor)
        return replace(
            self,
            num_nodes=nodes,
            num_gpus_per_node=gpus,
            tensor_parallel=tensor,
            pipeline_parallel=pipeline,
            context_parallel=gcd(self.context_parallel, nodes * gpus // (tensor * pipeline)),
        )


Kind = Literal["pretrain", "finetune", "adapters"]
Rows = dict[Kind, Defaults]

_PRETRAIN = Defaults(
    max_steps=1_168_251,
    # Bridge trains at the model's full context, NeMo at 8192 to fit an 80 GB GPU; a recipe should fit, and the full
    # context is gemma3_1b_32k's.
    seq_length=8192,
    global_batch_size=512,
    micro_batch_size=1,
    lr=3e-4,
    min_lr=3e-5,
    warmup_steps=2000,
    adam_beta2=0.95,
    eval_every=2000,
    save_every=500,
    seed=1234,
    distributed_optimizer=True,
)
_FINETUNE = Defaults(
    # NeMo's length and warm-up; Bridge's 100 steps are a smoke test rather than a fine-tuning.
    max_steps=1000,
    seq_length=4096,
    # Bridge's; NeMo's 128 is for the larger models.
    global_batch_size=32,
    # NeMo's: a packed sequence holds many examples, and Bridge's 128 would see several thousand of them a step.
    packed_global_batch_size=8,
    micro_batch_size=1,
    lr=5e-6,
    min_lr=0.0,
    warmup_steps=50,
    # NeMo's, and Bridge's template's; Bridge's Gemma 2 has 0.95, which is for millions of steps.
    adam_beta2=0.98,
    eval_every=100,
    save_every=100,
    seed=5678,
    distributed_optimizer=True,
)
# Both anchors give the 1B adapters of rank 8 with twice that for alpha, a quarter of their usual rank.
_ADAPTERS = replace(_FINETUNE, lr=1e-4, distributed_optimizer=False, adapter_dim=8, adapter_alpha=16.0, dora_alpha=16.0)
_GEMMA3: Rows = {"pretrain": _PRETRAIN, "finetune": _FINETUNE, "adapters": _ADAPTERS}

# Gemma 2: both anchors train it at 4096 tokens, half of its context, two sequences at a time in batches of 32, and
# fine-tune at 2048 in batches of 128. The step counts disagree (Bridge 300,000, NeMo Gemma's own 1,168,251).
_PRETRAIN2 = replace(
    _PRETRAIN, seq_length=4096, global_batch_size=32, micro_batch_size=2, warmup_steps=500, eval_every=500
)
_FINETUNE2 = replace(_FINETUNE, seq_length=2048, global_batch_size=128)
_ADAPTERS2 = replace(
    _FINETUNE2, lr=1e-4, distributed_optimizer=False, adapter_dim=32, adapter_alpha=32.0, dora_alpha=64.0
)


def _spread(rows: Rows, gpus: dict[Kind, tuple[int, int]], layouts: dict[Kind, tuple[int, int]]) -> Rows:
    """The rows with GPUs (nodes, of each node) and parallel sizes (tensor, pipeline) of their own."""
    return {
        kind: replace(
            row,
            num_nodes=gpus[kind][0],
            num_gpus_per_node=gpus[kind][1],
            tensor_parallel=layouts[kind][0],
            pipeline_parallel=layouts[kind][1],
        )
        for kind, row in rows.items()
    }


def _long(rows: Rows, seq_length: int, context_parallel: int) -> Rows:
    """The rows at another length, on as many times the GPUs as each sequence is cut into parts.

    One sequence at a time, and no more tokens a step in pretraining than before.
    """
    return {
        kind: replace(
            row,
            seq_length=seq_length,
            micro_batch_size=1,
            global_batch_size=row.global_batch_size * row.seq_length // seq_length
            if kind == "pretrain"
            else row.global_batch_size,
            context_parallel=context_parallel,
            num_gpus_per_node=min(8, row.num_gpus_per_node * context_parallel),
            num_nodes=row.num_nodes * -(-row.num_gpus_per_node * context_parallel // 8),
        )
        for kind, row in rows.items()
    }


_GEMMA2: Rows = {"pretrain": _PRETRAIN2, "finetune": _FINETUNE2, "adapters": _ADAPTERS2}
_2B = _spread(
    _GEMMA2,
    # 47 GB and 20 GB of activations would just fit one GPU of 80 GB; both anchors cut the pretraining in two.
    {"pretrain": (1, 2), "finetune": (1, 1), "adapters": (1, 1)},
    {"pretrain": (2, 1), "finetune": (1, 1), "adapters": (1, 1)},
)
_9B = _spread(
    _GEMMA2,
    # 166 GB: 21 GB a GPU of eight, 42 GB of four. Frozen, 18 GB: one GPU.
    {"pretrain": (1, 8), "finetune": (1, 4), "adapters": (1, 1)},
    {"pretrain": (8, 1), "finetune": (4, 1), "adapters": (1, 1)},
)
_27B = _spread(
    _GEMMA2,
    # 490 GB: 31 GB a GPU of sixteen; 61 GB of eight, which leaves little for activations. Frozen, 14 GB of four.
    {"pretrain": (2, 8), "finetune": (2, 8), "adapters": (1, 4)},
    {"pretrain": (8, 2), "finetune": (8, 2), "adapters": (4, 1)},
)

RECIPES: dict[str, Rows] = {
    "gemma2_2b": _2B,
    "gemma2_9b": _9B,
    "gemma2_27b": _27B,
    "gemma3_270m": _GEMMA3,
    "gemma3_1b": _GEMMA3,
    # The whole context of each model, which no anchor cuts into parts. A GPU then has 4096 tokens of a sequence of
    # Gemma 2, as many as in pretraining, and 8192 of Gemma 3.
    "gemma2_2b_8k": _long(_2B, 8192, 2),
    "gemma2_9b_8k": _long(_9B, 8192, 2),
    "gemma2_27b_8k": _long(_27B, 8192, 2),
    "gemma3_270m_32k": _long(_GEMMA3, 32_768, 4),
    "gemma3_1b_32k": _long(_GEMMA3, 32_768, 4),
}
"""Every recipe's rows by its name: a size, and the length of its sequences where that is the model's whole context."""
