"""Steps of a run under a profiler."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity

from gemma_models.settings import Profile


class Profiler:
    """Begins before the first of the steps that ``profile`` names and ends after the last, on the ranks it names.

    A run that ends meanwhile leaves what there is. torch's traces go to ``folder``/profile.
    """

    def __init__(self, profile: Profile | None, folder: Path) -> None:
        self.profile = profile if profile is not None and dist.get_rank() in profile.ranks else None
        self.folder = folder / "profile"
        self._begun: int | None = None
        self._last = 0
        self._torch: torch.profiler.profile | None = None

    def __enter__(self) -> Profiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def before(self, step: int) -> None:
        """Called before each step."""
        profile = self.profile
        if profile is None or not profile.start_step <= step <= profile.end_step:
            return
        self._last = step
        if self._begun is not None:
            return
        self._begun = step
        if profile.kind == "nsys":
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStart()
        else:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._torch = torch.profiler.profile(activities=activities, record_shapes=True)
            self._torch.start()

    def after(self, step: int) -> None:
        """Called after each step."""
        if self.profile is not None and step == self.profile.end_step:
            self._end()

    def _end(self) -> None:
        begun, self._begun = self._begun, None
        if begun is None:
            return
        if self._torch is None:
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStop()
        else:
            self._torch.stop()
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"rank_{dist.get_rank()}_steps_{begun}_{self._last}.json"
            self._torch.export_chrome_trace(str(self.folder / name))
