"""Calibrations, each in a file in the user's cache folder, so that a machine is probed once."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visweep.folders import cache_dir
from visweep.sealed import write_atomically
from visweep.training.estimate import Calibration

_VERSION = 2
"""Of what a calibration holds, and of how it is measured: one of another version is made anew."""
_CPUINFO = Path("/proc/cpuinfo")

_log = logging.getLogger(__name__)


def path_of(device: str, threads: int, probed: object) -> Path:
    """Where the calibration of a machine's device lies, once it has been made.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        threads: of the processor, that train.
        probed: what it is made of, in its `repr`.
    """
    versions = [importlib.metadata.version(name) for name in ("visweep", "torch")]
    key = (_VERSION, *versions, _hardware(device), threads, probed)
    digest = hashlib.sha256(repr(key).encode()).hexdigest()
    return cache_dir() / "calibrations" / f"{digest[:16]}.json"


def read(path: Path) -> Calibration | None:
    """None where there is none that can be read; one line in the log says so if one is damaged."""
    try:
        values: Mapping[str, Any] = json.loads(path.read_text())
        return Calibration.from_json(values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as e:
        _log.warning("%s is made anew: %s", path, e)
        return None


def write(path: Path, calibration: Calibration) -> None:
    """Keep it for later; where that cannot be, one line in the log says so."""
    try:
        write_atomically(path, json.dumps(calibration.to_json()).encode())
    except OSError as e:
        _log.warning("%s is not cached: %s", path, e)


def _hardware(device: str) -> str:
    """What computes: the name of the GPU, or of the processor."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
