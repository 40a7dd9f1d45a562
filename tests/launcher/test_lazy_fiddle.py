"""fiddle is loaded without its parser of Python source, and has it all the same when somebody needs it."""

import json
import subprocess
import sys

import pytest

RECIPE = """
import launcher as run
from launcher.config import check
from launcher.serialization import dumps, encode, loads
from gemma_models import gemma3_1b
recipe = gemma3_1b.pretrain_recipe()
recipe.trainer.max_steps = 3
check(recipe)
assert loads(dumps(recipe)) == recipe
"""


def run_fresh(code: str) -> list[str]:
    """The modules that a fresh process has loaded after `code`."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(shown.stdout.splitlines()[-1]))


@pytest.mark.parametrize("first", ["", "import gemma_models.recipes", "import launcher.serialization"])
def test_a_recipe_needs_neither_parser_nor_log_library(first: str) -> None:
    loaded = run_fresh(f"{first}\n{RECIPE}")
    assert "fiddle" in loaded
    assert not [name for name in loaded if name.partition(".")[0] in ("libcst", "absl")]


def test_fiddles_own_auto_config_still_works() -> None:
    loaded = run_fresh(
        RECIPE
        + "from fiddle._src.experimental.auto_config import AutoConfigClassMethod\n"
        + "assert AutoConfigClassMethod.__module__ == 'fiddle._src.experimental.auto_config'\n"
        + "import fiddle, inspect\n"
        + "from fiddle.experimental import auto_config\n"
        + "assert 'def auto_config' in inspect.getsource(auto_config.auto_config)\n"
    )
    assert "libcst" in loaded


def test_what_else_of_fiddle_waits_works_when_it_is_used() -> None:
    run_fresh(
        "import launcher.config, fiddle, sys\n"
        "class Size(fiddle.Tag): 'in units'\n"
        "assert 'libcst' not in sys.modules\n"
        "assert fiddle.build(Size.new(3)) == 3\n"
        "def boom(): raise ValueError('no')\n"
        "try: fiddle.build(fiddle.Config(boom))\n"
        "except ValueError as error: assert 'boom' in str(error)\n"
        "else: raise SystemExit('nothing was raised')\n"
    )


def test_fiddle_that_is_there_already_is_left_as_it_is() -> None:
    run_fresh(
        "import fiddle, sys\nbefore = list(sys.meta_path)\nimport launcher.config\nassert sys.meta_path == before"
    )
    assert "libcst" in run_fresh("import fiddle\nimport launcher.config")


def test_nothing_stays_behind_in_the_import_system() -> None:
    run_fresh("import sys\nbefore = list(sys.meta_path)\nimport launcher.config\nassert sys.meta_path == before")
