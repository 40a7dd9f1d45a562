"""Which code computes what is dear: chosen once a run, from what is installed and what the model needs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Final, Literal

from gemma_models.architectures import GemmaConfig
from gemma_models.settings import AttentionCore, Trainer
from launcher.errors import LaunchError

PACKAGES: Final = {"te": "transformer_engine", "flash": "flash_attn"}
INSTALL: Final = {"te": "transformer-engine[pytorch]", "flash": "flash-attn"}


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """attention: the core of every layer. linear: whose matrix products. fp8_recipe: how what they multiply is scaled,
    where that is in FP8. fused: chains of elementwise operations are one kernel each. graphs: a step is recorded and
    replayed; what depends on values, as which logits are needed, cannot be in it.
    """

    attention: AttentionCore = "local"
    linear: Literal["local", "transformer_engine"] = "local"
    fp8_recipe: Literal["tensorwise", "blockwise"] | None = None
    fused: bool = False
    graphs: bool = False


PLAIN: Final = Kernels()
"""Plain torch: right everywhere, with a key-value cache too."""


def kernels_for(gemma: GemmaConfig, trainer: Trainer) -> Kernels:
    """Raises LaunchError for a core that is asked for and not there, or that cannot compute this model."""
    if trainer.accelerator == "cpu":
        if trainer.attention not in ("auto", "local"):
            raise LaunchError(
                f"trainer.attention is {trainer.attention!r}, which needs a GPU",
                hint="trainer.attention='auto'",
            )
        if trainer.transformer_impl != "local":
            raise LaunchError("Transformer Engine needs a GPU", hint="trainer.transformer_impl='local'")
        return PLAIN
    _check_linear(trainer)
    wanted = trainer.attention
    if wanted == "auto":
        wanted = next((core for core in ("te", "flash") if why_not(core, gemma, trainer) is None), "flex")
    elif (why := why_not(wanted, gemma, trainer)) is not None:
        raise LaunchError(f"trainer.attention is {wanted!r}, and {why}", hint="trainer.attention='auto'")
    return Kernels(
        attention=wanted,
        linear=trainer.transformer_impl,
        fp8_recipe=trainer.fp8_recipe,
        fused=trainer.fusion,
        graphs=trainer.cuda_graphs,
    )


def _check_linear(trainer: Trainer) -> None:
    if trainer.transformer_impl == "local":
        return
    if importlib.util.find_spec(PACKAGES["te"]) is None:
        raise LaunchError(
            "trainer.transformer_impl is 'transformer_engine', and transformer_engine is not installed",
            hint=f"pip install '{INSTALL['te']}', or trainer.transformer_impl='local'",
        )
    if trainer.fp8_recipe is not None:
        import torch

        major, minor = torch.cuda.get_device_capability()
        if (major, minor) < (8, 9):
            raise LaunchError(
                f"trainer.fp8_recipe is set, and this GPU, of compute capability {major}.{minor}, has no FP8: 8.9 has",
                hint="trainer.fp8_recipe=None",
            )


def why_not(core: AttentionCore, gemma: GemmaConfig, trainer: Trainer) -> str | None:
    """What keeps a core from computing this model here, if anything does."""
    package = PACKAGES.get(core)
    if package is None:
        return None
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed: pip install '{INSTALL[core]}'"
    if trainer.precision == "fp32":
        return "it computes in bfloat16 alone, where trainer.precision is 'fp32'"
    if core == "te" and gemma.attn_logit_softcapping is not None:
        return "Transformer Engine has no cap on attention scores, which this model needs"
    return None
