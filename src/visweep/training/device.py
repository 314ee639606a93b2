"""Which device and which number format to train on."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path

import torch

from visweep.config import Precision, TrainConfig
from visweep.errors import UsageError

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def resolve_device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes a GPU where there is one.

    Raises:
        UsageError: the name is none of these, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = re.fullmatch(r"cpu|cuda(?::(0|[1-9][0-9]*))?", name)
    if not parts:
        raise UsageError(f"--device: unknown device {name!r}; accepted: auto, cpu, cuda, cuda:N")
    if name != "cpu":
        if not torch.cuda.is_available():
            raise UsageError(f"--device {name}: no CUDA device here; accepted: auto, cpu")
        # Compared here, since torch takes cuda:256 for cuda:0.
        last = torch.cuda.device_count() - 1
        if int(parts[1] or 0) > last:
            raise UsageError(f"--device {name}: no such GPU; accepted: cuda:0 to cuda:{last}")
    return torch.device(name)


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """What `auto` means on this device: bfloat16 where it has instructions for it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    return "bfloat16" if _cpu_has_bfloat16() else "float32"


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The number format of the forward and backward pass."""
    dtype: torch.dtype = getattr(torch, resolve_precision(config.precision, device))
    return dtype


def master_dtype(compute: torch.dtype) -> torch.dtype:
    """The number format of the weights that the optimiser updates."""
    return torch.float64 if compute == torch.float64 else torch.float32


def reset_peak_memory(device: torch.device) -> None:
    """Begin anew to watch `peak_memory`, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        with contextlib.suppress(OSError):  # a sandbox may forbid it; the peak is then a bound
            _CLEAR_REFS.write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process held since `reset_peak_memory`, on the GPU if it trains
    there. Where the system cannot begin anew, the most that it ever held."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():
        lines = (line.split() for line in _STATUS.read_text().splitlines())
        peaks = [int(words[1]) for words in lines if words[0] == "VmHWM:"]
        if peaks:
            return peaks[0] * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
