"""What of the user's own environment goes with a task to a place that has none of it: a cluster, a container.

Tasks on this machine inherit all of it. Elsewhere these few go along, so that a token which is set here need not be
written into a script: see the table. What stands in the executor's `env_vars` comes first, and a Script has its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from executors.secrets import is_secret

if TYPE_CHECKING:
    from executors.base import Executor


@dataclass(frozen=True)
class Carried:
    """A variable, and what reads it. Secrets go anywhere, folders where they are the same ones."""

    variable: str
    what: str

    @property
    def anywhere(self) -> bool:
        return is_secret(self.variable)


CARRIED: Final = (
    Carried("HF_TOKEN", "Hugging Face's hub, for models and data that ask who one is"),
    Carried("WANDB_API_KEY", "Weights & Biases"),
    Carried("HF_HOME", "where Hugging Face keeps what it has fetched"),
    Carried("NEMO_CACHE_DIR", "where checkpoints that were imported are kept (`nemo://`)"),
    Carried("SAVE_DIR", "where a recipe without a `dir` keeps its runs"),
)
"""The table."""


def carried(executor: Executor) -> dict[str, str]:
    """What goes along with the tasks of an executor, besides what they inherit and what it gives them itself."""
    given = {**executor.inherited(), **executor.env_vars}
    return {
        each.variable: os.environ[each.variable]
        for each in CARRIED
        if os.environ.get(each.variable) and each.variable not in given and (each.anywhere or executor.same_folders)
    }
