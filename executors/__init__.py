"""Where and how a plan runs. Light to import; knows nothing of experiments."""

from executors.base import Executor as Executor
from executors.local import LocalExecutor as LocalExecutor
