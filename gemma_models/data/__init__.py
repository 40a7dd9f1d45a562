"""What a model is trained on. Light: a data module is built, shown and saved without torch or numpy.

A data module of one's own is any dataclass with the methods of `DataModule`.
"""

from gemma_models.data.batching import Batch, DataModule
from gemma_models.data.instruction import InstructionData
from gemma_models.data.mock import MockData

# Requests in plain words and the record that each one amounts to, written for this project: what the demo trains on.
EXAMPLES_TRAIN = "package://gemma_models.data/examples/train.jsonl"
EXAMPLES_VALIDATION = "package://gemma_models.data/examples/validation.jsonl"

__all__ = ["EXAMPLES_TRAIN", "EXAMPLES_VALIDATION", "Batch", "DataModule", "InstructionData", "MockData"]
