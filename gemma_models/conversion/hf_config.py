"""Between Hugging Face's config.json and the numbers of a Gemma."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemma_models.architectures import GemmaConfig
from launcher.errors import CheckpointError

_FAMILIES = {"Gemma2ForCausalLM": "gemma2", "Gemma3ForCausalLM": "gemma3"}
# What every Gemma of these has, said or not; with another value, the same weights are another function.
_ALWAYS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "use_bidirectional_attention": False,
    "tie_word_embeddings": True,
}


def read_hf_config(folder: Path) -> GemmaConfig:
    """The architecture of the Hugging Face model in ``folder``; raises CheckpointError unless it is a Gemma text model.

    Reads the rope settings of transformers 4 (``rope_theta``, ``rope_local_base_freq``, ``rope_scaling``) and of
    transformers 5 (``rope_parameters`` by kind of layer).
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds no config.json" if folder.is_dir() else f"the folder {folder} does not exist",
            hint="name the folder of a Hugging Face Gemma checkpoint, or the checkpoints/step_N of a run",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}", hint="fetch the checkpoint again") from None
    architectures = config.get("architectures") if isinstance(config, dict) else None
    family = _FAMILIES.get(architectures[0]) if architectures else None
    if family is None:
        raise CheckpointError(
            f"{path} describes {architectures or 'no architecture'}, not a Gemma text model",
            hint=f"use a checkpoint of one of {', '.join(_FAMILIES)}",
        )
    try:
        return _gemma_config(family, config)
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}", hint="fetch the checkpoint again") from None
    except TypeError as error:
        raise CheckpointError(
            f"{path} has a value of the wrong type: {error}", hint="fetch the checkpoint again"
        ) from None


def _gemma_config(family: str, config: dict[str, Any]) -> GemmaConfig:
    for name, value in _ALWAYS.items():
        if config.get(name) not in (None, value):
            raise CheckpointError(f"config.json has {name} = {config[name]!r}, and every {family} has {value!r}")
    rope = _rope(family, config)
    pattern = (
        2 if family == "gemma2" else config.get("sliding_window_pattern") or config.get("_sliding_window_pattern", 6)
    )
    gemma = GemmaConfig(
        family=family,  # type: ignore[arg-type]
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=config["num_attention_heads"],
        num_query_groups=config["num_key_value_heads"],
        kv_channels=config["head_dim"],
        vocab_size=config["vocab_size"],
        max_position_embeddings=config["max_position_embeddings"],
        query_pre_attn_scalar=config["query_pre_attn_scalar"],
        sliding_window=config["sliding_window"],
        sliding_window_pattern=pattern,
        attn_logit_softcapping=config.get("attn_logit_softcapping"),
        final_logit_softcapping=config.get("final_logit_softcapping"),
        qk_layernorm=family == "gemma3",
        layernorm_epsilon=config["rms_norm_eps"],
        init_method_std=config.get("initializer_range", 0.02),
        **rope,
    )
    _check_layer_types(gemma, config.get("layer_types"))
    return gemma


def _rope(family: str, config: dict[str, Any]) -> dict[str, float]:
    parameters = config.get("rope_parameters") or {}
    if "full_attention" in parameters:
        everywhere, windowed = parameters["full_attention"], parameters["sliding_attention"]
    elif parameters:  # Gemma 2 in transformers 5: one table for all layers
        everywhere = windowed = parameters
    else:
        scaling = config.get("rope_scaling") or {}
        everywhere = {"rope_theta": config["rope_theta"], **scaling}
        windowed = {"rope_theta": config.get("rope_local_base_freq", config["rope_theta"])}
    kinds = [table.get("rope_type", table.get("type", "default")) for table in (everywhere, windowed)]
    scalable = ("default", "linear") if family == "gemma3" else ("default",)
    if kinds[0] not in scalable or kinds[1] != "default":
        raise CheckpointError(
            f"config.json asks for rope scaling {kinds[0]!r}, {kinds[1]!r} in local layers; {family} has "
            f"{' or '.join(map(repr, scalable))}, and 'default' in local layers"
        )
    return {
        "rope_theta": everywhere["rope_theta"],
        "rope_local_base_freq": windowed["rope_theta"],
        "rope_scaling_factor": everywhere.get("factor", 1.0) if kinds[0] == "linear" else 1.0,
    }


def _check_layer_types(gemma: GemmaConfig, layer_types: list[str] | None) -> None:
    expected = [
        "sliding_attention" if gemma.is_local(layer + 1) else "full_attention" for layer in range(gemma.num_layers)
    ]
    if layer_types is not None and layer_types != expected:
        raise CheckpointError(
            f"config.json's layer_types do not repeat every {gemma.sliding_window_pattern} layers",
            hint="only Gemma's own pattern of local and global layers is supported",
        )


def check_architecture(found: GemmaConfig, expected: GemmaConfig, folder: Path) -> None:
    """Raises CheckpointError where the weights in ``folder`` are of another model than ``expected``."""
    # How positions beyond the pretraining length are read is for the recipe to say; the weights fit all the same.
    if replace(found, max_position_embeddings=expected.max_position_embeddings) != expected:
        differing = ", ".join(
            f"{name} {getattr(found, name)} there, {getattr(expected, name)} in the recipe"
            for name in vars(expected)
            if getattr(found, name) != getattr(expected, name)
        )
        raise CheckpointError(f"{folder} is of another model than the recipe's: {differing}")


def hf_config(gemma: GemmaConfig) -> Any:
    """The transformers configuration object of this architecture, for a model that never had a config.json."""
    from transformers import Gemma2Config, Gemma3TextConfig

    common = {
        "num_hidden_layers": gemma.num_layers,
        "hidden_size": gemma.hidden_size,
        "intermediate_size": gemma.ffn_hidden_size,
        "num_attention_heads": gemma.num_attention_heads,
        "num_key_value_heads": gemma.num_query_groups,
        "head_dim": gemma.kv_channels,
        "vocab_size": gemma.vocab_size,
        "max_position_embeddings": gemma.max_position_embeddings,
        "query_pre_attn_scalar": gemma.query_pre_attn_scalar,
        "sliding_window": gemma.sliding_window,
        "rms_norm_eps": gemma.layernorm_epsilon,
        "initializer_range": gemma.init_method_std,
        "attn_logit_softcapping": gemma.attn_logit_softcapping,
        "final_logit_softcapping": gemma.final_logit_softcapping,
        "layer_types": [
            "sliding_attention" if gemma.is_local(layer + 1) else "full_attention" for layer in range(gemma.num_layers)
        ],
        "tie_word_embeddings": True,
    }
    if gemma.family == "gemma2":
        rope = {"rope_type": "default", "rope_theta": gemma.rope_theta}
        return Gemma2Config(**common, rope_parameters=rope, architectures=["Gemma2ForCausalLM"])
    everywhere: dict[str, Any] = {"rope_type": "default", "rope_theta": gemma.rope_theta}
    if gemma.rope_scaling_factor != 1.0:
        everywhere |= {"rope_type": "linear", "factor": gemma.rope_scaling_factor}
    windowed = {"rope_type": "default", "rope_theta": gemma.rope_local_base_freq}
    return Gemma3TextConfig(
        **common,
        sliding_window_pattern=gemma.sliding_window_pattern,
        rope_parameters={"full_attention": everywhere, "sliding_attention": windowed},
        architectures=["Gemma3ForCausalLM"],
    )
