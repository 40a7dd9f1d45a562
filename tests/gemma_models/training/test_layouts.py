"""One model, however it is spread over processes: the losses, gradients and checkpoints of one process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gemma_runs import GEMMA2, GEMMA3, VOCABULARY, WINDOW, losses, metrics, one_after_another, recipe
from layout_runs import Case, in_one_start, measure
from megatron.core.dist_checkpointing import load_common_state_dict
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import launcher
from gemma_models.architectures import GemmaConfig
from gemma_models.settings import LoRA, MegatronStrategy
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import load_trained
from launcher.config import Partial
from tests.gemma_models.training.layouts import LAYOUTS

MODELS = {"gemma2": GEMMA2, "gemma3": GEMMA3}
NARROW = 6  # of ten tokens, a rank's chunk
CASES = [(name, layout) for layout in LAYOUTS for name in MODELS]
STEPS = 10

# With dropout off: each layout draws its own.
ADAPTERS = LoRA(dim=4, alpha=8.0)
WITH_ADAPTERS = {"gemma2": "pp", "gemma3": "tp-sp"}

# Runs of six steps, and what goes on from their third: the layouts of both, and the precision.
SOURCES = {
    "overlap": ("gemma2", "dp-overlap", "fp32"),
    "bf16": ("gemma3", "dp-overlap", "bf16"),
    "turns": ("gemma3", "vpp", "fp32"),
    "replicas": ("gemma2", "dp", "fp32"),
}
RESUMES = [
    ("overlap", "dp-overlap"),
    ("overlap", "dp"),
    ("overlap", "tp-sp"),
    ("bf16", "dp-overlap"),
    ("bf16", "pp-uneven"),
    ("turns", "vpp"),
    ("turns", "tp"),
    ("replicas", "dp-overlap"),
    ("replicas", "cp"),
]


@dataclass
class Runs:
    root: Path
    alone: dict[tuple[str, str], dict[str, Any]]  # by model and variant
    spread: dict[tuple[str, str], dict[str, Any]]  # by model and layout
    broken: dict[str, dict[str, Any]]  # by layout
    refused: str


def checkpoint(run: Path, step: int = 10) -> Path:
    return run / "checkpoints" / f"step_{step:07d}"


def case(root: Path, name: str, variant: str, **given: Any) -> Case:
    model: GemmaConfig = MODELS[name]
    return Case(
        model=replace(model, sliding_window=NARROW) if variant == "narrow" else model,
        base=str(checkpoint(root / f"{name}-base", 1)),
        gradients=str(root / f"{name}-{variant}.pt"),
        packed=variant == "packed",
        **given,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Every run alone and in two or four processes, from the same weights; each number of processes is started once."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("layouts")
    alone, spread, broken, refused = {}, {}, {}, ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_LAUNCHER_HOME", str(root / "home"))
        trainings = []
        for name, model in MODELS.items():
            # Of another seed, so that only weights that were loaded are the same.
            launcher.run(recipe(root, f"{name}-base", model=model, steps=1, seed=7), direct=True)
            for variant in ("plain", "narrow", "packed"):
                alone[name, variant] = measure(case(root, name, variant, steps=STEPS))
            adapted: dict[str, Any] = {
                "model": model, "base": checkpoint(root / f"{name}-base", 1), "val_check_interval": 5, "peft": ADAPTERS
            }  # fmt: skip
            launcher.run(recipe(root, f"{name}-lora-one", **adapted, steps=4), direct=True)
            shutil.copytree(root / f"{name}-lora-one", root / f"{name}-lora")
            launcher.run(recipe(root, f"{name}-lora-one", resume=True, **adapted), direct=True)
            strategy = LAYOUTS[WITH_ADAPTERS[name]].strategy
            trainings.append(recipe(root, f"{name}-lora", strategy=strategy, devices=2, resume=True, **adapted))
        odd = {**adapted, "peft": LoRA(dim=3)}
        trainings.append(recipe(root, "odd", strategy=LAYOUTS["tp"].strategy, devices=2, **odd))
        for source in SOURCES:
            trainings.append(stopping(root, source))
        for processes in (2, 4):
            names = [(name, layout) for name, layout in CASES if LAYOUTS[layout].processes == processes]
            cases = [spread_case(root, *pair, steps=STEPS) for pair in names]
            controls = {name: found.control for name, found in LAYOUTS.items() if found.processes == processes}
            cases += [
                # The first step has the rate 0: weights that are not gathered are seen in the one after the second.
                spread_case(root, "gemma3", layout, steps=3 if control == "ungathered_weights" else 1, broken=control)
                for layout, control in controls.items()
            ]
            tasks = trainings if processes == 2 else []
            found = launched(processes, Partial(in_one_start, cases=cases, tasks=tasks))
            spread |= dict(zip(names, found["cases"], strict=False))
            broken |= dict(zip(controls, found["cases"][len(names) :], strict=True))
            refused = found["tasks"][len(MODELS)] if processes == 2 else refused
        for source, target in RESUMES:
            shutil.copytree(checkpoint(root / source, 3), checkpoint(root / f"{source}-{target}", 3))
        again = [going_on(root, source, target) for source, target in RESUMES]
        launched(2, Partial(one_after_another, tasks=again))
        yield Runs(root, alone, spread, broken, refused)


def spread_case(root: Path, name: str, layout: str, **given: Any) -> Case:
    found = LAYOUTS[layout]
    return case(root, name, found.variant, strategy=found.strategy, micro_batch_size=found.micro_batch_size, **given)


def stopping(root: Path, source: str) -> Partial[Any]:
    name, layout, precision = SOURCES[source]
    strategy = LAYOUTS[layout].strategy
    task = recipe(root, source, model=MODELS[name], steps=6, precision=precision, strategy=strategy, devices=2)
    task.log.ckpt.every_n_train_steps = 3
    return task


def going_on(root: Path, source: str, target: str) -> Partial[Any]:
    task = stopping(root, source)
    task.log.name = f"{source}-{target}"
    task.trainer.strategy = LAYOUTS[target].strategy
    task.resume.resume_if_exists = True
    return task


def launched(processes: int, task: Partial[Any]) -> Any:
    executor = launcher.LocalExecutor(ntasks_per_node=processes)
    result = launcher.run(task, executor=executor, progress=False)
    said = "".join(path.read_text() for path in result.folder.glob("rank_*.err"))
    assert "differs from rank 0" not in said  # Megatron's warning, of what is saved
    return result.value


def farthest(found: dict[str, Any], expected: dict[str, Any], name: str) -> float:
    """How far any step of any rank is from that of one process."""
    return max(
        abs(ours - single) for rank in found[name] for ours, single in zip(rank, expected[name][0], strict=False)
    )


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_the_same_losses_and_gradients_as_alone(runs: Runs, name: str, layout: str) -> None:
    found, expected = runs.spread[name, layout], runs.alone[name, LAYOUTS[layout].variant]
    assert len(found["losses"][0]) == len(expected["losses"][0]) == STEPS
    assert farthest(found, expected, "losses") < 1e-4
    assert farthest(found, expected, "norms") < 1e-4
    assert max(found["gradients"]) < 1e-4  # of each parameter, at the first step
    assert found["validation"] == pytest.approx(expected["validation"] * len(found["validation"]), abs=1e-4)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_what_each_rank_holds(runs: Runs, name: str, layout: str) -> None:
    found, single, strategy = (
        runs.spread[name, layout],
        runs.alone[name, "plain"]["shapes"][0],
        LAYOUTS[layout].strategy,
    )
    model, tp = MODELS[name], strategy.tensor_model_parallel_size
    pp, cp = strategy.pipeline_model_parallel_size, strategy.context_parallel_size
    assert len(found["sizes"]) == LAYOUTS[layout].processes
    for sizes, shapes in zip(found["sizes"], found["shapes"], strict=True):
        assert (sizes["tp"], sizes["pp"], sizes["cp"]) == (tp, pp, cp)
        assert sizes["dp"] == LAYOUTS[layout].processes // (tp * pp * cp)
        assert shapes["layers"] == LAYOUTS[layout].stages[sizes["stage"]]
        qkv = (model.num_attention_heads + 2 * model.num_query_groups) * model.kv_channels
        assert shapes["qkv"] == [qkv // tp, model.hidden_size]
        assert shapes["proj"] == [model.hidden_size, model.num_attention_heads * model.kv_channels // tp]
        assert shapes["fc1"] == [2 * model.ffn_hidden_size // tp, model.hidden_size]
        assert shapes["embedding"] == ([[VOCABULARY // tp, model.hidden_size]] if sizes["stage"] == 0 else [])
        if strategy.use_distributed_optimizer:
            assert 0 < shapes["moments"] < 0.7 * shapes["weights"]
        else:
            assert shapes["moments"] == shapes["weights"]
    replicas = sizes["dp"] * cp
    together = sum(shapes["moments"] for shapes in found["shapes"])
    assert together >= (1 if strategy.use_distributed_optimizer else replicas) * single["weights"]
    if strategy.use_distributed_optimizer:
        assert together * replicas == sum(shapes["weights"] for shapes in found["shapes"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_broken_is_seen(runs: Runs, layout: str) -> None:
    """The control: what keeps each layout right is taken away, and the first steps tell."""
    found, expected = runs.broken[layout], runs.alone["gemma3", LAYOUTS[layout].variant]
    seen = max(farthest(found, expected, "losses"), farthest(found, expected, "norms"), max(found["gradients"]))
    assert seen > 2e-3


@pytest.mark.parametrize("name", MODELS)
def test_adapters_go_on_at_another_layout(runs: Runs, name: str) -> None:
    spread, single = metrics(runs.root / f"{name}-lora"), metrics(runs.root / f"{name}-lora-one")
    assert [line["step"] for line in spread] == [line["step"] for line in single]
    for ours, expected in zip(spread, single, strict=True):
        for value, tolerance in (("loss", 1e-4), ("val_loss", 1e-4), ("grad_norm", 1e-3)):
            if value in ours:
                assert ours[value] == pytest.approx(expected[value], abs=tolerance), value


@pytest.mark.parametrize("name", MODELS)
def test_adapters_of_two_processes_are_read_by_one(runs: Runs, name: str) -> None:
    tokens = torch.randint(VOCABULARY, (2, 3 * WINDOW), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(3 * WINDOW).expand_as(tokens)
    logits = []
    with parallel_context(MegatronStrategy(), accelerator="cpu"), torch.no_grad():
        for run, step in ((f"{name}-base", 1), (f"{name}-lora-one", 10), (f"{name}-lora", 10)):
            (model,), _ = load_trained(checkpoint(runs.root / run, step), accelerator="cpu", precision="fp32")
            logits.append(model.eval()(tokens, positions, None))
    untrained, single, spread = logits
    torch.testing.assert_close(spread, single, atol=2e-3, rtol=0)
    assert (untrained - single).abs().max() > 0.1


def test_an_adapter_that_cannot_be_split_is_refused(runs: Runs) -> None:
    assert "peft.dim = 3 is not a multiple of trainer.strategy.tensor_model_parallel_size = 2" in runs.refused
    assert "try: peft.dim=4" in runs.refused


def state(folder: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by name, but for random states; "step" is the optimizer's count."""
    dcp_to_torch_save(folder / "weights", scratch)
    tensors = torch.load(scratch, weights_only=False)
    found = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    common = load_common_state_dict(str(folder / "weights"))["optimizer"]
    common = common.get("optimizer", common)
    step = common["state"]["common_step"] if "state" in common else common["param_groups"][0]["step"]
    return found | {"step": torch.as_tensor(float(step))}


@pytest.mark.parametrize(("source", "target"), RESUMES)
def test_a_fresh_process_goes_on(runs: Runs, source: str, target: str, tmp_path: Path) -> None:
    """At the same layout to the last bit: step, moments, masters, losses; at another one within rounding."""
    _, layout, precision = SOURCES[source]
    straight, resumed = losses(runs.root / source), losses(runs.root / f"{source}-{target}")
    assert list(resumed) == [4, 5, 6]
    ended = state(checkpoint(runs.root / source, 6), tmp_path / "straight.pt")
    ours = state(checkpoint(runs.root / f"{source}-{target}", 6), tmp_path / "resumed.pt")
    assert ours["step"] == ended["step"] == 6
    assert ours.keys() == ended.keys()
    masters = {key for key in ended if key.startswith("optimizer.state.fp32_param.")}
    assert bool(masters) == (precision == "bf16")
    assert any(key.startswith("optimizer.state.exp_avg_sq.") for key in ended)
    if target == layout:
        assert resumed == {step: straight[step] for step in (4, 5, 6)}
        assert all(torch.equal(ours[key], ended[key]) for key in ended)
    else:
        near = 1e-4 if precision == "fp32" else 2e-2
        assert resumed == {step: pytest.approx(straight[step], abs=near) for step in (4, 5, 6)}
        if precision == "fp32":
            torch.testing.assert_close(ours, ended, atol=1e-4, rtol=1e-3)
