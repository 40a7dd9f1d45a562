"""What the environment variables of a run depend on, read from its recipe and its executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from executors.architecture import Architecture, local_architecture

if TYPE_CHECKING:
    from executors.base import Executor


@dataclass(frozen=True, kw_only=True)
class Situation:
    """A run on GPUs. What a recipe does not say is off.

    architecture: of the GPUs; None if it is not known.
    nodes, devices: machines, and GPUs of each. tp, pp, cp, dp: tensor, pipeline, context and data parallel sizes.
    overlap: gradients are reduced, or parameters gathered, while something is computed.
    user_buffers: NCCL works in buffers that were registered with it, instead of copying. nvls: NVLink SHARP is asked
        for, by those buffers or by name.
    softcap: the scores of attention are capped (Gemma 2). attention_backend: Megatron's, "auto" unless it is set.
    container: the software is an image's, in versions that nobody here knows.
    """

    architecture: Architecture | None = None
    nodes: int = 1
    devices: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    sequence_parallel: bool = False
    fsdp: bool = False
    overlap: bool = False
    user_buffers: bool = False
    nvls: bool = False
    cuda_graphs: bool = False
    deterministic: bool = False
    precision: str = ""
    family: str = ""
    softcap: bool = False
    attention_backend: str = "auto"
    peft: bool = False
    container: bool = False

    @property
    def ranks(self) -> int:
        return self.nodes * self.devices

    @property
    def dp(self) -> int:
        return max(1, self.ranks // (self.tp * self.pp * self.cp))

    def with_given(self, given: Mapping[str, str]) -> Situation:
        """The same, with what the user's own variables ask for."""
        buffers = self.user_buffers or given.get("TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK") == "1"
        return replace(self, user_buffers=buffers, nvls=self.nvls or buffers or names_nvls(given.get("NCCL_ALGO", "")))

    def describe(self) -> str:
        """In a line: what is trained, and how it is spread."""
        method = "adapters" if self.peft else "every weight"
        sizes = {"TP": self.tp, "PP": self.pp, "CP": self.cp, "DP": self.dp}
        flags = {
            "sequence parallel": self.sequence_parallel,
            "FSDP": self.fsdp,
            "overlapped": self.overlap,
            "user buffers": self.user_buffers,
            "CUDA graphs": self.cuda_graphs,
            "deterministic": self.deterministic,
            "in a container": self.container,
        }
        parts = [self.family, method, self.precision, " ".join(f"{name}{size}" for name, size in sizes.items())]
        return ", ".join(filter(None, [*parts, *(name for name, on in flags.items() if on)]))


def names_nvls(algorithms: str) -> bool:
    """Whether NCCL_ALGO asks for NVLink SHARP: "ring;allreduce:nvls,tree" does, "^nvls" leaves it out."""
    lists = [part.rpartition(":")[2] for part in algorithms.lower().split(";")]
    return any(not names.startswith("^") and {"nvls", "nvlstree"}.intersection(names.split(",")) for names in lists)


_GRAPHS = ("cuda_graphs", "cuda_graph_impl", "enable_cuda_graph", "external_cuda_graph")
_MEGATRON = "tensor_model_parallel_size"
_FSDP = ("fsdp", "use_megatron_fsdp", "use_custom_fsdp", "use_torch_fsdp2")


def situation_of(task: Any, executor: Executor | None) -> Situation | None:
    """What a task on an executor (None: in this process) is; None for what is no training on GPUs.

    A training is a task whose `trainer` has an `accelerator`, which is "gpu", and a Megatron `strategy`; everything
    else is looked up by its Megatron name, wherever in the configuration it stands.
    """
    from launcher.config import Call
    from launcher.tree import arguments, has, walk

    if not isinstance(task, Call):
        return None
    parts = arguments(task)
    trainer = parts.get("trainer")
    chosen = arguments(trainer) if isinstance(trainer, Call) else {}
    strategy = chosen.get("strategy")
    if chosen.get("accelerator") != "gpu" or not isinstance(strategy, Call) or not has(strategy, _MEGATRON):
        return None
    found: dict[int | str, Any] = {}
    for _, config in walk(task):
        for name, value in arguments(config).items():
            found.setdefault(name, value)

    def size(name: str) -> int:
        value = found.get(name)
        return value if type(value) is int and value > 0 else 1

    def on(*names: str) -> bool:
        return any(found.get(name) not in (None, False, 0, "", "none") for name in names)

    def text(name: str, default: str = "") -> str:
        value = found.get(name)
        return str(getattr(value, "name", value)) if value is not None else default

    return Situation(
        architecture=local_architecture() if executor is None else executor.architecture(),
        nodes=size("num_nodes") if executor is None else executor.nodes,
        devices=size("devices") if executor is None else executor.ntasks_per_node,
        tp=size(_MEGATRON),
        pp=size("pipeline_model_parallel_size"),
        cp=size("context_parallel_size"),
        sequence_parallel=on("sequence_parallel"),
        fsdp=on(*_FSDP),
        overlap=on("overlap_grad_reduce", "overlap_param_gather"),
        user_buffers=on("nccl_ub"),
        cuda_graphs=on(*_GRAPHS),
        deterministic=on("deterministic", "deterministic_mode"),
        precision=text("precision"),
        family=text("family"),
        softcap=on("attn_logit_softcapping"),
        attention_backend=text("attention_backend", "auto"),
        peft=parts.get("peft") is not None,
        container=bool(getattr(executor, "container_image", None)),
    )
