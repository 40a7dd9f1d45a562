"""Gemma as a Megatron GPT model."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    gather_from_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)

from gemma_models.modeling.config import GemmaTransformerConfig
from gemma_models.modeling.cores.local import softcap
from gemma_models.modeling.layers import layer_spec
from gemma_models.modeling.loss import vocabulary_loss
from gemma_models.modeling.rotary import DualRotaryEmbedding

_SPLIT = (ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding)


class GemmaModel(GPTModel):
    """One pipeline stage of a Gemma, or with ``vp_stage`` one of its chunks: scaled embeddings, Gemma's layers, capped
    logits over the tied embedding.

    Called with ``input_ids`` and ``position_ids``, int64 (b, s), it returns logits (b, s, vocab / TP), or with
    ``labels``, int64 (b, s), the loss of each token in nats, float32 (b, s). With ``loss_mask``, float32 (b, s), it is
    the sum of the losses times that, a float32 scalar, and no logits are made where it is 0. Rows have the same
    positions; with ``packed_seq_params``, a `PackedRow`, there is one row of documents that do not see each other.

    Under context parallelism s is this rank's share of the sequence, and ``position_ids`` say where it comes from.
    """

    config: GemmaTransformerConfig

    def __init__(
        self,
        config: GemmaTransformerConfig,
        *,
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
    ) -> None:
        gemma = config.gemma
        super().__init__(
            config,
            layer_spec(config, vp_stage),
            vocab_size=gemma.vocab_size,
            max_sequence_length=gemma.max_position_embeddings,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=True,
            position_embedding_type="rope",
            vp_stage=vp_stage,
        )
        self.rotary_pos_emb = DualRotaryEmbedding(
            gemma, use_cpu_initialization=config.use_cpu_initialization, cp_group=self.pg_collection.cp
        )
        # Rounded to the dtype of the weights before it multiplies: 50.5 and not 50.596 for 4B in bfloat16
        # (transformers, Gemma3TextScaledWordEmbedding; gemma2 does the same).
        self.embedding_scale = torch.tensor(gemma.hidden_size**0.5, dtype=config.params_dtype).item()
        if post_process and gemma.final_logit_softcapping is not None:
            cap = gemma.final_logit_softcapping
            # At the output layer, so that both the loss and the logits handed out are capped, on any number of
            # vocabulary shards.
            self.output_layer.register_forward_hook(lambda layer, args, out: (softcap(out[0], cap), *out[1:]))

    def _preprocess(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        decoder_input: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if self.pre_process and decoder_input is None:
            decoder_input = self.embedding(input_ids=input_ids, position_ids=position_ids) * self.embedding_scale
        hidden, tables, *others = super()._preprocess(input_ids, position_ids, decoder_input=decoder_input, **kwargs)
        if kwargs.get("inference_context") is None:  # which takes its positions out of the tables itself
            # Of one row: those of a packed one start again with each document, several have the same ones.
            tables = tables[:, position_ids[0]]
        return hidden, tables, *others

    def _postprocess(
        self,
        *,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None,
        loss_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if not self.post_process or labels is None or loss_mask is None:
            return super()._postprocess(hidden_states=hidden_states, labels=labels, loss_mask=loss_mask, **kwargs)
        # A weight that is still being gathered from the data-parallel ranks is waited for where its module is called,
        # which it is not: the loss makes the logits piece by piece.
        for wait in self.output_layer._forward_pre_hooks.values():
            wait(self.output_layer, (hidden_states,))
        if self.config.sequence_parallel:
            # Its gradient is summed over the ranks and scattered in one; what they have is their words' part of it.
            hidden_states = gather_from_sequence_parallel_region(hidden_states, group=self.pg_collection.tp)
        # Logits over 262,144 words are the dearest part of a small Gemma: only those that the loss asks for are made.
        # Chosen in the layout of the hidden states, (s, b, h), so that their gradient keeps it.
        hidden, wanted, weights = hidden_states, labels.t(), loss_mask.t()
        if self.config.kernels.graphs:  # how many there are must not depend on the batch
            hidden, wanted, weights = (tensor.flatten(0, 1) for tensor in (hidden, wanted, weights))
        else:
            counts = weights.bool()
            hidden, wanted, weights = hidden[counts], wanted[counts], weights[counts]
        weight = self.shared_embedding_or_output_weight()
        return vocabulary_loss(
            hidden,
            weight,
            wanted,
            weights,
            cap=self.config.gemma.final_logit_softcapping,
            group=self.pg_collection.tp,
            reduce=not self.config.sequence_parallel,
            fuse=self.config.kernels.fused,
            # Megatron waits for a gradient of every weight; where the embedding is here too, that one comes.
            at_once=self.config.vocabulary_at_once and self.pre_process and hasattr(weight, "main_grad"),
        )


def build_chunks(config: GemmaTransformerConfig) -> list[GemmaModel]:
    """Build what this rank has of the model, in the order of its layers: one chunk, or as many as a stage has."""
    count = config.virtual_pipeline_model_parallel_size
    return [build_model(config)] if count is None else [build_model(config, stage) for stage in range(count)]


def build_model(config: GemmaTransformerConfig, vp_stage: int | None = None) -> GemmaModel:
    """Build this rank's stage, or one chunk of it, with random weights; the process groups must stand."""
    model = GemmaModel(
        config,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        vp_stage=vp_stage,
    )
    # Megatron marks the weights that tensor parallelism splits, and takes the gradient's norm by these marks; 0.16 does
    # so only while it draws random weights.
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, _SPLIT) and weight is not None and not hasattr(weight, "tensor_model_parallel"):
            dim = 1 if isinstance(module, RowParallelLinear) else 0
            set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=dim, stride=1)
    return model
