"""Which kernels a run gets, and what is refused; what they compute is checked where there is a GPU (tests/gpu)."""

from __future__ import annotations

import pytest

from gemma_models.architectures import ARCHITECTURES
from gemma_models.modeling import kernels
from gemma_models.modeling.kernels import PLAIN, kernels_for, why_not
from gemma_models.settings import Trainer
from launcher.errors import LaunchError

GEMMA2, GEMMA3 = ARCHITECTURES["gemma2_2b"], ARCHITECTURES["gemma3_1b"]


def test_a_cpu_has_plain_torch() -> None:
    assert kernels_for(GEMMA3, Trainer(max_steps=1, accelerator="cpu")) == PLAIN
    with pytest.raises(LaunchError, match=r"(?s)trainer.attention is 'te', which needs a GPU.*attention='auto'"):
        kernels_for(GEMMA3, Trainer(max_steps=1, accelerator="cpu", attention="te"))


def test_what_is_asked_for_and_not_there_is_refused() -> None:
    with pytest.raises(LaunchError, match=r"flash_attn is not installed: pip install 'flash-attn'"):
        kernels_for(GEMMA2, Trainer(max_steps=1, attention="flash"))
    assert kernels_for(GEMMA2, Trainer(max_steps=1)).attention == "flex"
    assert kernels_for(GEMMA2, Trainer(max_steps=1, attention="local", fusion=False)) == PLAIN


def test_transformer_engine_has_no_softcap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.PACKAGES, "te", "torch")  # which is installed
    assert why_not("te", GEMMA3, Trainer(max_steps=1)) is None
    assert "no cap" in (why_not("te", GEMMA2, Trainer(max_steps=1)) or "")
    assert "bfloat16 alone" in (why_not("te", GEMMA3, Trainer(max_steps=1, precision="fp32")) or "")
