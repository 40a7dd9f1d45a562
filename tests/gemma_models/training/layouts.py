"""Every parallel layout that is held to the run of one process: what it is, and what each of its ranks must hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemma_models.settings import MegatronStrategy

WHOLE = [[[1, 2, 3, 4, 5, 6]]]
HALVES = [[[1, 2, 3]], [[4, 5, 6]]]
TURNS = [[[1, 2], [5]], [[3, 4], [6]]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """``stages``: of each pipeline stage, the layers of its chunks. ``control`` is what, broken, must be seen.

    ``variant``: "packed" rows of documents, or a "narrow" window, shorter than a rank's chunk of the sequence.
    """

    processes: int
    strategy: MegatronStrategy
    control: str
    stages: list[list[list[int]]]
    micro_batch_size: int
    variant: str = "plain"


def layout(
    processes: int,
    control: str,
    *,
    tp: int = 1,
    pp: int = 1,
    vp: int | None = None,
    cp: int = 1,
    sp: bool = False,
    split: list[int] | None = None,
    shared: bool = False,
    overlap: bool = False,
    stages: list[list[list[int]]] = WHOLE,
    rows: int | None = None,
    **other: Any,
) -> Layout:
    """``rows`` of a micro-batch, of the four that all replicas have a step; all at once but where there are stages."""
    strategy = MegatronStrategy(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vp,
        pipeline_model_parallel_layout=split,
        context_parallel_size=cp,
        sequence_parallel=sp,
        use_distributed_optimizer=shared or overlap,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap,
    )
    rows = rows or (2 if pp > 1 or processes > tp * cp else 4)
    return Layout(
        processes=processes, strategy=strategy, control=control, stages=stages, micro_batch_size=rows, **other
    )


# Gemma 2 alternates local and global layers, Gemma 3 has a global one after five: a cut in the middle of six layers
# leaves a second stage that begins with a global layer, or whose third layer is the only one. The small Gemma 3 has one
# group of keys, as 270M and 1B have: fewer than any number of tensor-parallel ranks; Gemma 2 has two.
LAYOUTS: dict[str, Layout] = {
    "tp": layout(2, "unsummed_hidden", tp=2),
    "tp-sp": layout(2, "unsummed_norms", tp=2, sp=True),
    "pp": layout(2, "local_numbers", pp=2, stages=HALVES),
    "pp-uneven": layout(2, "local_numbers", pp=2, split=[1, 5], stages=[[[1]], [[2, 3, 4, 5, 6]]]),
    "vpp": layout(2, "local_numbers", pp=2, vp=2, stages=TURNS),
    "cp": layout(2, "local_positions", cp=2),
    "cp-narrow": layout(2, "wider_window", cp=2, variant="narrow"),
    "cp-packed": layout(2, "one_document", cp=2, variant="packed"),
    "dp": layout(2, "unsummed_replicas"),
    "dp-shared": layout(2, "unsummed_replicas", shared=True),
    "dp-overlap": layout(2, "ungathered_weights", overlap=True, rows=1),
    "tp4-sp": layout(4, "unsummed_norms", tp=4, sp=True),
    "tp-sp-vpp": layout(4, "local_numbers", tp=2, sp=True, pp=2, vp=2, stages=TURNS),
    "tp-sp-cp": layout(4, "local_positions", tp=2, sp=True, cp=2),
    "tp-sp-dp-overlap": layout(4, "unsummed_replicas", tp=2, sp=True, overlap=True),
    "pp4": layout(4, "local_numbers", pp=4, stages=[[[1, 2]], [[3, 4]], [[5]], [[6]]]),
    "vpp-cp-shared": layout(4, "local_positions", pp=2, vp=2, cp=2, shared=True, stages=TURNS),
    "pp-dp-overlap": layout(4, "local_numbers", pp=2, overlap=True, stages=HALVES),
    "cp4-packed": layout(4, "one_document", cp=4, variant="packed"),
    "cp-dp-overlap": layout(4, "local_positions", cp=2, overlap=True),
}
