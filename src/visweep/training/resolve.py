"""What `auto` means on this machine, told without importing torch where that can be told.

A search whose workers are processes of their own needs no torch in the process that watches them:
its import takes seconds, and 300 MB.
"""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from functools import cache
from pathlib import Path

from visweep.config import Precision
from visweep.errors import UsageError

_BFLOAT16 = {"avx512_bf16", "amx_bf16"}
_CPUINFO = Path("/proc/cpuinfo")


def device_name(name: str) -> str:
    """The device called `auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes a GPU where there is one.

    Raises:
        UsageError: the name is none of these, or this machine has no such device.
    """
    if name == "auto":
        return "cuda" if _cuda_devices() else "cpu"
    parts = re.fullmatch(r"cpu|cuda(?::(0|[1-9][0-9]*))?", name)
    if not parts:
        raise UsageError(f"--device: unknown device {name!r}; accepted: auto, cpu, cuda, cuda:N")
    if name != "cpu":
        count = _cuda_devices()
        if not count:
            raise UsageError(f"--device {name}: no CUDA device here; accepted: auto, cpu")
        # Compared here, since torch takes cuda:256 for cuda:0.
        if int(parts[1] or 0) >= count:
            raise UsageError(f"--device {name}: no such GPU; accepted: cuda:0 to cuda:{count - 1}")
    return name


def precision_on(device: str, precision: Precision) -> Precision:
    """What `auto` means on this device: bfloat16 where it has instructions for it."""
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        import torch

        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    return "bfloat16" if _cpu_has_bfloat16() else "float32"


def require_batch(batch_size: int, images: int) -> None:
    """See that the training images fill one batch.

    Raises:
        UsageError: they do not.
    """
    if batch_size > images:
        raise UsageError(
            f"--batch-size: {batch_size} is larger than the training set; accepted: 1 to {images}"
        )


def _cuda_devices() -> int:
    if not _has_driver():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@cache
def _has_driver() -> bool:
    """False where torch cannot have a GPU: there is no driver of NVIDIA's, nor one of AMD's."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def _cpu_has_bfloat16() -> bool:
    if platform.machine() in ("x86_64", "AMD64") and _CPUINFO.exists():
        lines = _CPUINFO.read_text().splitlines()
        flags = next((line for line in lines if line.startswith("flags")), "")
        return not _BFLOAT16.isdisjoint(flags.split())
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _BFLOAT16)
