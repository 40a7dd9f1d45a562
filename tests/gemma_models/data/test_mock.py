from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from gemma_models.data import Batch, DataModule, MockData
from launcher.errors import DataError


def ready(**changed: Any) -> MockData:
    data = MockData(**{"vocab_size": 1000, "seq_length": 100, "global_batch_size": 4} | changed)
    data.setup(None)
    return data


def steps(data: DataModule, start: int, count: int, dp_size: int = 1, seed: int = 3) -> list[list[list[int]]]:
    ranks = [
        list(islice(data.train_batches(start_step=start, dp_rank=rank, dp_size=dp_size, seed=seed), count))
        for rank in range(dp_size)
    ]
    return [
        sorted(row for rank in ranks for batch in rank[step] for row in batch["tokens"].tolist())
        for step in range(count)
    ]


def successors(batches: list[Batch]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for batch in batches:
        for token, label in zip(batch["tokens"].flatten().tolist(), batch["labels"].flatten().tolist(), strict=True):
            found.setdefault(token, set()).add(label)
    return found


def test_the_next_token_follows_from_the_last_in_training_and_validation_alike() -> None:
    data = ready()
    batches = [
        *(
            batch
            for step in islice(data.train_batches(start_step=0, dp_rank=0, dp_size=1, seed=3), 5)
            for batch in step
        ),
        *data.validation_batches(dp_rank=0, dp_size=1),
    ]
    follows = successors(batches)
    assert len(follows) == 64
    assert all(len(labels) == 1 for labels in follows.values())
    assert all(0 <= token < 1000 for token in follows)
    assert all(bool((batch["loss_mask"] == 1).all()) for batch in batches)


def test_sequences_differ_and_resume_on_any_layout() -> None:
    whole = steps(ready(), 0, 6)
    assert len({str(step) for step in whole}) == 6
    assert steps(ready(), 2, 4) == whole[2:]
    assert steps(ready(micro_batch_size=2), 2, 4, dp_size=2) == whole[2:]
    assert steps(ready(), 0, 6, seed=4) != whole


@pytest.mark.parametrize("vocab", [2, 5, 64, 262144])
def test_any_vocabulary_will_do(vocab: int) -> None:
    [batch, *_] = ready(vocab_size=vocab, seq_length=8).validation_batches(dp_rank=0, dp_size=1)
    assert batch["tokens"].shape == (1, 8)
    assert int(batch["labels"].max()) < vocab
    assert not bool((batch["tokens"] == batch["labels"]).any())


def test_validation_is_one_pass_over_all_ranks() -> None:
    data = ready(validation_samples=5, micro_batch_size=2)
    ranks = [list(data.validation_batches(dp_rank=rank, dp_size=2)) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [2, 2]
    assert len({int(batch["tokens"][0, 0]) for batches in ranks for batch in batches}) > 1
    assert sum(float(batch["loss_mask"].sum()) for batches in ranks for batch in batches) == 5 * 100


def test_the_vocabulary_is_the_tokenizers_unless_told(gemma_tokenizer: Any) -> None:
    data = MockData(seq_length=200)
    data.setup(gemma_tokenizer)
    [batch, *_] = data.validation_batches(dp_rank=0, dp_size=1)
    assert 100_000 < int(batch["tokens"].max()) < 262_144


def test_what_cannot_be_made_up_is_refused() -> None:
    with pytest.raises(DataError, match="made-up data without a tokenizer needs its vocab_size"):
        ready(vocab_size=None)
    with pytest.raises(DataError, match="vocab_size 1 and seq_length 100 leave nothing to predict"):
        ready(vocab_size=1)
    with pytest.raises(DataError, match="validation_samples is 0"):
        ready(validation_samples=0).validation_batches(dp_rank=0, dp_size=1)
    with pytest.raises(DataError, match="global_batch_size 4 is not a multiple"):
        ready(micro_batch_size=3).train_batches(start_step=0, dp_rank=0, dp_size=1, seed=0)
