"""Our Gemma computes what Hugging Face's does; each way in which today's tools got it wrong is seen to fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gemma_models.architectures import ARCHITECTURES
from gemma_models.conversion.hf_config import read_hf_config
from gemma_models.modeling.cores.local import LocalAttention
from gemma_models.modeling.model import GemmaModel
from tests.gemma_models.tiny import WINDOW, hf_model, logits, our_model, tiny

TOLERANCE = 5e-4


def difference(model: GemmaModel, ids: torch.Tensor, expected: torch.Tensor) -> float:
    return (logits(model, ids) - expected).abs().max().item()


def cores(model: GemmaModel) -> list[LocalAttention]:
    return [module for module in model.modules() if isinstance(module, LocalAttention)]


def widen_window(model: GemmaModel) -> None:
    """The off-by-one of passing (W, 0) for a window of W tokens."""
    for core in cores(model):
        core.window = core.window and core.window + 1


def no_window(model: GemmaModel) -> None:
    for core in cores(model):
        core.window = None


def swap_local_and_global(model: GemmaModel) -> None:
    for core in cores(model):
        core.window = None if core.window else model.config.gemma.sliding_window


def scale_by_head_dimension(model: GemmaModel) -> None:
    """The scale of every size but the 27Bs."""
    for core in cores(model):
        core.scale = 256**-0.5


def no_attention_softcap(model: GemmaModel) -> None:
    for core in cores(model):
        core.cap = None


def no_final_softcap(model: GemmaModel) -> None:
    model.output_layer._forward_hooks.clear()


def one_rotary_base(model: GemmaModel) -> None:
    model.rotary_pos_emb.local_table = model.rotary_pos_emb.global_table


def unscaled_rotary(model: GemmaModel) -> None:
    model.rotary_pos_emb.global_table.seq_len_interpolation_factor = None


def plain_gamma(model: GemmaModel) -> None:
    """A converter that adds one to norm weights."""
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.add_(1.0)


def no_qk_norm(model: GemmaModel) -> None:
    for layer in model.decoder.layers:
        layer.self_attention.q_layernorm = layer.self_attention.k_layernorm = None


def unscaled_embedding(model: GemmaModel) -> None:
    model.embedding_scale = 1.0


Break = Callable[[GemmaModel], None]
BREAKS: dict[str, list[Break]] = {
    "gemma2_2b": [widen_window, no_window, swap_local_and_global, no_attention_softcap, no_final_softcap, plain_gamma],
    "gemma2_9b": [unscaled_embedding],
    "gemma2_27b": [scale_by_head_dimension],
    "gemma3_270m": [widen_window, no_window, swap_local_and_global, one_rotary_base, no_qk_norm],
    "gemma3_1b": [plain_gamma],
    "gemma3_4b": [unscaled_rotary],
    "gemma3_12b": [one_rotary_base],
    "gemma3_27b": [scale_by_head_dimension],
}


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_every_size_past_its_window(size: str, tmp_path: Path) -> None:
    reference = hf_model(tiny(size))
    reference.save_pretrained(tmp_path)
    ids = torch.randint(0, 256, (2, 3 * WINDOW), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(ids).logits
    assert expected.std() > 0.1, "logits that hardly vary would hide a difference"
    with our_model(tmp_path) as model:
        assert difference(model, ids, expected) <= TOLERANCE
        # At the edge itself: W tokens are all seen, the first of W + 1 is not seen by the last.
        for length in (WINDOW, WINDOW + 1):
            with torch.no_grad():
                edge = reference(ids[:, :length]).logits
            assert difference(model, ids[:, :length], edge) <= TOLERANCE
    for broken in BREAKS[size]:
        with our_model(tmp_path) as model:
            broken(model)
            assert difference(model, ids, expected) > 4 * TOLERANCE, f"{broken.__name__} went unseen"


def test_one_token_past_the_window_tells_an_off_by_one(tmp_path: Path) -> None:
    reference = hf_model(tiny("gemma3_1b"))
    reference.save_pretrained(tmp_path)
    ids = torch.randint(0, 256, (1, WINDOW + 1), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = reference(ids).logits
    with our_model(tmp_path) as model:
        widen_window(model)
        seen = (logits(model, ids) - expected).abs().amax(dim=(0, 2))
    assert seen[:WINDOW].max() <= TOLERANCE, "up to W tokens both windows are the same"
    assert seen[WINDOW] > 4 * TOLERANCE


def test_the_real_270m_at_700_tokens(hf_gemma3_270m: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert read_hf_config(hf_gemma3_270m) == ARCHITECTURES["gemma3_270m"]
    ids = torch.randint(0, 262_144, (1, 700), generator=torch.Generator().manual_seed(0))
    reference = AutoModelForCausalLM.from_pretrained(
        hf_gemma3_270m, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = reference(ids).logits
    with our_model(hf_gemma3_270m) as model:
        assert difference(model, ids, expected) <= TOLERANCE
        widen_window(model)
        assert difference(model, ids, expected) > 4 * TOLERANCE


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_the_bf16_embedding_is_scaled_bit_for_bit(size: str, tmp_path: Path) -> None:
    hidden_size = ARCHITECTURES[size].hidden_size
    gemma = replace(tiny(size), hidden_size=hidden_size, num_layers=1, num_attention_heads=1, num_query_groups=1)
    reference = hf_model(gemma).bfloat16()
    reference.save_pretrained(tmp_path)
    ids = torch.arange(256)[None]
    with torch.no_grad():
        expected = reference.model(ids, output_hidden_states=True).hidden_states[0]
    with our_model(tmp_path, "bf16") as model:
        ours, *_ = model._preprocess(ids, ids)
        unrounded = model.embedding(ids, ids) * hidden_size**0.5
    assert torch.equal(ours.transpose(0, 1), expected)
    rounding_matters = torch.tensor(hidden_size**0.5).bfloat16().item() != hidden_size**0.5
    assert torch.equal(unrounded.transpose(0, 1), expected) != rounding_matters


def test_the_loss_is_of_the_tokens_that_count(tmp_path: Path) -> None:
    gemma = tiny("gemma2_2b")
    hf_model(gemma).save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 256, (3, 24), generator=generator)
    labels = torch.randint(0, 256, (3, 24), generator=generator)
    mask = (torch.rand(3, 24, generator=generator) < 0.3).float()
    positions = torch.arange(24).expand_as(ids)
    with our_model(tmp_path) as model:
        everywhere = model(ids, positions, None, labels=labels)
        chosen = model(ids, positions, None, labels=labels, loss_mask=mask)
        none = model(ids, positions, None, labels=labels, loss_mask=torch.zeros_like(mask))
    expected = torch.nn.functional.cross_entropy(
        logits_of(tmp_path, ids).flatten(0, 1), labels.flatten(), reduction="none"
    ).view_as(mask)
    torch.testing.assert_close(everywhere, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(chosen, (expected * mask).sum(), atol=1e-3, rtol=0)
    assert none == 0


def logits_of(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        out: torch.Tensor = reference(ids).logits
    return out
