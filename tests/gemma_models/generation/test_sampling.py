"""Which token comes next, and that a prompt's continuation does not depend on its company."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gemma_runs import GEMMA2, GEMMA3, VOCABULARY, WINDOW

from gemma_models.architectures import GemmaConfig
from gemma_models.generation.decode import decode
from gemma_models.generation.sampling import Sampling, next_tokens
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.model import GemmaModel, build_model
from gemma_models.settings import MegatronStrategy
from gemma_models.training.parallel import parallel_context
from launcher.errors import ConfigError

PROBABILITIES = [0.05, 0.5, 0.15, 0.3]
DRAWS = 4000


def drawn(sampling: Sampling, probabilities: list[float] = PROBABILITIES) -> torch.Tensor:
    """How often each token is drawn, as a share."""
    logits = torch.tensor(probabilities).log().expand(DRAWS, -1)
    generator = torch.Generator().manual_seed(sampling.seed)
    return torch.bincount(next_tokens(logits, sampling, generator), minlength=len(probabilities)) / DRAWS


def test_greedy_takes_the_likeliest_whatever_the_seed() -> None:
    logits = torch.tensor([[0.1, 2.0, 1.9], [3.0, -1.0, 2.0]], dtype=torch.bfloat16)
    for seed in range(3):
        chosen = next_tokens(logits, Sampling(top_p=0.01), torch.Generator().manual_seed(seed))
        assert chosen.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1.0, [0.05, 0.5, 0.15, 0.3]),
        # A token stays while those before it make up less than top_p, so that what stays makes up top_p at least.
        (0.9, [0, 0.5 / 0.95, 0.15 / 0.95, 0.3 / 0.95]),
        (0.7, [0, 0.625, 0, 0.375]),
        (0.51, [0, 0.625, 0, 0.375]),
        (0.49, [0, 1, 0, 0]),
        (1e-9, [0, 1, 0, 0]),
    ],
)
def test_top_p_keeps_the_likeliest_in_their_proportions(top_p: float, expected: list[float]) -> None:
    found = drawn(Sampling(temperature=1.0, top_p=top_p))
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float32), atol=0.03, rtol=0
    )  # over 3.5 standard deviations
    assert all(bool(share) == bool(chance) for share, chance in zip(found, expected, strict=True))


def test_top_k_keeps_the_likeliest_and_top_p_some_of_these() -> None:
    assert bool(((drawn(Sampling(temperature=1.0, top_k=2)) > 0) == torch.tensor([False, True, False, True])).all())
    found = drawn(Sampling(temperature=1.0, top_k=3))
    torch.testing.assert_close(found, torch.tensor([0, 0.5, 0.15, 0.3]) / 0.95, atol=0.03, rtol=0)
    # Of three that make up 0.95, the first two are 0.84 of them, and 0.8 of all.
    assert bool((drawn(Sampling(temperature=1.0, top_k=3, top_p=0.83)) > 0).sum() == 2)
    assert bool((drawn(Sampling(temperature=1.0, top_k=9)) > 0).all())


def test_temperature_sharpens_and_flattens() -> None:
    for temperature in (0.5, 2.0):
        weights = torch.tensor(PROBABILITIES) ** (1 / temperature)
        found = drawn(Sampling(temperature=temperature))
        torch.testing.assert_close(found, weights / weights.sum(), atol=0.03, rtol=0)
    assert bool((drawn(Sampling(temperature=1e-37)) == torch.tensor([0.0, 1.0, 0.0, 0.0])).all())
    # top_p is taken of what the temperature has made: 0.5 becomes 0.34 of a flat distribution.
    assert bool((drawn(Sampling(temperature=2.0, top_p=0.5)) > 0).sum() == 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature is -0.1; it must be 0 \(greedy\) or above"),
        ({"temperature": float("nan")}, "temperature is nan; it must be 0"),
        ({"top_k": -1}, r"top_k is -1; it must be 0 \(all\) or above"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"seed": 2**64}, "it must be at least 0 and below"),
    ],
)
def test_settings_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)  # type: ignore[arg-type]


# Shorter than the window, as long as it, longer, and one whose answer crosses it.
PROMPTS = [
    torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (3, WINDOW, 2 * WINDOW + 5, WINDOW - 2)
]
NEW = 12


@pytest.fixture(scope="module", params=[GEMMA2, GEMMA3], ids=["gemma2", "gemma3"])
def model(request: pytest.FixtureRequest) -> Iterator[GemmaModel]:
    torch.set_num_threads(1)
    gemma: GemmaConfig = request.param
    with parallel_context(MegatronStrategy(), accelerator="cpu", seed=5):
        yield build_model(transformer_config(gemma, MegatronStrategy(), precision="fp32", accelerator="cpu"))


def answers(
    model: GemmaModel, prompts: list[list[int]], sampling: Sampling, new: int = NEW, stop: int | None = None
) -> list[list[int]]:
    return decode(model, prompts, max_new_tokens=new, stop=set() if stop is None else {stop}, sampling=sampling)


def test_a_batch_is_continued_as_each_prompt_alone(model: GemmaModel) -> None:
    together = answers(model, PROMPTS, Sampling())
    assert together == [answers(model, [prompt], Sampling())[0] for prompt in PROMPTS]
    assert all(len(answer) == NEW for answer in together)
    assert len({tuple(answer) for answer in together}) == len(PROMPTS)


def test_the_cache_changes_nothing(model: GemmaModel) -> None:
    """Each token is what the whole text, read at once, would be continued with."""
    for prompt, answer in zip(PROMPTS, answers(model, PROMPTS, Sampling()), strict=True):
        text = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = model(text, torch.arange(text.shape[1])[None], None)
        assert logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == answer


def test_an_answer_ends_where_it_stops_and_others_go_on(model: GemmaModel) -> None:
    whole = answers(model, PROMPTS, Sampling())
    stop = whole[2][4]
    assert answers(model, PROMPTS, Sampling(), stop=stop) == [
        answer[: answer.index(stop)] if stop in answer else answer for answer in whole
    ]
    assert answers(model, PROMPTS, Sampling(), stop=stop)[2] == whole[2][: whole[2].index(stop)]


def test_seeds(model: GemmaModel) -> None:
    first = answers(model, PROMPTS, Sampling(temperature=1.0, top_p=0.9, seed=1))
    assert answers(model, PROMPTS, Sampling(temperature=1.0, top_p=0.9, seed=1)) == first
    assert answers(model, PROMPTS, Sampling(temperature=1.0, top_p=0.9, seed=2)) != first
    assert first != answers(model, PROMPTS, Sampling())


def test_what_cannot_be_generated(model: GemmaModel) -> None:
    assert answers(model, [], Sampling()) == []
    with pytest.raises(ConfigError, match="an empty prompt, or in no tokens"):
        answers(model, [[1], []], Sampling())
    with pytest.raises(
        ConfigError, match="a prompt of 37 tokens and 92 new ones exceed the model's 128 positions"
    ) as e:
        answers(model, PROMPTS, Sampling(), new=92)
    assert "try: max_new_tokens=91" in str(e.value)
    assert len(answers(model, PROMPTS[2:3], Sampling(), new=91)[0]) == 91
    with pytest.raises(ConfigError, match="try: a shorter prompt"):
        answers(model, [[1] * 128], Sampling(), new=1)
