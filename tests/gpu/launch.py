"""Who gets which GPU, on a machine with two or more: `python -m tests.gpu.launch`.

It is not part of `make test`, which finds no GPU where it runs; what it checks there is tested with made-up names.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import launcher as run
from executors.machine import gpus


def hold(seconds: float) -> dict[str, Any]:
    """The GPU that torch sees first, and from when to when it was held."""
    import torch

    started = time.time()
    torch.zeros(1, device="cuda")
    time.sleep(seconds)
    properties = torch.cuda.get_device_properties(0)
    return {"gpu": str(properties.uuid), "count": torch.cuda.device_count(), "from": started, "to": time.time()}


def check_disjoint(held: list[dict[str, Any]]) -> None:
    for index, one in enumerate(held):
        for other in held[index + 1 :]:
            apart = one["to"] <= other["from"] or other["to"] <= one["from"]
            if one["gpu"] == other["gpu"] and not apart:
                raise SystemExit(f"two tasks had {one['gpu']} at the same time: {one} {other}")


def main() -> None:
    import torch

    if len(gpus()) != torch.cuda.device_count() or len(gpus()) < 2:
        raise SystemExit(f"we see GPUs {gpus()}, torch {torch.cuda.device_count()} of them")
    count = len(gpus()) + 1
    with run.Experiment("one too many", log_level="WARNING") as experiment:
        for number in range(count):
            experiment.add(run.Partial(hold, seconds=2.0), name=str(number))
        held = [result.value for result in experiment.run(progress=False)]
    check_disjoint(held)
    print(f"{count} tasks on {len({one['gpu'] for one in held})} GPUs, one each: {[one['count'] for one in held]}")

    launches = [run.run(run.Partial(hold, seconds=2.0), name=f"launcher {n}", detach=True) for n in range(count)]
    held = [launch.wait()[0].value for launch in launches]
    check_disjoint(held)
    print(f"{count} launchers that know nothing of each other shared {len({one['gpu'] for one in held})} GPUs")

    from gemma_models import gemma3_1b

    recipe = gemma3_1b.pretrain_recipe(name="tp2", dir=os.path.abspath("checkpoints"), num_gpus_per_node=2)
    recipe.model.num_layers = 7
    recipe.trainer.strategy.tensor_model_parallel_size = 2
    recipe.data.seq_length, recipe.data.global_batch_size = 256, 4
    recipe.optim.lr_scheduler.warmup_steps = 1
    recipe.trainer.max_steps, recipe.trainer.val_check_interval = 5, None
    for launcher in (None, "torchrun"):
        recipe.log.name = f"tp2-{launcher}"
        result = run.run(recipe, run.LocalExecutor(ntasks_per_node=2, launcher=launcher), progress=False)
        print(f"TP=2 through NCCL, launcher={launcher}: losses {[line['loss'] for line in result.metrics()]}")

    script = Path("trivial.py")
    script.write_text(
        "import os\nimport launcher as run\nif __name__ == '__main__':\n"
        "    run.run(run.Partial(os.getpid), progress=False)\n"
    )
    walls = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, str(script)], check=True, capture_output=True)
        walls.append(time.perf_counter() - started)
    print(f"a trivial task through LocalExecutor: {sorted(walls)[2]:.3f} s, the middle of 5 cold runs")


if __name__ == "__main__":
    main()
