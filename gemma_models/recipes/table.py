"""What the recipes start from, and why each value is what it is.

The two anchors are Megatron-Bridge's Gemma recipes (recipes/gemma/h100/gemma3.py, recipes/common.py) and NeMo 2.0's
(collections/llm/recipes/gemma3_1b.py, finetune_default.py). Where both agree, that is the value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """One way to train: lengths in tokens, batches in sequences, everything else in optimizer steps."""

    max_steps: int
    seq_length: int
    global_batch_size: int
    lr: float
    min_lr: float
    warmup_steps: int
    adam_beta2: float
    eval_every: int
    save_every: int
    seed: int
    adapter_dim: int | None = None
    adapter_alpha: float | None = None


PRETRAIN = Defaults(
    max_steps=1_168_251,
    # Bridge trains at the model's full context, NeMo at 8192 to fit an 80 GB GPU; a recipe should fit.
    seq_length=8192,
    global_batch_size=512,
    lr=3e-4,
    min_lr=3e-5,
    warmup_steps=2000,
    adam_beta2=0.95,
    eval_every=2000,
    save_every=500,
    seed=1234,
)
FINETUNE = Defaults(
    # NeMo's length and warm-up; Bridge's 100 steps are a smoke test rather than a fine-tuning.
    max_steps=1000,
    seq_length=4096,
    # Bridge's; NeMo's 128 is for the larger models.
    global_batch_size=32,
    lr=5e-6,
    min_lr=0.0,
    warmup_steps=50,
    adam_beta2=0.98,
    eval_every=100,
    save_every=100,
    seed=5678,
)
# Both anchors give the 1B adapters of rank 8 with twice that for alpha, a quarter of their usual rank.
LORA = replace(FINETUNE, lr=1e-4, adapter_dim=8, adapter_alpha=16.0)

# Gemma 2: both anchors train it at 4096 tokens, half of its context, in batches of 32, and fine-tune at 2048 in
# batches of 128. Their tensor-parallel size of 2 for pretraining is left to trainer.strategy: one process must work.
GEMMA2_PRETRAIN = replace(PRETRAIN, seq_length=4096, global_batch_size=32, warmup_steps=500, eval_every=500)
GEMMA2_FINETUNE = replace(FINETUNE, seq_length=2048, global_batch_size=128)
GEMMA2_LORA = replace(GEMMA2_FINETUNE, lr=1e-4, adapter_dim=32, adapter_alpha=32.0)
