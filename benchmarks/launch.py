"""What a launch costs, in cold processes, beside this project's peers: `python -m benchmarks.launch`.

Every tool runs the same tasks (see benchmarks/programs), its own way and with its own defaults, in turns, in a small
git repository; each task leaves a file, so that work that was not done is not taken for fast. Linux only; installs the
tools under .bench/, from the package index.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import past
from benchmarks.measure import CommandFailed, Cost, measure
from benchmarks.tools import OURS, PROGRAMS, ROOT, TOOLS, Installed, here, install

SAMPLES = 0.05  # seconds between two looks at memory

Times = dict[str, list[float]]  # seconds, by tool


@dataclass
class Row:
    """One line of the table. `values` by tool, in `unit`."""

    name: str
    unit: str
    values: dict[str, float] = field(default_factory=dict)


class Bench:
    """The tools, and a folder to run them in."""

    def __init__(self, tools: Sequence[Installed], folder: Path, repeat: int, count: int, past_count: int) -> None:
        self.tools = tools
        self.folder = folder
        self.repeat = repeat
        self.count = count
        self.past_count = past_count
        self.rows: list[Row] = []
        self._work = folder / "work"
        shutil.rmtree(self._work, ignore_errors=True)
        shutil.copytree(PROGRAMS, self._work, ignore=shutil.ignore_patterns("__pycache__"))
        git = ["git", "-C", str(self._work), "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "programs"]):
            subprocess.run([*git, *arguments], check=True)

    def run(self) -> list[Row]:
        """Measure everything; slow."""
        self._sizes()
        self._imports()
        self._program("a Partial in this process", "direct", 1)
        self._program("the same through LocalExecutor", "local", 1)
        self._many()
        self._past()
        return self.rows

    def _measure(
        self, tool: Installed, command: Sequence[str], *, home: Path | None = None, memory: bool = False
    ) -> Cost:
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        env["PYTHONPATH"] = str(self._work)
        env["PATH"] = f"{tool.bin}:{env['PATH']}"  # as where a virtual environment is activated
        if tool.tool.state is not None:
            env[tool.tool.state] = str(home or self.folder / "state" / tool.tool.name)
        log = self.folder / f"{tool.tool.name}.log"
        return measure(command, folder=self._work, env=env, log=log, interval=SAMPLES if memory else None)

    def _add(self, name: str, unit: str, values: dict[str, float]) -> None:
        self.rows.append(Row(name, unit, values))
        print(format_rows(self.rows[-1:], [tool.tool.name for tool in self.tools]), file=sys.stderr)

    def _sizes(self) -> None:
        sizes = {tool.tool.name: tool.added / 1e6 for tool in self.tools if tool.added is not None}
        if sizes:
            self._add("installed size", "MB", sizes)

    def _imports(self) -> None:
        """What an import adds to an interpreter that does nothing: by itself, and with the names that a script uses."""
        alone: Times = {tool.tool.name: [] for tool in self.tools}
        used: Times = {tool.tool.name: [] for tool in self.tools}
        for _ in range(self.repeat):
            for tool in self.tools:
                codes = ("pass", f"import {tool.tool.module}", f"from {tool.tool.module} import {tool.tool.names}")
                bare, module, names = [self._measure(tool, [tool.python, "-c", code]).wall for code in codes]
                alone[tool.tool.name].append(module - bare)
                used[tool.tool.name].append(names - bare)
        self._add("import", "s", _medians(alone))
        self._add("import of Partial, LocalExecutor, Experiment", "s", _medians(used))

    def _once(self, tool: Installed, case: str, count: int, *, memory: bool = False) -> Cost:
        """One launch from an empty state folder, which did what it should. Raises CommandFailed."""
        shutil.rmtree(self.folder / "state", ignore_errors=True)
        done = self.folder / "done"
        shutil.rmtree(done, ignore_errors=True)
        done.mkdir()
        command = [tool.python, tool.tool.program, case, str(done), str(count)]
        cost = self._measure(tool, command, memory=memory)
        pids = [(done / str(number)).read_text() for number in range(count) if (done / str(number)).exists()]
        own = [pid == str(cost.pid) for pid in pids]
        if len(set(pids)) != count or any(own) != (case == "direct"):
            ran = f"{len(set(pids))} of {count} tasks ran, {sum(own)} of them in the launcher's process"
            raise CommandFailed(f"{tool.tool.name}, {case}: {ran}; see {self.folder / tool.tool.name}.log")
        return cost

    def _program(self, name: str, case: str, count: int) -> None:
        times: Times = {tool.tool.name: [] for tool in self.tools}
        for _ in range(self.repeat):
            for tool in self.tools:
                times[tool.tool.name].append(self._once(tool, case, count).wall)
        self._add(name, "s", _medians(times))

    def _many(self) -> None:
        """Time and memory are taken in two runs: looking at memory costs time."""
        exact = {}
        for tool in self.tools:
            exact[tool.tool.name] = self._once(tool, "many", self.count)
            if tool.tool is OURS:
                self._add("from a task's last file to its end seen", "s", {tool.tool.name: self._seen(tool)})
        sampled = {tool.tool.name: self._once(tool, "many", self.count, memory=True) for tool in self.tools}
        name = f"{self.count} tasks in one Experiment"
        self._add(name, "s", {tool: cost.wall for tool, cost in exact.items()})
        self._add(f"{name}: CPU", "s", {tool: cost.cpu for tool, cost in exact.items()})
        self._add(f"{name}: peak memory (PSS)", "MB", {tool: cost.memory / 1e6 for tool, cost in sampled.items()})

    def _seen(self, tool: Installed) -> float:
        """Seconds from the last thing that a rank writes, before its interpreter ends, to the event that says so."""
        found = []
        for result in (self.folder / "state" / tool.tool.name / "experiments").glob("*/*/result.json"):
            last = result.with_name("events.jsonl").read_text(encoding="utf-8").splitlines()[-1]
            found.append(json.loads(last)["time"] - result.stat().st_mtime)
        return statistics.median(found)

    def _past(self) -> None:
        listing: Times = {}
        status: Times = {}
        for tool in self.tools:
            if tool.tool.listing is None or tool.tool.status is None:
                continue
            home, newest = self._home(tool)
            if tool.tool is OURS:
                (home / "index.sqlite").unlink(missing_ok=True)
                first = self._command(tool, tool.tool.listing, home)
                self._add(f"experiment list, {self.past_count} past, no index yet", "s", {tool.tool.name: first})
            listing[tool.tool.name] = [self._command(tool, tool.tool.listing, home) for _ in range(self.repeat)]
            command = (*tool.tool.status, newest)
            status[tool.tool.name] = [self._command(tool, command, home) for _ in range(self.repeat)]
        self._add(f"experiment list, {self.past_count} past", "s", _medians(listing))
        self._add(f"experiment status, {self.past_count} past", "s", _medians(status))

    def _command(self, tool: Installed, command: Sequence[str], home: Path) -> float:
        return self._measure(tool, [str(tool.bin / command[0]), *command[1:]], home=home).wall

    def _home(self, tool: Installed) -> tuple[Path, str]:
        """A state folder full of past experiments, and the newest one's id; a peer's are copies of one that it ran."""
        home = self.folder / "past" / f"{tool.tool.name}-{self.past_count}"
        newest = home / "newest"
        if not newest.exists():
            shutil.rmtree(home, ignore_errors=True)
            if tool.tool is OURS:
                newest_id = past.make(home, self.past_count)[-1]
            else:
                self._once(tool, "local", 1)
                shutil.copytree(self.folder / "state" / tool.tool.name, home)
                [one] = (home / "experiments/local").iterdir()
                newest_id = one.name
                started = int(one.name.rpartition("_")[2])
                for number in range(1, self.past_count):
                    shutil.copytree(one, one.with_name(f"local_{started - number}"), symlinks=True)
            newest.write_text(newest_id)
        return home, newest.read_text()


def _medians(times: Times) -> dict[str, float]:
    return {tool: statistics.median(values) for tool, values in times.items()}


def format_rows(rows: Sequence[Row], tools: Sequence[str]) -> str:
    """Lines of a table: each value, and how many times the first tool's it is."""
    lines = []
    for row in rows:
        cells = []
        for tool in tools:
            value, own = row.values.get(tool), row.values.get(tools[0])
            ratio = f" ({value / own:.3g}x)" if value is not None and own and tool != tools[0] else ""
            cells.append("-" if value is None else f"{value:.3g} {row.unit}{ratio}")
        lines.append(f"{row.name:46}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TOOLS, action="append", help="this tool alone (may be given again)")
    parser.add_argument("--repeat", type=int, default=7, help="cold starts of which the median is taken")
    parser.add_argument("--tasks", type=int, default=50, help="tasks of the one Experiment")
    parser.add_argument("--past", type=int, default=10_000, help="past experiments")
    parser.add_argument("--quick", action="store_true", help="few of everything, with what this Python has installed")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench", help="where to work")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(exist_ok=True)
    chosen = [tool for name, tool in TOOLS.items() if options.only is None or name in options.only]
    tools = [here(tool) if options.quick else install(tool, folder) for tool in chosen]
    repeat, count, past_count = (1, 3, 20) if options.quick else (options.repeat, options.tasks, options.past)
    rows = Bench(tools, folder, repeat, count, past_count).run()
    names = [tool.tool.name for tool in tools]
    machine = f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {time.strftime('%Y-%m-%d')}"
    print(f"{machine:46}" + "".join(f"{name:>22}" for name in names))
    print(format_rows(rows, names))
    if options.json:
        found = {"machine": machine, "rows": [vars(row) for row in rows]}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
