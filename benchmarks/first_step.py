"""Imported by every process of `startup.py`, as `sitecustomize`: it stops where training begins.

Before its first training step a process writes the time to a file, and waits there to be killed,
so that all that the command has used until then is start-up. Nothing is imported for that, and
nothing else is changed; the method that makes a step is replaced when its module is imported.
"""

import os
import sys
import time
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

FILE = "VISWEEP_FIRST_STEP"
_MODULE = "visweep.training.passes"


class _Finder:
    """Finds that one module, and patches it when it has been executed."""

    @staticmethod
    def find_spec(name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def patched(module: ModuleType) -> None:
            execute(module)
            module.Pass.step = _tell_and_wait

        spec.loader.exec_module = patched  # type: ignore[method-assign]
        return spec


def _tell_and_wait(*_: Any) -> None:
    line = f"{time.clock_gettime(time.CLOCK_MONOTONIC)}\n".encode()
    file = os.open(os.environ[FILE], os.O_WRONLY | os.O_APPEND)
    os.write(file, line)
    while True:
        time.sleep(3600)


if FILE in os.environ:
    sys.meta_path.insert(0, _Finder)
