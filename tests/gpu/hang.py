"""A rank that keeps others waiting in NCCL is named, and runs that are asked to stop go on: `python -m tests.gpu.hang`.

For a machine with two GPUs or more; not part of `make test`, which tests the same with gloo.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import launcher as run
from experiments.store import Store
from launcher.heartbeat import beat
from launcher.worker import JobFiles


def steps(stuck: int) -> None:
    """Steps that two GPUs take together; one rank gets stuck before the fourth."""
    import torch
    import torch.distributed as dist

    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl")
    for step in range(6):
        load_batch(step == 3 and rank == stuck)
        value = torch.ones(1024, device="cuda")
        dist.all_reduce(value)
        value.sum().item()
        beat()


def load_batch(stuck: bool) -> None:
    if stuck:
        time.sleep(300)


def check_hang(stuck: int) -> None:
    two = run.LocalExecutor(ntasks_per_node=2, step_timeout=0.25)
    began = time.monotonic()
    try:
        run.run(run.Partial(steps, stuck), two, name=f"hang {stuck}", progress=False)
    except run.ExperimentFailed as error:
        print(f"rank {stuck} hangs, seen after {time.monotonic() - began:.0f} s: rank {error.rank}: {error.cause}")
        if error.rank != stuck or "load_batch" not in error.cause:
            raise SystemExit(f"another rank is blamed than {stuck}") from None
    else:
        raise SystemExit("a hang was not seen")
    files = JobFiles(Store().find_title(f"hang {stuck}").task().folder)
    for rank in range(2):
        record = files.flight_record(rank)
        entries = json.loads(record.read_text())["entries"] if record.exists() else None
        print(f"  flight record of rank {rank}: {None if entries is None else len(entries)} collectives")


def check_stop() -> None:
    from gemma_models import gemma3_1b

    def losses(name: str, stop_after: int | None) -> list[tuple[int, float]]:
        recipe = gemma3_1b.pretrain_recipe(name=name, dir=str(Path("checkpoints").absolute()), num_gpus_per_node=2)
        recipe.model.num_layers = 7
        recipe.trainer.strategy.tensor_model_parallel_size = 2
        recipe.trainer.max_steps = 12
        recipe.trainer.log_every_n_steps = 1
        recipe.trainer.val_check_interval = None
        recipe.optim.lr_scheduler.warmup_steps = 1
        recipe.log.ckpt.every_n_train_steps = None
        recipe.data.seq_length, recipe.data.global_batch_size = 256, 4
        with run.Experiment(name) as experiment:
            experiment.add(recipe, executor=run.LocalExecutor(ntasks_per_node=2, retries=1), name="train")
            thread = threading.Thread(target=stop, args=(experiment, stop_after))
            if stop_after is not None:
                thread.start()
            experiment.run(progress=False)
        lines = [line for path in experiment.folder.rglob("metrics.jsonl") for line in path.read_text().splitlines()]
        return sorted({(line["step"], line["loss"]) for line in map(json.loads, lines) if "loss" in line})

    def stop(experiment: run.Experiment, after: int | None) -> None:
        files = JobFiles(experiment.folder / "train")
        while not files.metrics.exists() or len(files.metrics.read_text().splitlines()) < (after or 0):
            time.sleep(0.02)
        files.stop.touch()
        while not files.saved.exists():
            time.sleep(0.02)
        files.stop.unlink()

    whole, stopped = losses("whole", None), losses("stopped", 4)
    print(f"losses of 12 steps, uninterrupted and stopped in between: {whole == stopped}, {whole[-1]} {stopped[-1]}")
    if whole != stopped or len(whole) != 12:
        raise SystemExit(f"{whole}\n{stopped}")


def main() -> None:
    for stuck in range(2):
        check_hang(stuck)
    check_stop()


if __name__ == "__main__":
    main()
