"""An editor and `mypy --strict` see the real types of what a launch script uses."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
from dataclasses import dataclass
from pathlib import Path

import launcher as run
from gemma_models import gemma3_1b


@dataclass
class Model:
    size: int = 1


def train(model: Model, steps: int = 1) -> str:
    return "done"


@run.autoconvert
def small(size: int = 2) -> Model:
    return Model(size)


@run.autoconvert(partial=True)
def task() -> str:
    return train(Model())


def main() -> None:
    config = run.Config(Model, size=2)
    config.size = 3
    partial = run.Partial(train, model=config).clone().broadcast(size=4)
    done: str = run.run(partial, direct=True)
    made: run.Config[Model] = small(3)
    again: run.Partial[str] = task()
    paths: list[str] = [row.path for row in partial.diff(again)]
    recipe = gemma3_1b.pretrain_recipe(name="tiny", dir=Path("checkpoints"))
    recipe.trainer.max_steps = 5
    executor = run.LocalExecutor(ntasks_per_node="8")
    result = run.run(recipe, executor=executor, name="tiny")
    with run.Experiment("sft") as experiment:
        experiment.add(made, executor=run.LocalExecutor())
    print(done, paths, result.value)


if __name__ == "__main__":
    main()
"""


def test_mypy_finds_the_one_mistake_of_a_launch_script(tmp_path: Path) -> None:
    script = tmp_path / "launch_with_a_mistake.py"
    script.write_text(SCRIPT)
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    line = SCRIPT.splitlines().index('    executor = run.LocalExecutor(ntasks_per_node="8")') + 1
    # By the script's name alone: out of its cache, mypy gives the folder where it saw the same script before.
    errors = [said.partition(script.name)[2] for said in found.stdout.splitlines() if script.name in said]
    assert errors == [
        f':{line}: error: Argument "ntasks_per_node" to "LocalExecutor" has incompatible type "str"; '
        'expected "int"  [arg-type]'
    ], found.stdout + found.stderr
