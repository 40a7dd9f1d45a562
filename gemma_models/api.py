"""What one does with a Gemma: train, pretrain, fine-tune, validate, generate, import and export checkpoints.

Light: each function imports its engine when it is called, so that a recipe over it is built without torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from gemma_models.architectures import GemmaConfig
from gemma_models.checks import (
    check_dropout,
    check_micro_batches,
    check_recipe,
    check_saving,
    check_schedule,
    check_training,
    check_validation,
)
from gemma_models.data import DataModule
from gemma_models.layout import check_generate
from gemma_models.settings import (
    CHECKPOINTS,
    SAVE_DIR,
    AutoResume,
    Logger,
    LoRA,
    MegatronOptimizer,
    MegatronStrategy,
    Trainer,
)
from launcher.checks import checked_by, keeps
from launcher.errors import ConfigError

if TYPE_CHECKING:
    from gemma_models.training.fit import TrainingResult
    from gemma_models.training.validation import ValidationResult

Accelerator = Literal["gpu", "cpu"]
Precision = Literal["bf16", "fp32"]

_ONE_PROCESS = MegatronStrategy()
_WEIGHTS_HINT = 'recipe.resume.restore_config.path = "FOLDER", a Megatron or Hugging Face checkpoint'


@checked_by(check_recipe)
@keeps("log.dir", variable=SAVE_DIR, otherwise=CHECKPOINTS)
def train(
    model: GemmaConfig,
    data: DataModule,
    trainer: Trainer,
    log: Logger,
    resume: AutoResume,
    optim: MegatronOptimizer,
    peft: LoRA | None = None,
    tokenizer: str = "data",
) -> TrainingResult:
    """Train a Gemma in this process, which is the whole run or, under an executor, one rank of it.

    ``tokenizer`` is a Hugging Face folder, or "data": the one that travels with the weights the data is for.
    Raises LaunchError and its family for settings, data and checkpoints that cannot be used.
    """
    from gemma_models.training.fit import fit

    if peft is not None and resume.restore_config is None:
        raise ConfigError(
            "peft puts adapters on pretrained weights, and resume.restore_config is not set", hint=_WEIGHTS_HINT
        )
    check_training(model, trainer, data.seq_length, int(os.environ.get("WORLD_SIZE", "1")))
    check_micro_batches(trainer, data)
    check_schedule(optim, trainer.max_steps)
    check_saving(log, trainer)
    check_dropout(trainer, peft)
    return fit(model, data, trainer, optim, log, resume, peft, tokenizer)


@checked_by(check_recipe)
@keeps("log.dir", variable=SAVE_DIR, otherwise=CHECKPOINTS)
def pretrain(
    model: GemmaConfig,
    data: DataModule,
    trainer: Trainer,
    log: Logger,
    resume: AutoResume,
    optim: MegatronOptimizer,
    tokenizer: str = "data",
) -> TrainingResult:
    """Train the whole model from random weights, or from those of ``resume.restore_config``. See `train`."""
    return train(model, data, trainer, log, resume, optim, None, tokenizer)


@checked_by(check_recipe)
@keeps("log.dir", variable=SAVE_DIR, otherwise=CHECKPOINTS)
def finetune(
    model: GemmaConfig,
    data: DataModule,
    trainer: Trainer,
    log: Logger,
    resume: AutoResume,
    optim: MegatronOptimizer,
    peft: LoRA | None = None,
    tokenizer: str = "data",
) -> TrainingResult:
    """Train pretrained weights further, all of them or adapters on them. See `train`.

    Raises ConfigError without weights to start from.
    """
    if resume.restore_config is None:
        raise ConfigError(
            "fine-tuning starts from pretrained weights, and resume.restore_config is not set",
            hint=_WEIGHTS_HINT,
        )
    return train(model, data, trainer, log, resume, optim, peft, tokenizer)


@checked_by(check_validation)
def validate(
    model: GemmaConfig,
    data: DataModule,
    trainer: Trainer,
    log: Logger,
    resume: AutoResume,
    optim: MegatronOptimizer | None = None,
    peft: LoRA | None = None,
    tokenizer: str = "data",
) -> ValidationResult:
    """The loss of a checkpoint on the validation data, in nats a token, over every process as `train` has them.

    The checkpoint is ``resume.restore_config.path``, or the newest of the run in ``log.dir/log.name`` with
    ``resume.resume_if_exists``; where it holds adapters, they are loaded with it. ``optim`` and ``peft`` are there so
    that a training recipe can be validated as it is; nothing is trained.
    Raises LaunchError and its family for settings, data and checkpoints that cannot be used.
    """
    from gemma_models.training.validation import measure

    check_training(model, trainer, data.seq_length, int(os.environ.get("WORLD_SIZE", "1")))
    return measure(model, data, trainer, log, resume, tokenizer)


@keeps("output")
def import_checkpoint(source: str | Path, output: str | Path | None = None, base: str | Path | None = None) -> Path:
    """Turn a Hugging Face checkpoint into a Megatron checkpoint, in the weights' own dtype; the folder that it is in.

    ``source`` is ``hf://google/gemma-3-1b-it`` (a revision after ``@``), which is fetched first, or a folder. Without
    an ``output`` it goes where ``nemo://google/gemma-3-1b-it`` finds it: by the source's name, or by the folder's,
    in models/ of $NEMO_CACHE_DIR or of $GEMMA_LAUNCHER_HOME. An adapter of peft's becomes a checkpoint of adapters;
    ``base`` names the weights that it stands on, where it does not, or these have moved.
    Raises CheckpointError where the source is not a whole Gemma text checkpoint, ``output`` exists, or this is not the
    first rank of a run.
    """
    from gemma_models.conversion.checkpoints import import_hf

    return import_hf(source, output, base)


@keeps("output")
def export_checkpoint(
    source: str | Path, output: str | Path, base: str | Path | None = None, adapter: bool = False
) -> Path:
    """Turn a Megatron checkpoint into a Hugging Face folder at ``output``; adapters are merged into their base.

    ``source`` is a folder, or a ``nemo://`` name. ``base`` names the weights that adapters stand on, where they have
    moved since training. With ``adapter`` the adapters alone are written, as Hugging Face's peft reads them.
    Raises CheckpointError where the source is no checkpoint, its base is not found, or ``output`` exists.
    """
    from gemma_models.conversion.checkpoints import export_hf, export_peft

    target = Path(output).expanduser()
    return export_peft(source, target) if adapter else export_hf(source, target, base)


import_ckpt, export_ckpt = import_checkpoint, export_checkpoint
"""As NeMo and Megatron-Bridge call them."""


@keeps("output")
def preprocess(
    source: str | Path | list[str],
    output: str | Path,
    tokenizer: str | Path,
    key: str = "text",
    add_bos: bool = True,
    add_eos: bool = True,
    workers: int | None = None,
) -> Path:
    """Turn text into the tokens that `gemma_models.data.IndexedData` trains on: ``output``.bin and ``output``.idx.

    ``source`` is a file or several, read in their order: in .jsonl (or .json) a line is an object whose ``key`` is a
    document's text; in any other file a line is a document; empty lines are skipped; a file may be compressed (.gz).
    ``tokenizer`` is a Hugging Face folder. Gemma's documents begin with <bos>; <eos> ends them. A text that spells a
    control token is data. ``workers`` processes encode, by default one for each CPU.
    Raises DataError, with file and line, for what is no text, and where ``output`` exists or cannot be written.
    """
    from gemma_models.conversion.assets import load_tokenizer
    from gemma_models.data.preprocess import How, preprocess_files

    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise ConfigError(f"workers is {workers}; it must be at least 1")
    sources = [Path(path).expanduser() for path in (source if isinstance(source, list) else [source])]
    if not sources:
        raise ConfigError("source is an empty list", hint="source=FILE.jsonl")
    how = How(tokenizer=load_tokenizer(Path(tokenizer).expanduser()), key=key, add_bos=add_bos, add_eos=add_eos)
    return preprocess_files(sources, Path(output).expanduser(), how, workers)


@checked_by(check_generate)
def generate(
    path: str | Path,
    prompts: list[str],
    *,
    chat: bool = False,
    max_new_tokens: int = 64,
    stop: list[str] | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    accelerator: Accelerator = "gpu",
    precision: Precision = "bf16",
    strategy: MegatronStrategy = _ONE_PROCESS,
) -> list[str]:
    """Continue each prompt with the model at ``path``, a folder or a name, of Hugging Face's format or Megatron's; with
    its adapters, where it has some.

    With ``chat`` a prompt is a user's turn and the continuation the model's answer. ``temperature`` 0 is greedy; above,
    a token is drawn from the ``top_k`` likeliest (0: all), of these from those that make up ``top_p``. A text ends
    before the first of the ``stop`` texts. ``batch_size`` prompts are read at once. ``strategy`` shares the model out
    over tensor- and pipeline-parallel processes, which all call this.
    Raises CheckpointError for a folder that holds no Gemma, ConfigError for settings out of range.
    """
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ConfigError(f"prompts is {prompts!r}; it must be a list of texts", hint=f"prompts=[{str(prompts)!r}]")
    for name, value, choices in (("accelerator", accelerator, Accelerator), ("precision", precision, Precision)):
        if value not in get_args(choices):
            raise ConfigError(f"{name} is {value!r}", hint=" or ".join(map(repr, get_args(choices))))
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    if isinstance(stop, str) or not all(stop or []):
        raise ConfigError(f"stop is {stop!r}; it must be a list of texts that are not empty", hint="stop=['\\n\\n']")
    from gemma_models.generation.generate import generate_texts
    from gemma_models.generation.sampling import Sampling

    return generate_texts(
        path,
        prompts,
        chat=chat,
        max_new_tokens=max_new_tokens,
        stop=stop or [],
        batch_size=batch_size,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
        accelerator=accelerator,
        precision=precision,
        strategy=strategy,
    )
