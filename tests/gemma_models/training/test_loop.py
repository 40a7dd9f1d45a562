"""What a run writes of itself, what its loss means, and which settings end it before or while it trains."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from gemma_runs import LENGTH, SMALLEST, VOCABULARY, UnevenData, losses, metrics, recipe

import launcher
from gemma_models import api
from gemma_models.data import Batch
from gemma_models.settings import MegatronStrategy
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import load_trained
from launcher.errors import CheckpointError, ConfigError, DataError, LaunchError


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run(task: Any) -> Any:
    return launcher.run(task, direct=True)


def test_what_a_step_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.time()
    run(recipe(tmp_path, "run", steps=3))
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert list(line) == [
            "step", "max_steps", "loss", "lr", "grad_norm", "tokens_per_second", "real_tokens_per_second", "step_time",
            "peak_memory", "time",
        ]  # fmt: skip
        assert line["max_steps"] == 3
        assert line["tokens_per_second"] * line["step_time"] == pytest.approx(4 * LENGTH)
        assert 0 < line["real_tokens_per_second"] < line["tokens_per_second"]  # sequences of different lengths
        assert 10 * 2**20 < line["peak_memory"] < 100 * 2**30
        assert math.isfinite(line["grad_norm"]) and line["grad_norm"] > 0
        assert began <= line["time"] <= time.time()
    assert lines[0]["loss"] > math.log(SMALLEST.vocab_size)  # random weights are worse than a guess
    # Two steps of warm-up to 5e-3, counted from nothing.
    assert [line["lr"] for line in lines] == pytest.approx([0.0, 2.5e-3, 5e-3])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"step 1  max_steps 3  loss {lines[0]['loss']:.4g}  lr 0  grad_norm ")


def test_metrics_go_where_the_launcher_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_LAUNCHER_JOB_DIR", str(tmp_path / "job"))
    run(recipe(tmp_path, "run", steps=3, log_every_n_steps=2))
    assert [line["step"] for line in metrics(tmp_path / "job")] == [2, 3]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_validation_at_the_start_each_interval_and_the_end(tmp_path: Path) -> None:
    result = run(recipe(tmp_path, "run", steps=5, val_check_interval=2))
    lines = metrics(tmp_path / "run")
    checked = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in checked] == [0, 2, 4, 5]
    assert all(list(line) == ["step", "max_steps", "val_loss", "time"] for line in checked)
    assert result["val_loss"] == checked[-1]["val_loss"]
    # Validation leaves training as it is.
    run(recipe(tmp_path, "unchecked", steps=5))
    assert losses(tmp_path / "unchecked") == losses(tmp_path / "run")  # of the same seed, to the last bit
    run(recipe(tmp_path, "reseeded", steps=2, seed=99))
    reseeded = losses(tmp_path / "reseeded")
    assert all(reseeded[step] != losses(tmp_path / "run")[step] for step in reseeded)


def mean_over_counted_tokens(checkpoint: Path, batches: list[Batch]) -> float:
    """The loss by its definition, from the logits of the model as it was saved."""
    with parallel_context(MegatronStrategy(), accelerator="cpu"), torch.no_grad():
        (model,), _ = load_trained(checkpoint, accelerator="cpu", precision="fp32")
        model.eval()
        total = count = 0.0
        for batch in batches:
            logits = model(batch["tokens"], batch["position_ids"], None)
            each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
            total += float((each * batch["loss_mask"]).sum())
            count += float(batch["loss_mask"].sum())
    return total / count


def test_losses_are_means_over_the_tokens_that_count(tmp_path: Path) -> None:
    run(recipe(tmp_path, "one", steps=1, val_check_interval=1))
    base = tmp_path / "one" / "checkpoints" / "step_0000001"
    data = UnevenData()
    lines = metrics(tmp_path / "one")
    validation = list(data.validation_batches(dp_rank=0, dp_size=1))
    assert lines[-1]["val_loss"] == pytest.approx(mean_over_counted_tokens(base, validation), abs=1e-5)
    first = recipe(tmp_path, "two", steps=1, base=base, val_check_interval=1, limit_val_batches=1)
    first.data.validation_samples = 5  # one more than a step takes
    run(first)
    lines = metrics(tmp_path / "two")
    limited = list(UnevenData(validation_samples=4).validation_batches(dp_rank=0, dp_size=1))
    batches = next(data.train_batches(start_step=0, dp_rank=0, dp_size=1, seed=first.trainer.seed))
    assert lines[1]["loss"] == pytest.approx(mean_over_counted_tokens(base, batches), abs=1e-5)
    assert lines[0]["val_loss"] == pytest.approx(mean_over_counted_tokens(base, limited), abs=1e-5)
    # The control: the mean of the sequences' means is another number.
    rows = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for batch in batches for row in range(2)]
    means = [mean_over_counted_tokens(base, [row]) for row in rows]
    assert abs(sum(means) / 4 - lines[1]["loss"]) > 1e-3


def test_micro_batches_make_no_difference(tmp_path: Path) -> None:
    found = []
    for size in (1, 2, 4):
        task = recipe(tmp_path, str(size), steps=4)
        task.data.micro_batch_size = size
        run(task)
        lines = metrics(tmp_path / str(size))
        found.append([line["loss"] for line in lines] + [line["grad_norm"] for line in lines])
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    task = recipe(tmp_path, "run", steps=9)
    task.optim.config.lr = 1e30
    task.log.ckpt.every_n_train_steps = 1
    with pytest.raises(LaunchError) as raised:
        run(task)
    # The first step is taken with a learning rate of 0, the second breaks the weights, the third sees it.
    assert str(raised.value).startswith("step 3: the loss is ")
    assert "try: a lower optim.config.lr, or more optim.lr_scheduler.warmup_steps" in str(raised.value)
    assert not (tmp_path / "run" / "checkpoints" / "step_0000003").exists()


REFUSED: list[tuple[str, Any, str, str | None]] = [
    (
        "data.seq_length",
        129,
        r"data.seq_length = 129 is longer than the 128 positions of the model",
        "data.seq_length=128",
    ),
    ("trainer.max_steps", 0, "trainer.max_steps is 0; it must be at least 1", None),
    ("trainer.log_every_n_steps", 0, "trainer.log_every_n_steps is 0; it must be at least 1", None),
    (
        "trainer.strategy.tensor_model_parallel_size",
        3,
        "does not divide model.num_attention_heads = 4",
        "one of [1, 2, 4]",
    ),
    ("trainer.strategy.pipeline_model_parallel_size", 3, "makes 3 chunks of model.num_layers = 2", "at most 2 chunks"),
    ("trainer.strategy.tensor_model_parallel_size", 2, "trainer.devices = 1 .* groups of 2 x 1", "trainer.devices=2"),
    (
        "trainer.devices",
        2,
        "trainer.devices = 2 x trainer.num_nodes = 1 is not the number of processes that run it, 1",
        "trainer.devices=1",
    ),
    ("log.ckpt.save_last_k", 0, "log.ckpt.save_last_k is 0; it must be at least 1", None),
    ("optim.lr_scheduler.warmup_steps", 20, "warmup_steps = 20 leaves nothing of the 20 steps", "warmup_steps=2"),
    ("optim.lr_scheduler.min_lr", 1.0, "min_lr = 1.0 is not between 0 and optim.config.lr = 0.005", None),
    ("optim.config.lr", math.nan, "optim.config.lr is nan; it must be a number of 0 or more", None),
    ("optim.config.weight_decay", -1.0, "optim.config.weight_decay is -1.0; it must be", None),
    ("optim.config.adam_eps", 0.0, "optim.config.adam_eps is 0", None),
    ("optim.config.adam_beta2", 1.0, "optim.config.adam_beta2 is 1.0; it must be at least 0 and below 1", None),
    ("data", "train.jsonl", "data is 'train.jsonl', which is no data module", "run.Config(InstructionData"),
    ("model.num_query_groups", 3, "num_attention_heads = 4 is not a multiple of model.num_query_groups = 3", None),
]


@pytest.mark.parametrize(
    ("path", "value", "message", "hint"), REFUSED, ids=[f"{case[0]}={case[1]}" for case in REFUSED]
)
def test_settings_that_cannot_work(tmp_path: Path, path: str, value: Any, message: str, hint: str | None) -> None:
    task = recipe(tmp_path, "run")
    *parents, last = path.split(".")
    target = task
    for name in parents:
        target = getattr(target, name)
    setattr(target, last, value)
    with pytest.raises(ConfigError, match=message) as raised:
        run(task)
    assert hint is None or hint in (raised.value.hint or "")
    assert not (tmp_path / "run").exists()


def test_a_world_of_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    task = recipe(tmp_path, "run", devices=2)
    with pytest.raises(
        ConfigError, match=r"2 x trainer.num_nodes = 1 is not the number of processes that run it, 8"
    ) as raised:
        run(task)
    assert "try: trainer.devices=8, or an executor with ntasks_per_node=2" in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    task = recipe(tmp_path, "run")
    task.trainer.accelerator = "gpu"
    with pytest.raises(LaunchError) as raised:
        run(task)
    assert "the accelerator is 'gpu', but torch sees no GPU in this process" in str(raised.value)
    assert "choose the CPU: trainer.accelerator=cpu" in str(raised.value)


def test_finetuning_needs_weights(tmp_path: Path) -> None:
    task = recipe(tmp_path, "run")
    finetune = launcher.Partial(api.finetune, **{name: getattr(task, name) for name in FINETUNE})
    with pytest.raises(ConfigError, match=r"resume\.restore_config is not set") as raised:
        run(finetune)
    assert 'try: recipe.resume.restore_config.path = "FOLDER"' in str(raised.value)


FINETUNE = ("model", "data", "trainer", "log", "resume", "optim")


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("nowhere", "^resume.restore_config.path: the checkpoint folder '.*nowhere' does not exist", "or a folder"),
        ("", "holds no config.json", "name the folder of a Hugging Face Gemma checkpoint"),
    ],
)
def test_weights_that_are_not_there(tmp_path: Path, path: str, message: str, hint: str) -> None:
    base = tmp_path / path
    with pytest.raises(CheckpointError, match=message) as raised:
        run(recipe(tmp_path, "run", base=base))  # type: ignore[arg-type]
    assert hint in str(raised.value)


@pytest.mark.parametrize("wrong", [VOCABULARY, -1])
@pytest.mark.parametrize("field", ["tokens", "labels"])
def test_a_token_that_the_model_does_not_know(tmp_path: Path, field: str, wrong: int) -> None:
    task = recipe(tmp_path, "run")
    task.data = launcher.Config(WrongToken, field=field, wrong=wrong)
    with pytest.raises(DataError, match=f"token {wrong}, and .* below model.vocab_size = {VOCABULARY}"):
        run(task)


@dataclass(kw_only=True)
class WrongToken(UnevenData):
    """One token outside the vocabulary, and labels outside it where they do not count."""

    field: str
    wrong: int

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        for batches in super().train_batches(start_step=start_step, dp_rank=dp_rank, dp_size=dp_size, seed=seed):
            for batch in batches:
                batch["labels"][batch["loss_mask"] == 0] = 2**40
                batch[self.field][batch["loss_mask"] == 1] = self.wrong
            yield batches


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("ends", "the data ends before step 2 of trainer.max_steps = 10"),
        ("rows", "the rows of a batch have different position_ids"),
        ("far", "a row of 40 tokens has position_ids from 100 to 139"),
    ],
)
def test_data_that_does_not_do_as_it_should(tmp_path: Path, what: str, message: str) -> None:
    task = recipe(tmp_path, "run")
    task.data = launcher.Config(WrongData, what=what)
    with pytest.raises(DataError, match=message):
        run(task)


@dataclass(kw_only=True)
class WrongData(UnevenData):
    """Ends after a step, or has other positions: of one row, or of all."""

    what: str

    def train_batches(self, *, start_step: int, dp_rank: int, dp_size: int, seed: int) -> Iterator[list[Batch]]:
        batches = next(super().train_batches(start_step=start_step, dp_rank=dp_rank, dp_size=dp_size, seed=seed))
        if self.what != "ends":
            batches[1]["position_ids"][0 if self.what == "rows" else slice(None)] += 100
        yield batches


def test_a_run_that_has_taken_its_steps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(recipe(tmp_path, "run", steps=2))
    result = run(recipe(tmp_path, "run", steps=1, resume=True))
    assert (result["step"], result["loss"]) == (2, None)
    assert "nothing is left to train: step 2 of 1 is saved" in capfd.readouterr().err


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    task = recipe(tmp_path, "run")
    task.tokenizer = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere holds no tokenizer"):
        run(task)


def test_the_checkpoint_is_named_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(recipe(Path("here"), "run", steps=1))["checkpoint"] == str(
        tmp_path / "here/run/checkpoints/step_0000001"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": "one text"}, "prompts is 'one text'; it must be a list of texts"),
        ({"prompts": [5]}, r"prompts is \[5\]; it must be"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"accelerator": "cuda"}, "accelerator is 'cuda'"),
    ],
)
def test_what_cannot_be_generated(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        api.generate("nowhere", **{"prompts": ["a"], **given})


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match=r"nothing can be written to .*file/run: .*Not a directory") as raised:
        run(recipe(tmp_path / "file", "run"))
    assert "try: another log.dir" in str(raised.value)


def test_nothing_is_left_of_a_run(tmp_path: Path) -> None:
    """After a run, and after one that failed, the process is as it was: torch is not told lies about CUDA."""
    with pytest.raises(LaunchError):
        task = recipe(tmp_path, "run", steps=9)
        task.optim.config.lr = 1e30
        run(task)
    run(recipe(tmp_path, "other", steps=1))
    assert not torch.distributed.is_initialized()
    assert torch.zeros(1).type() == "torch.FloatTensor"
    assert "RANK" not in os.environ
