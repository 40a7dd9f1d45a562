"""What the test suite cannot see without a GPU, in one run: `python -m tests.gpu.check [PART ...]`.

Every size against Hugging Face on the GPU, with every attention core that is installed, packed rows, what is written
in Triton, a run that resumes exactly there, Transformer Engine's layers and FP8, generation. It stops at what fails.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

import launcher as run
from gemma_models import gemma3_1b
from gemma_models.architectures import ARCHITECTURES, GemmaConfig
from gemma_models.data import MockData
from gemma_models.generation.decode import decode
from gemma_models.generation.sampling import Sampling
from gemma_models.modeling.cores.fast import FastAttention
from gemma_models.modeling.kernels import Kernels, why_not
from gemma_models.settings import MegatronStrategy, Trainer
from gemma_models.training.recorded import output_of
from tests.gemma_models.packed_rows import alone_and_packed, apart, learnt
from tests.gemma_models.tiny import WINDOW, hf_model, logits, our_model, tiny

TOLERANCE = 5e-4


def main() -> None:
    import megatron.core
    import transformers

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(
        f"{gpu}, torch {torch.__version__}, megatron-core {megatron.core.__version__}, "
        f"transformers {transformers.__version__}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in sys.argv[1:] or PARTS:
            PARTS[part](folder)


def check_sizes(folder: Path) -> None:
    for size in ARCHITECTURES:
        check_size(size, folder / size)


def check_cores(folder: Path) -> None:
    for size in ("gemma2_2b", "gemma2_27b", "gemma3_1b", "gemma3_27b"):
        check_kernels(size, folder / size)


def check_rows(folder: Path) -> None:
    for size in ("gemma2_2b", "gemma2_27b", "gemma3_1b", "gemma3_27b"):
        check_packed(size, folder / size)


def check_resumes(folder: Path) -> None:
    for peft in ("none", "lora"):
        check_resume(folder, peft)


def check_size(size: str, folder: Path) -> None:
    """Logits past the window, in float32 within TOLERANCE and in bfloat16 as near as Hugging Face's own rounding."""
    reference = hf_model(tiny(size))
    reference.save_pretrained(folder)
    reference = reference.cuda()
    ids = torch.randint(0, 256, (2, 3 * WINDOW), generator=torch.Generator().manual_seed(1)).cuda()
    with torch.no_grad():
        expected = reference(ids).logits
        rounded = reference.bfloat16()(ids).logits
    with our_model(folder, "fp32", "gpu") as model:
        ours = logits(model, ids)
        said = decode(model, ids.tolist(), max_new_tokens=8, stop=set(), sampling=Sampling())
    difference = (ours - expected).abs().max().item()
    require(difference <= TOLERANCE, f"{size}: fp32 logits differ by {difference}")
    with our_model(folder, "bf16", "gpu") as model:
        ours_rounded = logits(model, ids)
    error = (ours_rounded - expected).abs().mean().item()
    theirs = (rounded - expected).abs().mean().item()
    require(error <= 1.1 * theirs, f"{size}: bf16 logits are {error} from fp32's, Hugging Face's {theirs}")
    print(f"{size}: max |logit difference| fp32 {difference:.1e}; bf16 error {error:.1e} (Hugging Face {theirs:.1e})")
    require(all(len(answer) == 8 for answer in said), f"{size}: generation gave {said}")


def check_kernels(size: str, folder: Path) -> None:
    """Each core, with compiled chains, is as near to float32 as Hugging Face in bfloat16; a window too wide is not."""
    gemma = tiny(size)
    reference = hf_model(gemma)
    reference.save_pretrained(folder)
    reference = reference.cuda()
    ids = torch.randint(0, 256, (2, 4 * WINDOW), generator=torch.Generator().manual_seed(2)).cuda()
    with torch.no_grad():
        expected = reference(ids).logits
        theirs = (reference.bfloat16()(ids).logits - expected).abs().mean().item()
    for core in ("flash", "te", "flex"):
        if (why := why_not(core, gemma, Trainer(max_steps=1))) is not None:
            print(f"{size}, {core}: NOT RUN: {why}")
            continue
        kernels = Kernels(attention=core, fused=True)
        with our_model(folder, "bf16", "gpu", kernels) as model:
            error = (logits(model, ids) - expected).abs().mean().item()
            for module in model.modules():
                if isinstance(module, FastAttention) and module.window is not None:
                    module.window += 1
            wrong = (logits(model, ids) - expected).abs().mean().item()
        require(error <= 1.1 * theirs, f"{size}, {core}: bf16 logits are {error} from fp32's, Hugging Face's {theirs}")
        require(wrong > 2 * error, f"{size}, {core}: a window one too wide is not seen: {wrong}, {error}")
        print(f"{size}, {core}: bf16 error {error:.1e} (Hugging Face {theirs:.1e}; a window one too wide {wrong:.1e})")


def check_passes(folder: Path) -> None:
    """What is written in Triton, against plain torch; a cap that is left out is seen."""
    from gemma_models.modeling import loss, norms
    from gemma_models.modeling.gpu import cross_entropy
    from gemma_models.modeling.gpu import norms as gpu_norms
    from gemma_models.modeling.gpu.gelu import GatedGelu

    draw = torch.Generator(device="cuda").manual_seed(3)
    x = torch.randn(37, 2, 2 * 1000, generator=draw, device="cuda", requires_grad=True)
    gate, up = x.chunk(2, dim=-1)
    plain = torch.nn.functional.gelu(gate, approximate="tanh") * up
    ours = GatedGelu(None)(x)
    weights = torch.randn(ours.shape, generator=draw, device="cuda")
    gradients = [torch.autograd.grad((value * weights).sum(), x)[0] for value in (plain, ours)]
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients[1], gradients[0])
    for shape, heads in (((37, 2, 1152), None), ((37, 2, 6, 256), 4)):
        # Queries are a part of what holds keys and values too.
        x = torch.randn(shape, generator=draw, device="cuda", requires_grad=True)
        weight = torch.randn(shape[-1], generator=draw, device="cuda", requires_grad=True)
        residual = torch.randn(shape, generator=draw, device="cuda", requires_grad=True)
        part = x if heads is None else x[..., :heads, :]
        added = residual if heads is None else None
        leaves = [x, weight] if heads else [x, weight, residual]
        values = [norm.rms_norm(part, weight, 1e-6, added) for norm in (norms, gpu_norms)]
        factor = torch.randn(values[0].shape, generator=draw, device="cuda")
        grads = [torch.autograd.grad((value * factor).sum(), leaves) for value in values]
        torch.testing.assert_close(values[1], values[0])
        torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-4)
    for cap in (None, 30.0):
        logits = 20 * torch.randn(19, 20_000, generator=draw, device="cuda")
        labels = torch.randint(-9_000, 25_000, (19,), generator=draw, device="cuda")  # some are another rank's
        weights = torch.rand(19, generator=draw, device="cuda")
        seen = loss.read(logits, labels, cap)
        torch.testing.assert_close(cross_entropy.read(logits, labels, cap), seen)
        require(not torch.allclose(cross_entropy.read(logits, labels, cap and 2 * cap), seen) or cap is None, "no cap")
        theirs = logits.clone()
        loss.to_gradient(theirs, labels, seen[0], weights, cap)
        cross_entropy.to_gradient(logits, labels, seen[0], weights, cap)
        torch.testing.assert_close(logits, theirs, atol=1e-6, rtol=1e-4)
    print("gated GELU, norms and loss in Triton: as in plain torch")


def check_adam(folder: Path) -> None:
    """Ten clipped steps of the kernel, against torch's AdamW on clipped gradients."""
    from types import SimpleNamespace

    from gemma_models.modeling.gpu.adam import ClippedAdamW
    from gemma_models.training.parallel import parallel_context

    draw = torch.Generator(device="cuda").manual_seed(4)
    start = [torch.randn(shape, generator=draw, device="cuda") for shape in ((300, 70), (5000,), (1,))]
    sides = [[tensor.clone() for tensor in start] for _ in range(2)]
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    theirs, inner = torch.optim.AdamW(sides[0], **options), torch.optim.AdamW(sides[1], **options)
    with parallel_context(MegatronStrategy(), accelerator="gpu"):
        group = torch.distributed.group.WORLD
        part: Any = SimpleNamespace(
            optimizer=inner,
            prepare_grads=lambda: None,
            get_main_grads_for_grad_norm=lambda: [tensor.grad for tensor in sides[1]],
            get_grad_stats_parallel_group=lambda: group,
            step_with_ready_grads=lambda: inner.step(),
            config=SimpleNamespace(clip_grad=1.0),
        )
        ours = ClippedAdamW(part)
        for _ in range(10):
            for mine, other in zip(*sides, strict=True):
                mine.grad = torch.randn(mine.shape, generator=draw, device="cuda")
                other.grad = 3.0 * mine.grad
            norm = torch.nn.utils.clip_grad_norm_(sides[0], 1.0)
            theirs.step()
            torch.testing.assert_close(ours.step(torch.tensor(3.0, device="cuda")), norm)
    torch.testing.assert_close(sides[1], sides[0])
    require(not torch.allclose(sides[1][0], start[0], atol=1e-2), "AdamW did nothing")
    print("AdamW in Triton: as torch's, clipped")


def check_packed(size: str, folder: Path) -> None:
    """Documents in one row have the loss and the gradients of the same ones alone, in bfloat16; without bounds, not.

    Without a GPU in float32, where FlexAttention has no gradients: `python -m tests.gpu.check packed` runs there, too.
    """
    on_gpu, length = torch.cuda.is_available(), 8 * WINDOW
    how: tuple[Any, Any] = ("bf16", "gpu") if on_gpu else ("fp32", "cpu")
    hf_model(tiny(size)).save_pretrained(folder)
    batches = alone_and_packed([[5 * WINDOW, 2 * WINDOW + 1], [3 * WINDOW, 1, 60]], length, 256)
    for core in ("local", "flash", "te", "flex") if on_gpu else ("local", "flex"):
        if (why := why_not(core, tiny(size), Trainer(max_steps=1))) is not None:
            print(f"{size}, {core}, packed: NOT RUN: {why}")
            continue
        kernels = Kernels(attention=core, fused=on_gpu)
        learns = on_gpu or core == "local"
        torch.compiler.reset()
        with our_model(folder, *how, kernels) as model, torch.set_grad_enabled(learns):
            model.config.calculate_per_token_loss = True
            device = next(model.parameters()).device
            alone, packed = ({name: tensor.to(device) for name, tensor in batch.items()} for batch in batches)
            seeing = {name: tensor for name, tensor in packed.items() if name != "cu_seqlens"}
            if learns:
                (loss, wanted), *others = (learnt(model, batch, length) for batch in (alone, packed, seeing))
                right, wrong = (apart(wanted, gradients) for _, gradients in others)
                ours = others[0][0]
            else:
                loss, ours, without = (float(output_of(model, batch, length)) for batch in (alone, packed, seeing))
                right, wrong = abs(ours / loss - 1), abs(without / loss - 1)
        require(abs(ours / loss - 1) < (5e-3 if on_gpu else 1e-5), f"{size}, {core}, packed: loss {ours}, alone {loss}")
        require(wrong > 4 * right, f"{size}, {core}, packed: {right} from alone, without bounds {wrong}")
        print(
            f"{size}, {core}, packed: {right:.1e} from alone (loss {ours / loss - 1:.1e}; without bounds {wrong:.1e})"
        )


def check_losses(folder: Path) -> None:
    """Ten steps by plain torch, by what is fast, and recorded: the same losses, as far as bfloat16 goes."""
    losses = {}
    engine = {"transformer_impl": "transformer_engine"}
    for name, settings in {
        "plain": {"attention": "local", "fusion": False},
        "fast": {},
        "recorded": {"cuda_graphs": True},
        "transformer_engine": engine,
        "transformer_engine recorded": {**engine, "cuda_graphs": True},
        "fp8 tensorwise": {**engine, "fp8_recipe": "tensorwise"},
        "fp8 blockwise": {**engine, "fp8_recipe": "blockwise"},
        "fp8 recorded": {**engine, "fp8_recipe": "tensorwise", "cuda_graphs": True},
    }.items():
        task = recipe(folder, f"losses-{name}", tiny("gemma3_1b"), "none")
        for setting, value in settings.items():
            setattr(task.trainer, setting, value)
        task.trainer.max_steps, task.data.seq_length = 10, 128
        run.run(task, direct=True)
        lines = (folder / f"losses-{name}" / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines if "loss" in line]
    for name in losses:
        apart = max(abs(ours - plain) for ours, plain in zip(losses[name], losses["plain"], strict=True))
        require(apart < (0.3 if "fp8" in name else 0.02), f"losses, {name}: {losses[name]}, plain: {losses['plain']}")
        print(f"losses of ten steps, {name}: at most {apart:.1e} from plain torch's, from {losses[name][0]:.3f}")


def check_recomputed(folder: Path) -> None:
    """Under adapters with dropout, what is computed again drops what it dropped before: the gradients are the same."""
    norms = {}
    for how in (None, "selective", "full"):
        task = recipe(folder, f"recomputed-{how}", tiny("gemma3_1b"), "lora")
        task.peft.dropout, task.trainer.recompute_granularity, task.trainer.max_steps = 0.5, how, 3
        run.run(task, direct=True)
        lines = (folder / f"recomputed-{how}" / "metrics.jsonl").read_text().splitlines()
        norms[how] = [json.loads(line)["grad_norm"] for line in lines if "grad_norm" in line]
    apart = max(abs(ours / kept - 1.0) for how in norms for ours, kept in zip(norms[how], norms[None], strict=True))
    require(apart < 1e-3, f"gradients' norms, by what is computed again: {norms}")
    print(f"gradients under dropout, computed again: norms at most {apart:.1e} apart")


def check_layers(folder: Path) -> None:
    """A checkpoint of Transformer Engine's layers goes on with Megatron's own, and the other way round."""
    losses = []
    for name, layers in (("there", ("local", "transformer_engine")), ("back", ("transformer_engine", "local"))):
        for stop, layer in zip((5, 10), layers, strict=True):
            task = recipe(folder, f"layers-{name}", tiny("gemma3_1b"), "none")
            task.trainer.transformer_impl, task.trainer.max_steps = layer, stop
            losses.append(run.run(task, direct=True)["loss"])
    require(abs(losses[1] - losses[3]) < 0.02, f"layers exchanged in the middle: {losses}")
    print(f"layers exchanged in the middle of a run: {losses[1]:.4f} and {losses[3]:.4f}")


def check_resume(folder: Path, peft: str) -> None:
    """Ten steps, and five resumed to ten, end at the same loss, in bfloat16."""
    losses = []
    for name, stops in (("straight", [10]), ("resumed", [5, 10])):
        for stop in stops:
            task = recipe(folder, f"{peft}-{name}", tiny("gemma3_1b"), peft)
            task.trainer.max_steps = stop
            result = run.run(task, direct=True)
        losses.append(result["loss"])
    require(losses[0] == losses[1], f"{peft}: the resumed run ends at {losses[1]}, the straight one at {losses[0]}")
    print(f"peft {peft}: a resumed run ends at the same loss, {losses[0]}")


def recipe(folder: Path, name: str, gemma: GemmaConfig, peft: str) -> Any:
    if not (folder / "gemma3_1b").exists():
        hf_model(gemma).save_pretrained(folder / "gemma3_1b")
    task = gemma3_1b.finetune_recipe(name=name, dir=folder, peft_scheme=peft)
    task.model = run.Config(GemmaConfig, **asdict(gemma))
    task.data = run.Config(MockData, vocab_size=256, seq_length=32, micro_batch_size=2, global_batch_size=4)
    task.resume.restore_config.path, task.resume.resume_if_exists = folder / "gemma3_1b", True
    task.trainer.val_check_interval = None
    task.optim.config.lr, task.optim.lr_scheduler.warmup_steps, task.optim.lr_scheduler.decay_steps = 1e-2, 1, 10
    return task


PARTS: Final = {
    "passes": check_passes,
    "sizes": check_sizes,
    "cores": check_cores,
    "packed": check_rows,
    "resumes": check_resumes,
    "adam": check_adam,
    "losses": check_losses,
    "recomputed": check_recomputed,
    "layers": check_layers,
}


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(f"FAILED {otherwise}")


if __name__ == "__main__":
    main()
