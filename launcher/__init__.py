"""The front door: `import launcher as run`.

Every name is resolved when it is first used, so that the import costs next to nothing; an editor and mypy see the
real types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.excepthook import install as _install_excepthook
from launcher.run import run as run  # at once: the module of that name must not stand where the function is expected

_install_excepthook()

if TYPE_CHECKING:
    from executors.docker.executor import DockerExecutor as DockerExecutor
    from executors.local import LocalExecutor as LocalExecutor
    from executors.packaging import GitArchivePackager as GitArchivePackager
    from executors.packaging import HybridPackager as HybridPackager
    from executors.packaging import Packager as Packager
    from executors.packaging import PatternPackager as PatternPackager
    from executors.slurm.executor import SlurmExecutor as SlurmExecutor
    from executors.submitit.executor import SubmititExecutor as SubmititExecutor
    from executors.tunnel import LocalTunnel as LocalTunnel
    from executors.tunnel import SSHTunnel as SSHTunnel
    from experiments.experiment import Experiment as Experiment
    from experiments.experiment import Result as Result
    from launcher.autoconvert import autoconvert as autoconvert
    from launcher.config import Config as Config
    from launcher.config import Partial as Partial
    from launcher.errors import ExperimentFailed as ExperimentFailed
    from launcher.errors import LaunchError as LaunchError
    from launcher.plugin import Plugin as Plugin
    from launcher.script import Script as Script
else:
    _HOMES = {
        "Config": "launcher.config",
        "Partial": "launcher.config",
        "Script": "launcher.script",
        "autoconvert": "launcher.autoconvert",
        "LocalExecutor": "executors.local",
        "DockerExecutor": "executors.docker.executor",
        "SlurmExecutor": "executors.slurm.executor",
        "SubmititExecutor": "executors.submitit.executor",
        "LocalTunnel": "executors.tunnel",
        "SSHTunnel": "executors.tunnel",
        "Packager": "executors.packaging",
        "GitArchivePackager": "executors.packaging",
        "PatternPackager": "executors.packaging",
        "HybridPackager": "executors.packaging",
        "Plugin": "launcher.plugin",
        "Experiment": "experiments.experiment",
        "Result": "experiments.experiment",
        "LaunchError": "launcher.errors",
        "ExperimentFailed": "launcher.errors",
    }

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module 'launcher' has no attribute {name!r}; it has {', '.join(__dir__())}")
        import importlib

        if not _HOMES[name].startswith("launcher."):
            from launcher.shadowing import require_own_packages

            require_own_packages()
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value

    def __dir__():
        return sorted(["run", *_HOMES])
