"""What was found out about a machine, in files in the user's cache folder: it is probed once."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from visweep.folders import cache_dir
from visweep.sealed import write_atomically

_T = TypeVar("_T")

_VERSION = 10
"""Of what the files hold, and of how it is measured: those of another version are made anew."""
_CPUINFO = Path("/proc/cpuinfo")

_log = logging.getLogger(__name__)


def path_of(device: str, threads: int, probed: object) -> Path:
    """Where lies what was found out about a machine's device, once that has been done.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        threads: of the processor, that train.
        probed: what was tried, in its `repr`.
    """
    versions = [importlib.metadata.version(name) for name in ("visweep", "torch")]
    key = (_VERSION, *versions, hardware(device), threads, probed)
    digest = hashlib.sha256(repr(key).encode()).hexdigest()
    return cache_dir() / "calibrations" / f"{digest[:16]}.json"


def read(path: Path, kind: Callable[[Mapping[str, Any]], _T]) -> _T | None:
    """None where there is none that can be read; one line in the log says so if one is damaged.

    Args:
        path: see `path_of`.
        kind: makes it from what `write` was given.
    """
    try:
        return kind(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as e:
        _log.warning("%s is made anew: %s", path, e)
        return None


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Keep it for later; where that cannot be, one line in the log says so."""
    try:
        write_atomically(path, json.dumps(found).encode())
    except OSError as e:
        _log.warning("%s is not cached: %s", path, e)


def hardware(device: str) -> str:
    """What computes: the name of the GPU, or of the processor."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
