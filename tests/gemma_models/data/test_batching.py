from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from gemma_models.data.batching import Batch, collate, one_pass, positions, shuffled, stream
from gemma_models.data.chat import Example
from launcher.errors import DataError


def seen(step: int, *, dp_size: int, micro: int, total: int) -> list[int]:
    """The positions of a step over all ranks."""
    return [
        position
        for rank in range(dp_size)
        for part in positions(step, dp_rank=rank, dp_size=dp_size, micro_batch_size=micro, global_batch_size=total)
        for position in part
    ]


@pytest.mark.parametrize(("dp_size", "micro"), [(1, 1), (1, 12), (2, 3), (3, 2), (4, 3), (12, 1)])
def test_a_step_takes_the_same_samples_on_any_layout(dp_size: int, micro: int) -> None:
    for step in (0, 1, 7):
        assert sorted(seen(step, dp_size=dp_size, micro=micro, total=12)) == list(range(step * 12, step * 12 + 12))


def test_every_rank_has_equally_many_micro_batches_of_equal_size() -> None:
    for rank in range(3):
        parts = positions(5, dp_rank=rank, dp_size=3, micro_batch_size=2, global_batch_size=12)
        assert [len(part) for part in parts] == [2, 2]


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    index = shuffled(50, seed=1)
    epochs = [[index(position) for position in range(e * 50, e * 50 + 50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_is_a_function_of_the_seed_alone() -> None:
    forward, backward = shuffled(50, seed=1), shuffled(50, seed=1)
    ahead = [forward(position) for position in range(300)]
    assert [backward(position) for position in reversed(range(300))] == ahead[::-1]
    assert [shuffled(50, seed=2)(position) for position in range(50)] != ahead[:50]
    # What a run of today did must be what a resume of tomorrow does.
    order = shuffled(8, seed=1234)
    assert [order(position) for position in range(16)] == [4, 5, 3, 1, 2, 0, 6, 7, 5, 7, 1, 3, 4, 2, 0, 6]


def numbered(position: int) -> Example:
    return Example([position + 1, position + 2, position + 3], [False, False, True])


def first_tokens(batches: list[Batch]) -> list[int]:
    return [int(token) for batch in batches for token in batch["tokens"][:, 0]]


def test_a_stream_starts_at_any_step() -> None:
    whole = list(islice(stream_from(0), 10))
    resumed = list(islice(stream_from(4), 6))
    assert [first_tokens(step) for step in resumed] == [first_tokens(step) for step in whole[4:]]
    assert len({tuple(first_tokens(step)) for step in whole}) == 10


def stream_from(start_step: int) -> Iterator[list[Batch]]:
    return stream(
        numbered,
        start_step=start_step,
        dp_rank=1,
        dp_size=2,
        micro_batch_size=2,
        global_batch_size=8,
        seq_length=4,
    )


@pytest.mark.parametrize(("total", "micro", "dp_size"), [(6, 4, 1), (8, 2, 3), (0, 1, 1), (8, 0, 1), (2, 1, 4)])
def test_batch_sizes_that_do_not_divide_are_refused_before_the_first_step(total: int, micro: int, dp_size: int) -> None:
    with pytest.raises(DataError, match=f"global_batch_size {total} is not a multiple of micro_batch_size {micro} x"):
        stream(
            numbered,
            start_step=0,
            dp_rank=0,
            dp_size=dp_size,
            micro_batch_size=micro,
            global_batch_size=total,
            seq_length=4,
        )


def test_labels_are_the_next_tokens_and_padding_counts_for_nothing() -> None:
    import torch

    batch = collate([Example([5, 6, 7, 8], [False, False, True, True])], rows=2, seq_length=5)
    assert batch["tokens"].tolist() == [[5, 6, 7, 0, 0], [0] * 5]
    assert batch["labels"].tolist() == [[6, 7, 8, 0, 0], [0] * 5]
    assert batch["loss_mask"].tolist() == [[0, 1, 1, 0, 0], [0] * 5]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2
    kinds = {name: tensor.dtype for name, tensor in batch.items()}
    assert kinds == {
        "tokens": torch.int64,
        "labels": torch.int64,
        "loss_mask": torch.float32,
        "position_ids": torch.int64,
    }


@pytest.mark.parametrize(("dp_size", "micro"), [(1, 1), (1, 4), (2, 2), (3, 2), (4, 4)])
def test_one_pass_shows_every_example_once_and_keeps_ranks_in_step(dp_size: int, micro: int) -> None:
    examples = [numbered(position) for position in range(11)]
    ranks = [
        list(one_pass(examples, dp_rank=rank, dp_size=dp_size, micro_batch_size=micro, seq_length=4))
        for rank in range(dp_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    assert all(batch["tokens"].shape == (micro, 4) for batch in batches)
    shown = [token for token in first_tokens(batches) if token]
    assert sorted(shown) == list(range(1, 12))
    assert sum(float(batch["loss_mask"].sum()) for batch in batches) == 11
