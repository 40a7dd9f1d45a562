"""The processes of a run, where their groups stand already."""

from __future__ import annotations

import pytest

from gemma_models.settings import MegatronStrategy
from gemma_models.training.parallel import parallel_context
from launcher.errors import LaunchError


def test_groups_that_stand_are_of_the_layout_that_is_asked_for() -> None:
    """A model of another layout would be cut by them all the same."""
    with parallel_context(MegatronStrategy(), accelerator="cpu"):
        with parallel_context(MegatronStrategy(sequence_parallel=True), accelerator="cpu"):
            pass
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"):
            with (
                pytest.raises(LaunchError, match=f"{name} is 2, and the process groups .* were made with 1"),
                parallel_context(MegatronStrategy(**{name: 2}), accelerator="cpu"),  # type: ignore[arg-type]
            ):
                pass
