"""Every recipe there is, under the name of its golden file; as a script, each as YAML, where nothing else is allowed.

python tests/samples/every_recipe.py     # writes the golden files anew
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent.parent / "gemma_models/recipes/golden"
FORBIDDEN = {"torch", "numpy", "megatron", "transformers", "safetensors", "huggingface_hub", "datasets", "requests"}


def forbid(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook (PEP 578): no heavy package, no network, and no file of a token."""
    if event == "import" and arguments[0].partition(".")[0] in FORBIDDEN:
        raise RuntimeError(f"a recipe imports {arguments[0]}")
    if event.startswith("socket."):
        raise RuntimeError(f"a recipe uses the network: {event}")
    if event == "open" and isinstance(arguments[0], str) and Path(arguments[0]).name in ("token", ".netrc"):
        raise RuntimeError(f"a recipe reads {arguments[0]}")


def every() -> dict[str, Callable[[], Any]]:
    """What makes each, by the name of its golden file."""
    import gemma_models
    from gemma_models.recipes import NAMES

    found: dict[str, Callable[[], Any]] = {}
    for name in NAMES:
        recipes = getattr(gemma_models, name)
        found[f"{name}_pretrain"] = recipes.pretrain_recipe
        for scheme in ("lora", "dora", "none"):
            found[f"{name}_finetune_{scheme}"] = lambda recipes=recipes, scheme=scheme: recipes.finetune_recipe(
                peft_scheme=scheme
            )
        found[f"{name}_finetune_packed"] = lambda recipes=recipes: recipes.finetune_recipe(packed_sequence=True)
    return found


if __name__ == "__main__":
    sys.addaudithook(forbid)
    from launcher.serialization import to_yaml

    texts = {name: to_yaml(make()) for name, make in every().items()}
    if sys.argv[1:] == ["--show"]:
        print(json.dumps(texts))
    else:
        for name, text in texts.items():
            (GOLDEN / f"{name}.yaml").write_text(text)
