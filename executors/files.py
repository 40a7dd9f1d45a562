"""A plan's files where it runs on this file system: what it reads, its secrets, and its copy of the code."""

from __future__ import annotations

import json
from collections.abc import Sequence

from executors.base import Plan
from executors.secrets import write_private
from launcher.worker import JobFiles


def write_files(plan: Plan) -> None:
    """What may be seen of them, into its folder."""
    for name, text in plan.files.items():
        (plan.folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")


def bring_here(plans: Sequence[Plan]) -> None:
    """All that they need. Raises PackagingError."""
    for plan in plans:
        write_files(plan)
        if plan.secrets:
            write_private(JobFiles(plan.folder).secrets, json.dumps(plan.secrets))
        if plan.package is not None and plan.copy is not None and not plan.copy.exists():
            plan.package.copy_to(plan.copy)
