"""The main job, on the real Gemma 3 270M and this machine's CPU: `make demo`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import launcher as run
from gemma_models import gemma3_270m, generate, import_checkpoint
from gemma_models.data import EXAMPLES_TRAIN, EXAMPLES_VALIDATION
from gemma_models.demo.curve import save_curve, show_curve
from gemma_models.demo.weights import fetch
from launcher.config import Partial

FOLDER = Path(".demo")
# Messages that are in no file of the examples.
PROMPTS = [
    "Before the fair opens, Ilse must hang the lanterns, Bruno will taste the soup and Keiko should count tickets.",
    "Thanks for waiting! Anton has to wash the red van and Mirela is to phone the dentist about Tuesday.",
    "The storm is over: Fatou can open the shutters, Piet ought to sweep the yard, and Rosa will feed the geese.",
]


def recipe(checkpoint: Path, name: str) -> Partial[object]:
    """LoRA fine-tuning of Gemma 3 270M on the examples, sized for two CPU cores."""
    task = gemma3_270m.finetune_recipe(name=name, dir=FOLDER / "runs")
    task.resume.restore_config.path = checkpoint.resolve()
    task.data.train_path, task.data.validation_path = EXAMPLES_TRAIN, EXAMPLES_VALIDATION
    task.data.seq_length, task.data.micro_batch_size, task.data.global_batch_size = 96, 4, 4
    task.trainer.accelerator = "cpu"
    task.trainer.max_steps, task.trainer.val_check_interval = 60, 20
    task.optim.config.lr, task.optim.lr_scheduler.warmup_steps = 1e-3, 6
    return task


def main() -> None:
    hf = fetch(FOLDER / "gemma-3-270m")
    checkpoint = FOLDER / "gemma-3-270m-megatron"
    if not checkpoint.exists():
        print(f"\nImporting {hf} into the Megatron checkpoint {checkpoint}", flush=True)
        import_checkpoint(hf, checkpoint)

    print("\nWhat the model says before it is fine-tuned:", flush=True)
    answer(checkpoint)

    print("\nFine-tuning it: gemma_models/demo/__main__.py is the launch script.", flush=True)
    task = recipe(checkpoint, time.strftime("%Y%m%d-%H%M%S"))
    result = run.run(task, executor=run.LocalExecutor(), name="gemma3-270m-demo", progress=True)

    metrics = result.metrics()
    picture = result.folder / "loss.png"
    show_curve(metrics)
    save_curve(metrics, picture)

    print("\nWhat it says now:", flush=True)
    answer(Path(result.value["checkpoint"]))

    held_out = [line["val_loss"] for line in metrics if "val_loss" in line]
    print(
        f"\nHeld-out loss: {held_out[0]:.3f} -> {held_out[-1]:.3f} nats a token\n"
        f"Loss curve:    {picture}\n"
        f"Checkpoint:    {result.value['checkpoint']}\n"
        f"The experiment: {sys.prefix}/bin/gemma-launch experiment status {result.experiment}"
    )


def answer(model: Path) -> None:
    for prompt, text in zip(PROMPTS, generate(model, PROMPTS, chat=True, accelerator="cpu"), strict=True):
        print(f"\n> {prompt}\n{text}", flush=True)


if __name__ == "__main__":
    main()
