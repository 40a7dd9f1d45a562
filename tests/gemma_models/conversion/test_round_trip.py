"""Import and export lose nothing, and refuse what is not a whole Gemma."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma_models import export_checkpoint, import_checkpoint
from gemma_models.conversion.hf_config import hf_config, read_hf_config
from gemma_models.conversion.mapping import rules
from gemma_models.conversion.safetensors_io import HFWeights, write_hf_weights
from gemma_models.training.checkpoints import read_info
from launcher.errors import CheckpointError
from tests.gemma_models.tiny import hf_model, tiny


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    hf_model(tiny("gemma3_1b")).save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    weights = HFWeights(folder)
    return {name: weights.read(name) for name in weights.names()}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


def test_the_real_270m_comes_back_as_it_was(hf_gemma3_270m: Path, tmp_path: Path) -> None:
    checkpoint = import_checkpoint(hf_gemma3_270m, tmp_path / "megatron")
    back = export_checkpoint(checkpoint, tmp_path / "hf")
    assert_equal(tensors(back), tensors(hf_gemma3_270m))
    assert read_info(checkpoint).precision == "bf16"
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (back / name).read_bytes() == (hf_gemma3_270m / name).read_bytes()


@pytest.mark.parametrize("size", ["gemma2_27b", "gemma3_27b"])
def test_grouped_queries_come_back_as_they_were(size: str, tmp_path: Path) -> None:
    reference = hf_model(tiny(size))
    reference.save_pretrained(tmp_path / "source")
    back = export_checkpoint(import_checkpoint(tmp_path / "source", tmp_path / "megatron"), tmp_path / "hf")
    assert_equal(tensors(back), tensors(tmp_path / "source"))


@pytest.mark.parametrize("size", ["gemma2_27b", "gemma3_4b"])
def test_every_rule_is_undone_by_its_other_direction(size: str) -> None:
    gemma = tiny(size)
    shapes = {name: tensor.shape for name, tensor in hf_model(gemma).state_dict().items()}
    for rule in rules(gemma).values():
        parts = [torch.randn(shapes[name]) for name in rule.hf_names(0)]
        joined = rule.join(parts, gemma)
        for back, part in zip(rule.split(joined, gemma), parts, strict=True):
            assert torch.equal(back, part)
        sharded = [rule.shard(joined, rank, 2) for rank in range(2)]
        if rule.parallel_dim is None:
            assert all(torch.equal(shard, joined) for shard in sharded)
        else:
            whole = torch.cat(sharded, dim=rule.parallel_dim)
            assert torch.equal(whole, joined) == (rule.parts == 1), "a gated layer's ranks hold [gate_i; up_i]"
            assert torch.equal(whole.flatten().sort().values, joined.flatten().sort().values)


def test_several_files_with_an_index(source: Path, tmp_path: Path) -> None:
    reference = hf_model(tiny("gemma3_1b"))
    reference.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    assert_equal(tensors(tmp_path / "sharded"), tensors(source))
    written = tmp_path / "written"
    written.mkdir()
    ours = tensors(source)
    shapes = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    write_hf_weights(written, shapes, torch.float32, ours.items(), max_shard_bytes=200_000)
    assert len(list(written.glob("model-*-of-*.safetensors"))) > 3
    assert_equal(tensors(written), ours)


@pytest.mark.parametrize("size", ["gemma2_9b", "gemma3_1b", "gemma3_12b"])
def test_config_json_of_transformers_5_and_4(size: str, tmp_path: Path) -> None:
    gemma = tiny(size)
    hf_config(gemma).save_pretrained(tmp_path)
    assert read_hf_config(tmp_path) == gemma
    values = json.loads((tmp_path / "config.json").read_text())
    parameters = values.pop("rope_parameters")
    if gemma.family == "gemma2":
        values["rope_theta"] = parameters["rope_theta"]
    else:
        values["rope_theta"] = gemma.rope_theta
        values["rope_local_base_freq"] = gemma.rope_local_base_freq
        if gemma.rope_scaling_factor != 1.0:
            values["rope_scaling"] = {"rope_type": "linear", "factor": gemma.rope_scaling_factor}
    del values["layer_types"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_hf_config(tmp_path) == gemma


def refuses(source: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        import_checkpoint(source, tmp_path / "megatron")
    assert not (tmp_path / "megatron").exists()
    assert not list(tmp_path.glob(".megatron*")), "nothing half-written is left"


def test_no_folder(tmp_path: Path) -> None:
    refuses(tmp_path / "nowhere", tmp_path, "nowhere' does not exist")


def test_config_json_that_is_not_json(source: Path, tmp_path: Path) -> None:
    (source / "config.json").write_text("{")
    refuses(source, tmp_path, r"config\.json is not JSON")


def test_config_json_of_another_model(source: Path, tmp_path: Path) -> None:
    (source / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    refuses(source, tmp_path, r"describes \['LlamaForCausalLM'\], not a Gemma text model\n.*Gemma3ForCausalLM")


def test_config_json_that_lacks_a_number(source: Path, tmp_path: Path) -> None:
    values = json.loads((source / "config.json").read_text())
    del values["hidden_size"]
    (source / "config.json").write_text(json.dumps(values))
    refuses(source, tmp_path, "lacks 'hidden_size'")


LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("size", "changed", "said"),
    [
        ("gemma3_1b", {"hidden_activation": "silu"}, "hidden_activation = 'silu', and every gemma3 has 'gelu_pytorch"),
        ("gemma3_1b", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma3_1b", {"tie_word_embeddings": False}, "tie_word_embeddings = False, and every gemma3 has True"),
        ("gemma3_1b", {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": LINEAR}},
         "rope scaling 'linear', 'linear' in local layers; gemma3 has 'default' or 'linear', and 'default' in local"),
        ("gemma2_2b", {"rope_parameters": LINEAR}, "rope scaling 'linear', 'linear' in local layers; gemma2 has 'd"),
        ("gemma2_2b", {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
         "rope scaling 'linear', 'default' in local layers"),
    ],
)  # fmt: skip
def test_a_config_json_of_another_function(size: str, changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Hugging Face's model of each has other logits than one without what is changed."""
    hf_config(tiny(size)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | changed))
    with pytest.raises(CheckpointError, match=said):
        read_hf_config(tmp_path)


def test_a_head_is_the_embedding_or_refused(source: Path, tmp_path: Path) -> None:
    whole = load_file(source / "model.safetensors")
    embedding = whole["model.embed_tokens.weight"]
    save_file({**whole, "lm_head.weight": embedding + 1.0}, source / "model.safetensors", metadata={"format": "pt"})
    refuses(source, tmp_path, r"lm_head\.weight in .* is not model\.embed_tokens\.weight")
    save_file({**whole, "lm_head.weight": embedding.clone()}, source / "model.safetensors", metadata={"format": "pt"})
    back = export_checkpoint(import_checkpoint(source, tmp_path / "megatron"), tmp_path / "hf")
    assert_equal(tensors(back), whole)


def test_one_file_is_read_before_an_index_that_was_left(source: Path, tmp_path: Path) -> None:
    """As transformers has it."""
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    assert import_checkpoint(source, tmp_path / "megatron").is_dir()


@pytest.mark.parametrize("keep", [0, 7, 5000])
def test_a_truncated_file(source: Path, tmp_path: Path, keep: int) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refuses(source, tmp_path, "not a whole safetensors file")


def test_a_corrupt_header(source: Path, tmp_path: Path) -> None:
    path = source / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:40] = b"\xff" * 32
    path.write_bytes(content)
    refuses(source, tmp_path, "not a whole safetensors file")


def test_a_missing_file(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").unlink()
    refuses(source, tmp_path, r"lacks model\.safetensors")


def test_tensors_that_are_missing_unknown_or_of_another_shape(source: Path, tmp_path: Path) -> None:
    whole = load_file(source / "model.safetensors")
    norm = "model.layers.3.self_attn.q_norm.weight"

    def write(changed: dict[str, torch.Tensor]) -> None:
        save_file(changed, source / "model.safetensors", metadata={"format": "pt"})

    write({name: tensor for name, tensor in whole.items() if name != norm})
    refuses(source, tmp_path, f"lacks {norm} and 0 more")
    write({**whole, "model.layers.0.self_attn.q_proj.bias": torch.zeros(1)})
    refuses(source, tmp_path, r"unknown to Gemma, model\.layers\.0\.self_attn\.q_proj\.bias")
    write({**whole, norm: torch.zeros(3)})
    refuses(source, tmp_path, f"{norm} in .* does not have the shape that config.json implies")
    write({name: tensor.half() for name, tensor in whole.items()})
    refuses(source, tmp_path, r"are of F16\n.*bfloat16 or as float32")


def test_a_runs_folder_is_not_taken_for_its_checkpoint(source: Path, tmp_path: Path) -> None:
    step = import_checkpoint(source, tmp_path / "run" / "checkpoints" / "step_0000100")
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        with pytest.raises(CheckpointError, match=f"there is no checkpoint in {folder}\n  try: {step}"):
            export_checkpoint(folder, tmp_path / "hf")


def test_a_folder_that_nemo_cannot_name(source: Path) -> None:
    odd = source.rename(source.with_name("sft, second"))
    with pytest.raises(CheckpointError, match="nemo:// cannot name a folder 'sft, second'\n  try: output=FOLDER"):
        import_checkpoint(odd)


def test_what_exists_is_not_written_over(source: Path, tmp_path: Path) -> None:
    (tmp_path / "megatron").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        import_checkpoint(source, tmp_path / "megatron")


def test_one_rank_imports(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(CheckpointError, match="the work of one process, and this is rank 1") as raised:
        import_checkpoint(source, tmp_path / "made")
    assert "rank 0 alone" in (raised.value.hint or "")
    monkeypatch.setenv("RANK", "0")
    assert import_checkpoint(source, tmp_path / "made").is_dir()
