"""What users of this launcher and of its peers write, as they write it: whole scripts in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.store import Store

QUICKSTART = """
from gemma_models import (
    AutoResume, CosineAnnealing, GemmaConfig, Logger, MegatronOptimizer, MegatronStrategy, MockData, OptimizerConfig,
    Trainer, train,
)

if __name__ == "__main__":
    seq_length = 32
    data = MockData(seq_length=seq_length, global_batch_size=4, vocab_size=256)
    model = GemmaConfig(
        family="gemma3", num_layers=2, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4, num_query_groups=1,
        kv_channels=16, vocab_size=256, max_position_embeddings=128, query_pre_attn_scalar=16, sliding_window=16,
        sliding_window_pattern=2, rope_theta=1e6, qk_layernorm=True,
    )
    strategy = MegatronStrategy(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
    trainer = Trainer(devices=1, max_steps=12, accelerator="cpu", precision="fp32", strategy=strategy)
    optim = MegatronOptimizer(config=OptimizerConfig(lr=6e-3), lr_scheduler=CosineAnnealing(warmup_steps=2))
    result = train(
        model=model,
        data=data,
        trainer=trainer,
        log=Logger(dir="checkpoints", name="quick"),
        resume=AutoResume(),
        optim=optim,
        tokenizer="data",
    )
    print("last loss", result["loss"])
"""


def python(folder: Path, script: str, name: str = "train.py") -> str:
    (folder / name).write_text(script)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, name], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quickstart_in_a_plain_script_and_the_same_script_in_an_experiment(tmp_path: Path) -> None:
    said = python(tmp_path, QUICKSTART)
    assert float(said.split()[-1]) < 5.0, "ln(256) = 5.5 is where an untrained model stands"
    assert (tmp_path / "checkpoints/quick").is_dir()
    launched = python(
        tmp_path,
        """
import launcher as run

if __name__ == "__main__":
    with run.Experiment("quickstart", log_level="INFO") as exp:
        exp.add(run.Script(inline="python train.py"), executor=run.LocalExecutor(packager=run.PatternPackager(
            include_pattern="train.py", relative_path=".")), name="train")
        exp.run(detach=False)
    exp.logs("train")
""",
        "launch.py",
    )
    assert [line for line in launched.splitlines() if line.startswith("rank_0.out| last loss")] == [
        f"rank_0.out| {said.splitlines()[-1]}"
    ]


CONTRACT = """
import os
import launcher as run
from gemma_models import gemma2_2b, gemma3_1b
from my_data import MyDataModule

def small(recipe):
    for name, value in dict(num_layers=2, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4,
                            num_query_groups=2, kv_channels=16, vocab_size=256, query_pre_attn_scalar=16,
                            sliding_window=16).items():
        setattr(recipe.model, name, value)
    recipe.trainer.accelerator = "cpu"
    recipe.trainer.max_steps = 3
    recipe.optim.lr_scheduler.warmup_steps = 0
    recipe.trainer.val_check_interval = None

if __name__ == "__main__":
    recipe = gemma2_2b.finetune_recipe(name="sft", dir="/ckpt", num_nodes=2, num_gpus_per_node=8,
                                       peft_scheme="lora", packed_sequence=False)
    recipe.trainer.max_steps = 500                      # any value, before it runs
    recipe.optim.config.lr = 5e-5                       # on this recipe alone, and in what is saved
    recipe.peft.target_modules = ["linear_qkv"]
    recipe.resume.restore_config.path = "nemo://google/gemma-2-2b-it"   # or hf://, or a folder
    recipe.data = run.Config(MyDataModule, path="...")
    untouched = gemma2_2b.finetune_recipe(peft_scheme="lora")
    assert untouched.trainer.max_steps == 1000 and untouched.optim.config.lr == 1e-4
    assert untouched.peft.target_modules != ["linear_qkv"]
    with run.Experiment("gemma2-sft", log_level="INFO") as exp:
        exp.add(recipe, executor=run.LocalExecutor(nodes=2, ntasks_per_node=8, launcher="torchrun"), name="train")
        exp.dryrun()

    recipe = gemma3_1b.pretrain_recipe(name="pre", dir=os.path.abspath("ckpt"))
    small(recipe)
    recipe.data = run.Config(MyDataModule, path="...")
    print("direct", run.run(recipe, direct=True)["step"])

    recipe.log.name, recipe.trainer.devices = "torchrun", 2
    result = run.run(recipe, executor=run.LocalExecutor(ntasks_per_node=2, launcher="torchrun"))
    print("torchrun", result.value["step"])

    cluster = run.LocalExecutor(ntasks_per_node=2, packager=run.PatternPackager(
        include_pattern=["train.py", "my_data.py"], relative_path=os.getcwd()))
    cluster.env_vars = {"MARK": "m"}
    cluster.retries = 2                                 # executors stay mutable; a misspelt attribute is refused
    try:
        cluster.retry = 3
    except run.LaunchError as error:
        print("refused", str(error).splitlines()[-1].strip())
    single = cluster.clone(ntasks_per_node=1)
    recipe.log.name = "after"
    with run.Experiment("gemma-sft", log_level="INFO") as exp:
        prep = exp.add(run.Script(inline="echo prepared $MARK"), executor=single, name="prepare")
        exp.add(recipe, executor=cluster, name="train", dependencies=[prep], tail_logs=True)
        exp.run(detach=False)
    print("experiment", exp.id)
"""
MY_DATA = """
from dataclasses import dataclass
from gemma_models import MockData

@dataclass(kw_only=True)
class MyDataModule(MockData):
    path: str
    vocab_size: int = 256
    seq_length: int = 16
    global_batch_size: int = 16
"""


def test_what_the_design_promises_of_a_launch_script(tmp_path: Path) -> None:
    (tmp_path / "my_data.py").write_text(MY_DATA)
    said = python(tmp_path, CONTRACT)
    lines = said.splitlines()
    assert "ranks   16 (2 x 8)" in lines
    assert {"max_steps: 500", "lr: 5.0e-05", "path: nemo://google/gemma-2-2b-it"} <= {line.strip() for line in lines}
    assert {"direct 3", "torchrun 3", "refused try: 'retries'"} <= set(lines)
    record = Store().get(lines[-1].split()[-1])
    assert [str(task.status) for task in record.tasks] == ["succeeded", "succeeded"]
    assert (record.folder / "prepare/rank_0.out").read_text() == "prepared m\n"
    assert any(line.startswith("train rank_0.") for line in lines)
    assert json.loads((record.folder / "train/result.json").read_text())["step"] == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("recipe.trainer.max_step = 5", ["Trainer has no parameter 'max_step'", "set at: train.py:5", "'max_steps'"]),
        ("recipe.trainer.max_steps = 'abc'", ["trainer.max_steps is 'abc'", "set at: train.py:5"]),
        ("recipe.trainer.devices = 3", ["trainer.devices = 3", "train.py:5", "train.py:6"]),
        ("recipe.data = object()", ["data is <object", "train.py:5"]),
        ("recipe.trainer.callback = lambda: 1", ["no parameter 'callback'"]),
    ],
)
def test_a_mistake_is_said_with_its_line(tmp_path: Path, line: str, said: list[str]) -> None:
    (tmp_path / "train.py").write_text(
        "import launcher as run\nfrom gemma_models import gemma3_270m\nif __name__ == '__main__':\n"
        f"    recipe = gemma3_270m.pretrain_recipe()\n    {line}\n    executor = run.LocalExecutor(ntasks_per_node=2)\n"
        "    run.run(recipe, executor)\n"
    )
    done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for part in said:
        assert part in done.stderr
    assert "Traceback" not in done.stderr
