"""Parts by name: what a command line can put into a recipe."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from gemma_models import gemma3_1b, gemma3_270m
from gemma_models.architectures import ARCHITECTURES
from gemma_models.recipes.factories import factories, names
from launcher.config import check
from launcher.overrides import apply


def test_every_name_makes_what_it_says() -> None:
    made = factories()
    assert set(made) == set(names()) > set(ARCHITECTURES)
    for name, make in made.items():
        target = make().__fn_or_cls__
        module, _, kind = names()[name].rpartition(".")
        assert target.__qualname__ == kind
        assert target.__module__.startswith(module)


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_a_size_is_a_model(size: str) -> None:
    model = factories()[size]()
    assert {name: getattr(model, name) for name in asdict(ARCHITECTURES[size])} == asdict(ARCHITECTURES[size])


def test_parts_take_their_place_in_a_recipe() -> None:
    task = gemma3_270m.finetune_recipe(peft_scheme="none")
    task.resume.restore_config.path = "weights"
    apply(
        task,
        ["model=gemma3_1b(num_layers=2)", "data=mock_data(seq_length=512)", "peft=lora", "peft.dim=4"],
        factories(),
    )
    assert (task.model.num_layers, task.model.hidden_size) == (2, gemma3_1b.finetune_recipe().model.hidden_size)
    assert (task.data.seq_length, task.peft.dim) == (512, 4)
    check(task)
