"""The environment variables of a plan: worked out when it is made, recorded, shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpu_tasks import VARIABLES, environment

import launcher as run
from executors.base import Plan
from gemma_models.settings import Trainer
from launcher.errors import ConfigError

SET = dict(zip(VARIABLES, ("8", "1", "0", "0", "expandable_segments:True"), strict=True))


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SET:
        monkeypatch.delenv(name, raising=False)


def task() -> run.Partial[dict[str, str | None]]:
    return run.Partial(environment, trainer=run.Config(Trainer, max_steps=1))


def test_they_are_in_the_plan_its_file_and_the_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    with run.Experiment("variables") as experiment:
        experiment.add(task(), executor=run.LocalExecutor(gpu="h100", env_vars={"MARK": "1"}))
        [plan] = experiment.plan()
        assert plan.env == {**SET, "MARK": "1"}
        experiment.dryrun()
        assert "env     PYTORCH_ALLOC_CONF=expandable_segments:True\n" in capsys.readouterr().out
        [result] = experiment.run(progress=False)
    assert result.value == SET
    recorded = json.loads((Path(result.folder) / "plan.json").read_text())
    assert recorded["env"] == plan.env
    assert Plan.from_json(recorded).env == plan.env


def test_the_users_own_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_GRAPH_REGISTER", "1")
    with run.Experiment("variables") as experiment:
        experiment.add(task(), executor=run.LocalExecutor(gpu="h100", env_vars={"TORCH_NCCL_HIGH_PRIORITY": "0"}))
        [plan] = experiment.plan()
        [result] = experiment.run(progress=False)
    assert "NCCL_GRAPH_REGISTER" not in plan.env
    assert result.value == {**SET, "TORCH_NCCL_HIGH_PRIORITY": "0", "NCCL_GRAPH_REGISTER": "1"}


def test_what_is_no_training_on_gpus_gets_none() -> None:
    on_cpu = task()
    on_cpu.trainer.accelerator = "cpu"
    with run.Experiment("variables") as experiment:
        experiment.add(on_cpu)
        experiment.add(run.Script(inline="true"))
        experiment.add(run.Partial(print, "hello"))
        assert [plan.env for plan in experiment.plan()] == [{}, {}, {}]


def test_a_conflict_is_refused_when_it_is_added(capsys: pytest.CaptureFixture[str]) -> None:
    experiment = run.Experiment("variables")
    with pytest.raises(ConfigError, match="NVTE_FUSED_ATTN is '0'"):
        experiment.add(task(), executor=run.LocalExecutor(env_vars={"NVTE_FUSED_ATTN": "0"}))
    doubtful = run.LocalExecutor(env_vars={"NCCL_PROTO": "LL"})
    experiment.add([task(), task()], executor=doubtful)
    assert capsys.readouterr().err.count("warning: NCCL_PROTO is LL") == 1
    quiet = run.Experiment("variables", log_level="ERROR")
    quiet.add(task(), executor=doubtful)
    assert "NCCL_PROTO" not in capsys.readouterr().err
