"""Hugging Face folders that are not what they should be: each is an error that names the file and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gemma_runs import SMALLEST, losses, recipe
from safetensors.torch import load_file, save_file

import launcher
from gemma_models import api
from gemma_models.conversion.hf_config import read_hf_config
from gemma_models.conversion.sources import checkpoint_folder
from gemma_models.settings import LoRA
from launcher.errors import CheckpointError

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as Hugging Face keeps it, made by training a little and exporting."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("good")
    launcher.run(recipe(root, "run", steps=3), direct=True)
    return api.export_checkpoint(root / "run" / "checkpoints" / "step_0000003", root / "hf")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "hf"))


def config(**changed: Any) -> Callable[[Path], None]:
    """Change values in config.json; ... takes a key out."""

    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text()) | changed
        (folder / "config.json").write_text(
            json.dumps({key: value for key, value in values.items() if value is not ...})
        )

    return change


def index(content: str) -> Callable[[Path], None]:
    """In place of the one file, which would be read first."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / f"{WEIGHTS}.index.json").write_text(content)

    return change


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / WEIGHTS)

    return apply


def cut(folder: Path) -> None:
    with open(folder / WEIGHTS, "r+b") as file:
        file.truncate((folder / WEIGHTS).stat().st_size - 100)


NORM = "model.layers.1.input_layernorm.weight"
FETCH = "fetch the checkpoint again"
BAD: dict[str, tuple[Callable[[Path], None], str, str | None]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "hf holds no config.json", "name the folder of a"),
    "config is not JSON": (text("config.json", '{"architectures": ["Gem'), "config.json is not JSON: ", FETCH),
    "config is not text": (text("config.json", b"\xff\xfe\x00{"), "config.json is not JSON: ", FETCH),
    "config is a list": (text("config.json", "[]"), "describes no architecture, not a Gemma text model", None),
    "a Llama": (
        config(architectures=["LlamaForCausalLM"]),
        r"\['LlamaForCausalLM'\], not a Gemma text model",
        "use a checkpoint of one of Gemma2ForCausalLM, Gemma3ForCausalLM",
    ),
    "no architecture": (config(architectures=...), "describes no architecture", None),
    "a key is missing": (config(num_hidden_layers=...), "config.json lacks 'num_hidden_layers'", FETCH),
    "a value is null": (config(hidden_size=None), "config.json has a value of the wrong type", FETCH),
    "another rope": (config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), "rope scaling 'yarn'", None),
    "another pattern": (
        config(layer_types=["full_attention"] * 2),
        "do not repeat every 2 layers",
        "Gemma's own pattern",
    ),
    "another model": (
        config(intermediate_size=32),
        "another model than the recipe's: ffn_hidden_size 32 there, 64 in the",
        None,
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"lacks {WEIGHTS}", "name the folder of a complete"),
    "weights cut short": (cut, f"{WEIGHTS} is not a whole safetensors file: ", FETCH),
    "weights empty": (text(WEIGHTS, b""), f"{WEIGHTS} is not a whole safetensors file: ", FETCH),
    "weights corrupt": (
        text(WEIGHTS, b"\x10" + b"\x00" * 7 + b"{not json}      " + b"\x00" * 99),
        f"{WEIGHTS} is not a whole safetensors file: ",
        FETCH,
    ),
    "index is not JSON": (index("{"), "is not an index of weights", None),
    "index of files that are missing": (
        index(json.dumps({"weight_map": {NORM: "model-00001-of-00002.safetensors"}})),
        "lacks model-00001-of-00002.safetensors",
        "a complete Hugging Face checkpoint",
    ),
    "a tensor is missing": (
        tensors(lambda found: found.pop(NORM)),
        f"lacks {NORM} and 0 more",
        "belongs to these weights",
    ),
    "a tensor too many": (
        tensors(lambda found: found.update({"model.layers.2.mlp.bias": torch.ones(1)})),
        "holds, unknown to Gemma, model.layers.2.mlp.bias",
        "belongs to these weights",
    ),
    "another shape": (
        tensors(lambda found: found.update({NORM: torch.ones(33)})),
        f"{NORM} .*shape that config.json",
        None,
    ),
    "a shape that would broadcast": (
        tensors(lambda found: found.update({NORM: torch.ones(1)})),
        rf"{NORM} .*\(1,\) where \(32,\)",
        None,
    ),
    "transposed": (
        tensors(lambda found: found.update({"model.layers.0.mlp.down_proj.weight": torch.ones(64, 32)})),
        r"down_proj.weight .*\(64, 32\) where \(32, 64\)",
        None,
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_folder_that_is_no_gemma(folder: Path, tmp_path: Path, what: str) -> None:
    spoil, message, hint = BAD[what]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as raised:
        launcher.run(recipe(tmp_path, "run", base=folder), direct=True)
    assert hint is None or hint in (raised.value.hint or "")
    assert not (tmp_path / "run").exists()


def test_the_good_folder_trains(good: Path, tmp_path: Path) -> None:
    """The control: untouched, the folder is what the trained model was."""
    launcher.run(recipe(tmp_path, "hf", steps=1, base=good), direct=True)
    launcher.run(recipe(tmp_path, "ours", steps=1, base=good.parent / "run/checkpoints/step_0000003"), direct=True)
    launcher.run(recipe(tmp_path, "random", steps=1), direct=True)
    assert losses(tmp_path / "hf") == losses(tmp_path / "ours") != losses(tmp_path / "random")


@pytest.mark.parametrize("what", ["weights cut short", "a Llama", "another shape", "no weights"])
def test_nothing_is_imported_of_it(folder: Path, tmp_path: Path, what: str) -> None:
    spoil, message, _ = BAD[what]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        api.import_checkpoint(folder, tmp_path / "imported")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "launcher_home") == ["hf"]


def test_nothing_is_written_over(good: Path) -> None:
    checkpoint = good.parent / "run" / "checkpoints" / "step_0000003"
    for attempt in (lambda: api.import_checkpoint(good, checkpoint), lambda: api.export_checkpoint(checkpoint, good)):
        with pytest.raises(CheckpointError, match="exists already") as raised:
            attempt()
        assert "try: remove it, or name another folder than" in str(raised.value)
    with pytest.raises(CheckpointError, match="there is no checkpoint in") as raised:
        api.export_checkpoint(good, good.parent / "again")
    assert "try: import one first" in str(raised.value)


def test_a_longer_context_is_the_recipes_to_choose(good: Path, tmp_path: Path) -> None:
    longer = replace(SMALLEST, max_position_embeddings=256)
    assert launcher.run(recipe(tmp_path, "run", model=longer, steps=1, base=good), direct=True)["step"] == 1


def test_adapters_whose_base_is_gone(good: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(good.parent / "run" / "checkpoints" / "step_0000003", tmp_path / "base"))
    launcher.run(recipe(tmp_path, "lora", steps=1, base=base, peft=LoRA(dim=4)), direct=True)
    moved = base.rename(tmp_path / "moved")
    adapters = tmp_path / "lora" / "checkpoints" / "step_0000001"
    with pytest.raises(
        CheckpointError, match=f"holds adapters of the weights in {base}, which are not there"
    ) as raised:
        api.export_checkpoint(adapters, tmp_path / "merged")
    assert "try: say where they are: export_checkpoint(source, output, base=FOLDER)" in str(raised.value)
    assert (api.export_checkpoint(adapters, tmp_path / "merged", base=moved) / WEIGHTS).is_file()


def test_adapters_go_on_upon_their_own_base(good: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(good, tmp_path / "base"))
    other = Path(shutil.copytree(good, tmp_path / "other"))
    launcher.run(recipe(tmp_path, "lora", steps=1, base=base, peft=LoRA(dim=4)), direct=True)
    onward = recipe(tmp_path, "lora", steps=2, base=other, peft=LoRA(dim=4), resume=True)
    with pytest.raises(CheckpointError, match=f"another resume.restore_config.path than .*: {base} there, {other} her"):
        launcher.run(onward, direct=True)
    shutil.rmtree(base)  # moved, then
    assert launcher.run(onward, direct=True)["step"] == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_export_loads_in_the_dtype_of_its_weights(folder: Path, tmp_path: Path, precision: str) -> None:
    from transformers import AutoModelForCausalLM

    config(dtype={"fp32": "bfloat16", "bf16": "float32"}[precision])(folder)
    result = launcher.run(recipe(tmp_path, "run", steps=1, base=folder, precision=precision), direct=True)
    exported = api.export_checkpoint(result["checkpoint"], tmp_path / "out")
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert load_file(exported / WEIGHTS)[NORM].dtype == expected
    assert AutoModelForCausalLM.from_pretrained(exported).dtype == expected


@pytest.mark.parametrize("change", [{"hidden_size": 64}, {"architectures": ["LlamaForCausalLM"]}, {"hidden_size": 0}])
def test_a_tokenizers_folder_may_hold_another_models_config(
    folder: Path, gemma_tokenizer: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    """As when pretraining with the tokenizer of a larger model: what is saved describes what was trained."""
    tokenizer = tmp_path / "tokenizer"
    gemma_tokenizer.save_pretrained(tokenizer)
    shutil.copyfile(folder / "config.json", tokenizer / "config.json")
    config(**change)(tokenizer)
    task = recipe(tmp_path, "run", steps=1)
    task.tokenizer = str(tokenizer)
    exported = api.export_checkpoint(launcher.run(task, direct=True)["checkpoint"], tmp_path / "out")
    assert read_hf_config(exported) == SMALLEST
    assert (exported / "tokenizer.json").exists()


def test_a_name_of_the_hub_is_no_folder_and_says_how_to_write_it() -> None:
    hint = "hf://google/gemma-3-1b-pt, nemo://google/gemma-3-1b-pt for what was imported, or a folder"
    with pytest.raises(CheckpointError, match="does not exist") as raised:
        checkpoint_folder("google/gemma-3-1b-pt")
    assert raised.value.hint == hint
    with pytest.raises(CheckpointError, match="does not exist") as raised:
        checkpoint_folder("runs/tiny")
    assert raised.value.hint == hint


def test_another_batch_size_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    launcher.run(recipe(tmp_path, "run", steps=3), direct=True)
    more = recipe(tmp_path, "run", steps=4, resume=True)
    launcher.run(more, direct=True)
    assert "global_batch_size" not in capfd.readouterr().err
    more.trainer.max_steps, more.data.global_batch_size = 5, 8
    launcher.run(more, direct=True)
    said = (
        "data.global_batch_size is 8, and was 4 up to step 4: of the order of samples, 16 were taken, and the run goes "
    )
    assert said + "on with number 32" in capfd.readouterr().err
    more.trainer.max_steps, more.trainer.seed = 6, 99
    launcher.run(more, direct=True)
    shown = capfd.readouterr().err
    assert "trainer.seed is 99, and was 1234 up to step 5: samples come in another order" in shown
    assert "global_batch_size" not in shown


def test_a_run_that_has_nothing_to_resume_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    launcher.run(recipe(tmp_path, "run", steps=1, resume=True), direct=True)
    said = f"{tmp_path}/run/checkpoints has no checkpoint to go on from: the run starts at its beginning\n"
    assert said in capfd.readouterr().err
    launcher.run(recipe(tmp_path, "run", steps=2, resume=True), direct=True)
    assert "to go on from" not in capfd.readouterr().err
