"""One table between Hugging Face's and Megatron's names for the same weights, read in both directions.

Megatron fuses what Hugging Face keeps apart: query, key and value into ``linear_qkv``, gate and up into ``linear_fc1``.
Norm weights are gamma - 1 on both sides and are copied as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from gemma_models.architectures import GemmaConfig

Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Rule:
    """One Megatron tensor, the Hugging Face tensors it holds, and how to go between them.

    ``parallel_dim`` is the dimension that tensor parallelism splits (None: every rank holds it all), of each of
    ``parts`` equal blocks, so that a rank of a gated layer holds ``[gate_i; up_i]``.
    """

    megatron: str
    hf: tuple[str, ...]
    join: Callable[[Tensors, GemmaConfig], torch.Tensor] = lambda tensors, gemma: tensors[0]
    split: Callable[[torch.Tensor, GemmaConfig], Tensors] = lambda tensor, gemma: [tensor]
    parallel_dim: int | None = None
    parts: int = 1

    def shard(self, tensor: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """This tensor-parallel rank's piece of the full Megatron tensor."""
        if self.parallel_dim is None or size == 1:
            return tensor
        blocks = tensor.chunk(self.parts, dim=self.parallel_dim)
        return torch.cat([block.chunk(size, dim=self.parallel_dim)[rank] for block in blocks], dim=self.parallel_dim)

    def hf_names(self, layer: int | None) -> tuple[str, ...]:
        return tuple(name.replace("*", str(layer)) for name in self.hf)


def _join_qkv(tensors: Tensors, gemma: GemmaConfig) -> torch.Tensor:
    """(q, k, v) -> for each group its query heads, then its key, then its value: Megatron's order of rows."""
    wide = tensors[0].shape[1:]
    q, k, v = (tensor.reshape(gemma.num_query_groups, -1, *wide) for tensor in tensors)
    return torch.cat([q, k, v], dim=1).flatten(0, 1)


def _split_qkv(tensor: torch.Tensor, gemma: GemmaConfig) -> Tensors:
    heads = gemma.num_attention_heads // gemma.num_query_groups
    rows = [heads * gemma.kv_channels, gemma.kv_channels, gemma.kv_channels]
    grouped = tensor.unflatten(0, (gemma.num_query_groups, sum(rows)))
    return [part.flatten(0, 1) for part in grouped.split(rows, dim=1)]


_COMMON = (
    Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), parallel_dim=0),
    Rule("decoder.final_layernorm.weight", ("model.norm.weight",)),
    Rule("decoder.layers.*.input_layernorm.weight", ("model.layers.*.input_layernorm.weight",)),
    Rule(
        "decoder.layers.*.self_attention.linear_qkv.weight",
        tuple(f"model.layers.*.self_attn.{part}_proj.weight" for part in "qkv"),
        _join_qkv,
        _split_qkv,
        parallel_dim=0,
    ),
    Rule(
        "decoder.layers.*.self_attention.linear_proj.weight",
        ("model.layers.*.self_attn.o_proj.weight",),
        parallel_dim=1,
    ),
    Rule(
        "decoder.layers.*.self_attn_bda.post_layernorm.weight",
        ("model.layers.*.post_attention_layernorm.weight",),
    ),
    Rule("decoder.layers.*.pre_mlp_layernorm.weight", ("model.layers.*.pre_feedforward_layernorm.weight",)),
    Rule(
        "decoder.layers.*.mlp.linear_fc1.weight",
        ("model.layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.up_proj.weight"),
        lambda tensors, gemma: torch.cat(tensors),
        lambda tensor, gemma: list(tensor.chunk(2)),
        parallel_dim=0,
        parts=2,
    ),
    Rule("decoder.layers.*.mlp.linear_fc2.weight", ("model.layers.*.mlp.down_proj.weight",), parallel_dim=1),
    Rule("decoder.layers.*.mlp_bda.post_layernorm.weight", ("model.layers.*.post_feedforward_layernorm.weight",)),
)
_QK_NORMS = (
    Rule("decoder.layers.*.self_attention.q_layernorm.weight", ("model.layers.*.self_attn.q_norm.weight",)),
    Rule("decoder.layers.*.self_attention.k_layernorm.weight", ("model.layers.*.self_attn.k_norm.weight",)),
)


def rules(gemma: GemmaConfig) -> dict[str, Rule]:
    """The table for this model, by Megatron name with ``*`` for the layer."""
    return {rule.megatron: rule for rule in (*_COMMON, *(_QK_NORMS if gemma.qk_layernorm else ()))}


def global_name(local_name: str, layer_offset: int) -> tuple[str, int | None]:
    """A parameter's row in the table and its layer in the whole model (from 0), from its name on a pipeline stage.

    The last stage's output layer is the embedding again.
    """
    if local_name == "output_layer.weight":
        return "embedding.word_embeddings.weight", None
    match = re.match(r"decoder\.layers\.(\d+)\.", local_name)
    if match is None:
        return local_name, None
    layer = int(match[1]) + layer_offset
    return local_name.replace(f".layers.{match[1]}.", ".layers.*.", 1), layer


def megatron_tensors(gemma: GemmaConfig) -> Iterator[tuple[str, Rule, int | None]]:
    """Every tensor of this model in Megatron's names, with its row of the table and its layer, in the layers' order."""
    table = rules(gemma)
    once = [rule for rule in table.values() if "*" not in rule.megatron]
    yield from ((rule.megatron, rule, None) for rule in once[:1])
    for layer in range(gemma.num_layers):
        for rule in table.values():
            if "*" in rule.megatron:
                yield rule.megatron.replace("*", str(layer)), rule, layer
    yield from ((rule.megatron, rule, None) for rule in once[1:])


def hf_shapes(gemma: GemmaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a Hugging Face checkpoint of this model holds, and its shape, in the layers' order."""
    hidden, ffn, head = gemma.hidden_size, gemma.ffn_hidden_size, gemma.kv_channels
    queries, keys = gemma.num_attention_heads * head, gemma.num_query_groups * head
    shapes = {
        "embed_tokens": (gemma.vocab_size, hidden),
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "q_norm": (head,),
        "k_norm": (head,),
        "gate_proj": (ffn, hidden),
        "up_proj": (ffn, hidden),
        "down_proj": (hidden, ffn),
    }
    names = [name for _, rule, layer in megatron_tensors(gemma) for name in rule.hf_names(layer)]
    return {name: shapes.get(name.split(".")[-2], (hidden,)) for name in names}
