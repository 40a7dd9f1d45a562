"""A loss that is no number ends a run, one far above the others does not; both are found, and their batch is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gemma_runs import ApartData, BrokenData, RepeatedData, losses, metrics, one_after_another, recipe
from safetensors import safe_open
from safetensors.torch import load_file

import launcher
from gemma_models.settings import MegatronStrategy, Profile
from gemma_models.training.anomalies import ENOUGH, Spikes
from launcher.config import Partial
from launcher.errors import ConfigError

SPIKE = 20
EIGHT = {"global_batch_size": 8}  # two micro-batches of two samples on each of two ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """In two processes: a NaN, the same where the ranks are stages of one model, a spike, a profile of rank 1, and that
    run resumed where only rank 0 sees what it saved."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("anomalies")
    nan = recipe(root, "nan", steps=4, devices=2)
    nan.data = launcher.Config(BrokenData, broken=3, **EIGHT)
    spike = recipe(root, "spike", steps=SPIKE + 1, devices=2, spike_factor=1.5)
    spike.data = launcher.Config(RepeatedData, other=SPIKE, **EIGHT)
    spike.optim.config.lr = 0.03
    staged = recipe(root, "staged", steps=4, devices=2, strategy=MegatronStrategy(pipeline_model_parallel_size=2))
    staged.optim.config.lr = 1e30
    profiled = recipe(root, "profiled", steps=3, devices=2)
    profiled.trainer.profile = launcher.Config(Profile, start_step=2, end_step=3, ranks=[1])
    apart = recipe(root, "profiled", steps=4, devices=2, resume=True)
    apart.data, apart.log.dir = launcher.Config(ApartData, folders=[str(root), str(root / "other")]), None
    tasks = [nan, spike, staged, profiled, apart]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_LAUNCHER_HOME", str(root / "home"))
        two = launcher.LocalExecutor(ntasks_per_node=2)
        result = launcher.run(Partial(one_after_another, tasks=tasks), executor=two, progress=False)
    return root, result.value


def test_who_had_the_first_loss_that_is_no_number(runs: tuple[Path, list[Any]]) -> None:
    root, (text, *_) = runs
    file = root / "nan" / "anomalies" / "step_0000003_rank_1_micro_batch_1.safetensors"
    # The third step has samples 16 to 23, of which the ranks take two in turn.
    assert text.startswith("step 3: the loss is nan and the gradient's norm ")
    assert f"; the first: rank 1, micro-batch 1, samples 22 to 23 of the data's order: loss nan; kept in {file}" in text
    assert list(file.parent.iterdir()) == [file]
    kept = load_file(file)
    data = BrokenData(broken=3, **EIGHT)
    batches = data.train_batches(start_step=2, dp_rank=1, dp_size=2, seed=recipe(root, "nan").trainer.seed)
    data.broken = 1  # steps are counted from the start
    expected = next(batches)[1]
    assert kept.keys() == expected.keys() and torch.isinf(kept["loss_mask"]).sum() == 1
    assert all(torch.equal(kept[name], expected[name]) for name in expected if name != "loss_mask")
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"step": "3", "samples": "[22, 23]", "loss": "nan"}
    # Where only the gradient is no number, no loss is to blame. The second stage is the one that takes losses.
    assert "and the gradient's norm nan; the highest loss of a micro-batch: rank 1, micro-batch 0, sample" in runs[1][2]


def test_a_spike_is_reported_and_training_goes_on(runs: tuple[Path, list[Any]]) -> None:
    folder = runs[0] / "spike"
    assert runs[1][1]["step"] == SPIKE + 1
    (line,) = [line for line in metrics(folder) if "spike" in line]
    found = losses(folder)
    assert line["step"] == SPIKE and line["rank"] == 1
    assert line["spike"] == pytest.approx(found[SPIKE] / sorted(list(found.values())[: SPIKE - 1])[SPIKE // 2 - 1])
    assert line["spike"] > 1.5 > found[SPIKE + 1] / found[SPIKE - 1]
    assert load_file(line["batch"])["tokens"].shape == (2, 40)


def test_what_is_a_spike() -> None:
    spikes = Spikes(2.0)
    assert [spikes.ratio(1.0) for _ in range(ENOUGH - 1)] == [None] * (ENOUGH - 1)
    assert spikes.ratio(5.0) is None  # of too few there is no median yet
    assert spikes.ratio(2.0) is None
    assert spikes.ratio(2.1) == 2.1
    steps_of_nothing = Spikes(2.0)  # no token of theirs counts
    assert [steps_of_nothing.ratio(loss) for loss in [*[0.0] * ENOUGH, 5.0]] == [None] * (ENOUGH + 1)
    assert [Spikes(None).ratio(loss) for loss in [*[1.0] * ENOUGH, 99.0]] == [None] * (ENOUGH + 1)


def test_a_factor_that_every_loss_is_above(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer.spike_factor is 1.0; it must be above 1"):
        launcher.run(recipe(tmp_path, "run", spike_factor=1.0), direct=True)


def test_ranks_that_see_different_checkpoints_do_not_go_on(runs: tuple[Path, list[Any]]) -> None:
    assert "ranks see different checkpoints of this run: rank 0 step_0000003, rank 1 none" in runs[1][-1]


def test_the_ranks_that_were_named_are_profiled(runs: tuple[Path, list[Any]]) -> None:
    (trace,) = (runs[0] / "profiled" / "profile").iterdir()
    assert trace.name == "rank_1_steps_2_3.json" and "aten::mm" in trace.read_text()
