"""Megatron-Bridge's way in: a checkpoint of Hugging Face's as a Megatron model of one's own loop, and back.

    bridge = AutoBridge.from_hf_pretrained("hf://google/gemma-3-1b-pt")
    provider = bridge.to_megatron_provider()
    provider.tensor_model_parallel_size = 8
    provider.finalize()
    model = provider.provide_distributed_model()

Light until a model is provided or something is converted.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gemma_models.architectures import GemmaConfig
from gemma_models.checks import check_training
from gemma_models.settings import AttentionCore, MegatronStrategy, Trainer
from launcher.errors import CheckpointError, ConfigError, LaunchError, nearest


@dataclass(kw_only=True)
class GemmaProvider(MegatronStrategy, GemmaConfig):
    """A Gemma that is about to be built: its architecture and its layout, each a value that may still be changed.

    ``weights`` is the folder that it is filled from, of Hugging Face's format or Megatron's; None leaves them random.
    """

    weights: Path | None = None
    accelerator: Literal["gpu", "cpu"] = "gpu"
    precision: Literal["bf16", "fp32"] = "bf16"
    attention: AttentionCore = "auto"
    seed: int = 1234

    def __setattr__(self, name: str, value: Any) -> None:
        names = [field.name for field in dataclasses.fields(self)]
        if name not in names:
            raise ConfigError(f"a provider has no {name!r}", hint=nearest(name, names) or ", ".join(names))
        super().__setattr__(name, value)

    def finalize(self) -> None:
        """Check the values against each other and the processes that there are. Raises ConfigError."""
        self.__post_init__()
        try:
            gemma, trainer = self._parts()
            check_training(gemma, trainer, gemma.max_position_embeddings, trainer.devices)
        except ConfigError as error:
            error.message = _provided(error.message)
            error.hint = error.hint and _provided(error.hint)
            raise

    def provide_distributed_model(self, wrap_with_ddp: bool = True) -> list[Any]:
        """This rank's chunks of the model (one, without virtual stages), in their places, filled, for Megatron's
        schedules; wrapped for training, or only cast.

        Process groups are set up, unless they stand, and stay until the process ends.
        Raises LaunchError and its family for values that do not go together and weights of another model.
        """
        from gemma_models.modeling.config import transformer_config
        from gemma_models.modeling.kernels import kernels_for
        from gemma_models.modeling.model import build_chunks
        from gemma_models.settings import RestoreConfig
        from gemma_models.training.parallel import parallel_context
        from gemma_models.training.restore import load_base
        from gemma_models.training.steps import cast, wrap

        self.finalize()
        gemma, trainer = self._parts()
        stay = contextlib.ExitStack()
        device = stay.enter_context(parallel_context(trainer.strategy, accelerator=self.accelerator, seed=self.seed))
        atexit.register(stay.close)
        config = transformer_config(
            gemma,
            trainer.strategy,
            precision=self.precision,
            accelerator=self.accelerator,
            random_weights=self.weights is None,
            kernels=kernels_for(gemma, trainer),
        )
        chunks = build_chunks(config)
        if self.weights is not None:
            load_base(chunks, RestoreConfig(path=self.weights))
        chunks = [chunk.to(device) for chunk in chunks]
        return list(wrap(chunks, trainer.strategy) if wrap_with_ddp else cast(chunks))

    def _parts(self) -> tuple[GemmaConfig, Trainer]:
        """The same in the words of a recipe."""
        gemma = GemmaConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(GemmaConfig)})
        strategy = {field.name: getattr(self, field.name) for field in dataclasses.fields(MegatronStrategy)}
        trainer = Trainer(
            max_steps=1,
            devices=int(os.environ.get("WORLD_SIZE", "1")),
            accelerator=self.accelerator,
            precision=self.precision,
            attention=self.attention,
            seed=self.seed,
            strategy=MegatronStrategy(**strategy),
        )
        return gemma, trainer


class AutoBridge:
    """A checkpoint of Hugging Face's, on its way to Megatron and back."""

    def __init__(self, folder: Path, gemma: GemmaConfig) -> None:
        self.folder, self.gemma = folder, gemma

    @classmethod
    def from_hf_pretrained(cls, path: str | Path) -> AutoBridge:
        """``path`` is a folder, or a model of the hub, which is fetched: ``google/gemma-3-1b-pt``, with ``hf://`` or
        without. Raises CheckpointError where there is none, or none of a Gemma text model."""
        from gemma_models.conversion.hf_config import read_hf_config
        from gemma_models.conversion.sources import checkpoint_folder

        on_hub = str(path).count("/") == 1 and not Path(path).expanduser().exists()
        folder = checkpoint_folder(f"hf://{path}" if on_hub else path)
        return cls(folder, read_hf_config(folder))

    def to_megatron_provider(self, load_weights: bool = True) -> GemmaProvider:
        """What builds the model; ``precision`` is "bf16" until it is changed."""
        return GemmaProvider(**dataclasses.asdict(self.gemma), weights=self.folder if load_weights else None)

    def save_hf_pretrained(self, model: list[Any], path: str | Path) -> Path:
        """Write a provided model, as it is now, as a Hugging Face folder with this one's tokenizer; all ranks call it.

        Raises CheckpointError where ``path`` exists or cannot be written.
        """
        import torch.distributed as dist

        from gemma_models.conversion.checkpoints import export_hf, refuse_existing

        output = Path(path).expanduser()
        refuse_existing(output)
        between = output.with_name(f".{output.name}.megatron")
        if dist.get_rank() == 0:
            shutil.rmtree(between, ignore_errors=True)  # of a process that was killed here
        self.save_megatron_model(model, between)
        failure: list[tuple[str, str | None] | None] = [None]
        if dist.get_rank() == 0:
            try:
                export_hf(between, output, None)
            except LaunchError as error:
                failure = [(error.message, error.hint)]
            finally:
                shutil.rmtree(between)
        dist.broadcast_object_list(failure)  # the others wait for it, and must hear how it went
        if failure[0] is not None:
            message, hint = failure[0]
            raise CheckpointError(message, hint=hint)
        return output

    def save_megatron_model(self, model: list[Any], path: str | Path) -> Path:
        """Write a provided model, as it is now, as a checkpoint to start runs from; every rank calls it."""
        from gemma_models.training.checkpoints import CheckpointInfo, model_tensors
        from gemma_models.training.saving import write_checkpoint

        chunks = [_unwrapped(chunk) for chunk in model]
        config, target = chunks[0].config, Path(path).expanduser().absolute()
        info = CheckpointInfo(gemma=config.gemma, precision="bf16" if config.bf16 else "fp32")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(target, info, model_tensors(chunks, adapters=False), self.folder)
        return target

    @staticmethod
    def import_ckpt(hf_model_id: str | Path, megatron_path: str | Path | None = None) -> Path:
        """See `gemma_models.import_checkpoint`."""
        from gemma_models.api import import_checkpoint

        return import_checkpoint(hf_model_id, megatron_path)

    @staticmethod
    def export_ckpt(megatron_path: str | Path, hf_path: str | Path) -> Path:
        """See `gemma_models.export_checkpoint`."""
        from gemma_models.api import export_checkpoint

        return export_checkpoint(megatron_path, hf_path)


def _provided(text: str) -> str:
    """What is said of a recipe's values, of a provider's: its processes are those that there are."""
    text = re.sub(r"trainer\.devices = (\d+) x trainer\.num_nodes = 1\b", r"\1", text)
    text = re.sub(r"^trainer\.devices=(\d+)", r"\1 processes, as torchrun --nproc-per-node=\1 starts them", text)
    return text.replace("trainer.strategy.", "provider.").replace("model.", "provider.")


def _unwrapped(model: Any) -> Any:
    while hasattr(model, "module"):
        model = model.module
    return model
