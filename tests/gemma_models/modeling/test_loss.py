"""The loss that never holds all logits, against torch's cross-entropy of all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from gemma_models.modeling import loss
from gemma_models.modeling.cores.local import softcap


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_sum_and_its_gradients(
    group: dist.ProcessGroup, cap: float | None, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "ROWS", 7)  # 20 tokens are three pieces, the last one shorter
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(20, 16, generator=draw, requires_grad=True)
    weight = torch.randn(50, 16, generator=draw, requires_grad=not frozen)
    labels = torch.randint(0, 50, (20,), generator=draw)
    weights = torch.rand(20, generator=draw)
    total = loss.vocabulary_loss(hidden, weight, labels, weights, cap=cap, group=group, fuse=False)
    (3 * total).backward()
    ours = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    logits = hidden @ weight.t()
    each = torch.nn.functional.cross_entropy(logits if cap is None else softcap(logits, cap), labels, reduction="none")
    (3 * (each * weights).sum()).backward()
    torch.testing.assert_close(total, (each * weights).sum())
    torch.testing.assert_close(ours, [hidden.grad, weight.grad], allow_subclasses=False)


def test_nothing_to_learn_from(group: dist.ProcessGroup) -> None:
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.ones(6, 4, requires_grad=True)
    total = loss.vocabulary_loss(
        hidden, weight, torch.zeros(0, dtype=torch.int64), torch.zeros(0), cap=None, group=group, fuse=False
    )
    total.backward()
    assert total == 0 and weight.grad is not None and not weight.grad.any()


def test_validation_takes_no_gradients(group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object) -> None:
        raise AssertionError("a gradient was taken")

    monkeypatch.setattr(loss, "to_gradient", never)
    hidden, weight = torch.ones(3, 4), torch.ones(6, 4, requires_grad=True)
    with torch.no_grad():
        total = loss.vocabulary_loss(
            hidden, weight, torch.zeros(3, dtype=torch.int64), torch.ones(3), cap=None, group=group, fuse=False
        )
    torch.testing.assert_close(total, 3 * torch.log(torch.tensor(6.0)))


def test_the_vocabularys_gradient_is_added_up_at_once(group: dist.ProcessGroup) -> None:
    draw = torch.Generator().manual_seed(2)
    hidden = torch.randn(5, 4, generator=draw, requires_grad=True)
    weight = torch.randn(6, 4, generator=draw, requires_grad=True)
    labels, weights = torch.randint(0, 6, (5,), generator=draw), torch.rand(5, generator=draw)

    def total(at_once: bool) -> torch.Tensor:
        return loss.vocabulary_loss(hidden, weight, labels, weights, cap=None, group=group, fuse=False, at_once=at_once)

    (wanted,) = torch.autograd.grad(total(False), weight)
    weight.main_grad = torch.ones_like(weight)  # type: ignore[attr-defined]
    total(True).backward()
    assert weight.grad is None
    torch.testing.assert_close(weight.main_grad, 1.0 + wanted)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="for a loss as it is"):
        (2 * total(True)).backward()
