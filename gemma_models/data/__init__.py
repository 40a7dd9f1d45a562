"""What a model is trained on. Light: a data module is built, shown and saved without torch or numpy.

A data module of one's own is any dataclass with the methods of `DataModule`.
"""

from gemma_models.data.batching import Batch, DataModule
from gemma_models.data.huggingface import HuggingFaceData
from gemma_models.data.indexed import IndexedData
from gemma_models.data.instruction import InstructionData
from gemma_models.data.mock import MockData

# What the demo trains on, written for this project: a message, and the to-do list in it, a line for each person.
# Nearly every token of a response depends on its prompt: with the responses shuffled among the prompts, the held-out
# loss must not fall.
EXAMPLES_TRAIN = "package://gemma_models.data/examples/train.jsonl"
EXAMPLES_VALIDATION = "package://gemma_models.data/examples/validation.jsonl"

__all__ = [
    "EXAMPLES_TRAIN",
    "EXAMPLES_VALIDATION",
    "Batch",
    "DataModule",
    "HuggingFaceData",
    "IndexedData",
    "InstructionData",
    "MockData",
]
