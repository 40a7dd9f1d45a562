"""What a training run is made of, besides the model and the data: light dataclasses that a recipe fills in.

Names are Megatron's where Megatron has one. Every field is a plain value, so that a recipe can be shown, saved and
changed on a machine without torch.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from launcher.errors import ConfigError

SAVE_DIR = "SAVE_DIR"
CHECKPOINTS = "checkpoints"
AttentionCore = Literal["auto", "local", "te", "flash", "flex"]


@dataclass(kw_only=True)
class MegatronStrategy:
    """How the model is spread over processes; the data-parallel size is what remains of the world size.

    Pipeline stages share the layers as evenly as they can, or as ``pipeline_model_parallel_layout`` says: layers of
    each stage, with ``virtual_pipeline_model_parallel_size`` of the first chunk of every stage, then of the second.
    ``context_parallel_size`` splits each sequence; ``sequence_parallel`` splits it over the tensor-parallel ranks
    between their matrix products. ``use_distributed_optimizer`` keeps a part of master weights and moments on each
    data-parallel rank; gradients can then be reduced while they are computed, and weights gathered while they are used.
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    pipeline_model_parallel_layout: list[int] | None = None
    context_parallel_size: int = 1
    sequence_parallel: bool = False
    use_distributed_optimizer: bool = False
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False


@dataclass(kw_only=True)
class Profile:
    """What of a run is profiled: the steps from ``start_step`` to ``end_step``, both included, on these ``ranks``.

    "torch" leaves a trace for each rank in the run's folder, profile/rank_N_steps_A_B.json, for chrome://tracing or
    Perfetto. "nsys" tells a profiler in which the process already runs when to begin and when to stop: nsys profile
    --capture-range cudaProfilerApi.
    """

    kind: Literal["torch", "nsys"] = "torch"
    start_step: int = 10
    end_step: int = 12
    ranks: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        if not 1 <= self.start_step <= self.end_step:
            raise ConfigError(
                f"trainer.profile.start_step = {self.start_step} and end_step = {self.end_step}: steps are counted "
                "from 1, and the first one is not after the last"
            )


@dataclass(kw_only=True)
class Trainer:
    """How long, where and how precisely to train.

    ``max_steps`` counts optimizer steps from the start of the run, also across a resume. ``accelerator="cpu"`` is a
    choice to be made: without a GPU, ``"gpu"`` is an error. ``precision="bf16"`` keeps float32 master weights and
    reduces gradients in float32. ``limit_val_batches`` bounds one validation pass, in global batches.
    ``attention`` computes attention: "flash" (flash-attn), "te" (Transformer Engine, not for Gemma 2), "flex"
    (torch's FlexAttention), "local" (plain torch, with the whole matrix of scores); "auto" is the first that is
    installed and fits. ``fusion`` takes chains of elementwise operations in one kernel each, on a GPU, where Triton
    builds them with a C compiler.
    ``cuda_graphs`` records a step and replays it, so that the GPU does not wait for Python; logits of all tokens are
    made then, so it is for data whose every token counts, in one pipeline stage.
    ``transformer_impl`` has linear layers computed by Megatron-Core or Transformer Engine, with the same parameters;
    the latter can do it in FP8, ``fp8_recipe`` saying what shares a scale: a whole tensor, or a block of it.
    ``recompute_granularity`` saves memory by computing again in the backward pass what the forward pass had:
    attention's scores ("selective"), or whole layers ("full"). A loss above ``spike_factor`` times the median of the 64
    losses before it is reported, and training goes on; None reports none.
    """

    max_steps: int
    devices: int = 1
    num_nodes: int = 1
    accelerator: Literal["gpu", "cpu"] = "gpu"
    precision: Literal["bf16", "fp32"] = "bf16"
    attention: AttentionCore = "auto"
    fusion: bool = True
    cuda_graphs: bool = False
    transformer_impl: Literal["local", "transformer_engine"] = "local"
    fp8_recipe: Literal["tensorwise", "blockwise"] | None = None
    recompute_granularity: Literal["selective", "full"] | None = None
    val_check_interval: int | None = None
    limit_val_batches: int | None = None
    log_every_n_steps: int = 1
    spike_factor: float | None = 2.0
    profile: Profile | None = None
    seed: int = 1234
    strategy: MegatronStrategy = field(default_factory=MegatronStrategy)


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW, as Megatron's optimizer runs it. ``lr`` is the peak; ``clip_grad`` bounds the global gradient norm."""

    lr: float
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    clip_grad: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "adam_eps", "clip_grad"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise ConfigError(f"optim.config.{name} is {value}; it must be a number of 0 or more")
        if not self.adam_eps:
            raise ConfigError("optim.config.adam_eps is 0; what it keeps from being divided by 0 then is")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"optim.config.{name} is {getattr(self, name)}; it must be at least 0 and below 1")


@dataclass(kw_only=True)
class CosineAnnealing:
    """Linear warm-up over ``warmup_steps``, then a cosine to ``min_lr`` at ``decay_steps`` (None: at max_steps)."""

    warmup_steps: int = 0
    min_lr: float = 0.0
    decay_steps: int | None = None


@dataclass(kw_only=True)
class MegatronOptimizer:
    """The optimizer and its schedule."""

    config: OptimizerConfig
    lr_scheduler: CosineAnnealing = field(default_factory=CosineAnnealing)


@dataclass(kw_only=True)
class LoRA:
    """Low-rank adapters (arXiv:2106.09685) on the linear layers whose names match.

    ``target_modules`` holds Megatron module names (``linear_qkv``), or wildcards over full names
    (``*.layers.0.*.linear_qkv``). The adapter adds ``alpha / dim * B A x``; A starts Xavier-normal, B zero.
    """

    target_modules: list[str] = field(default_factory=lambda: ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"])
    dim: int = 32
    alpha: float = 32.0
    dropout: float = 0.0


@dataclass(kw_only=True)
class DoRA(LoRA):
    """Weight-decomposed adapters (arXiv:2402.09353): LoRA's direction, and a trained magnitude for each output.

    Its ``alpha`` is twice LoRA's, as both Megatron-Bridge and NeMo have it.
    """

    alpha: float = 64.0


@dataclass(kw_only=True)
class ModelCheckpoint:
    """When to save, and how many to keep: the newest ``save_last_k``, each ``every_n_train_steps`` apart, and the
    ``save_top_k`` of lowest validation loss among those whose step was validated.

    The last step of a run is always saved. ``every_n_train_steps=None`` saves that one only. With ``async_save``
    training goes on while a copy of the checkpoint, which takes that much of the machine's memory, is written.
    """

    every_n_train_steps: int | None = None
    save_last_k: int = 2
    save_top_k: int = 0
    async_save: bool = False

    def __post_init__(self) -> None:
        if self.save_top_k < 0:
            raise ConfigError(f"log.ckpt.save_top_k is {self.save_top_k}; it must be at least 0")
        for name in ("every_n_train_steps", "save_last_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"log.ckpt.{name} is {value}; it must be at least 1")


@dataclass(kw_only=True)
class Wandb:
    """A run of Weights & Biases, which shows the metrics too; the key is WANDB_API_KEY's, and WANDB_MODE is honoured.

    ``name`` is the run's name there, log.name if it has no other. A run that is resumed goes on there as well.
    """

    project: str
    name: str | None = None
    entity: str | None = None


@dataclass(kw_only=True)
class Logger:
    """Where a run writes: ``dir / name`` holds its checkpoints, TensorBoard events (tensorboard/), what is left of a
    profile or a failure, and its metrics when no launcher keeps them.

    Without a ``dir`` it is the folder that SAVE_DIR names where the run is, else "checkpoints" in the current folder.
    """

    name: str
    dir: str | Path | None = None
    ckpt: ModelCheckpoint = field(default_factory=ModelCheckpoint)
    wandb: Wandb | None = None

    def folder(self) -> Path:
        return Path(self.dir or os.environ.get(SAVE_DIR) or CHECKPOINTS).expanduser() / self.name


@dataclass(kw_only=True)
class RestoreConfig:
    """Weights to start from: the folder of a Megatron checkpoint or of a Hugging Face model, or a name.

    ``hf://google/gemma-3-1b-pt`` is fetched from the Hugging Face hub, by one process of a node;
    ``nemo://google/gemma-3-1b-pt`` is what `import_checkpoint` made of it.
    """

    path: str | Path


@dataclass(kw_only=True)
class AutoResume:
    """Where a run starts.

    It continues from its own newest checkpoint when the same task of an experiment runs again (a retry, a requeue),
    or when ``resume_if_exists`` says so; else from ``restore_config``; else from random weights. Checkpoints of another
    run under the same name are refused, never continued by accident.
    """

    restore_config: RestoreConfig | None = None
    resume_if_exists: bool = False
