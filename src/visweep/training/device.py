"""Which device and which number format to train on."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from visweep.config import Precision, TrainConfig
from visweep.errors import DeviceLost
from visweep.training.resolve import device_name, precision_on

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def resolve_device(name: str) -> torch.device:
    """The device of that name; see `training.resolve.device_name`.

    Raises:
        UsageError: there is no such device.
    """
    return torch.device(device_name(name))


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """What `auto` means on this device; see `training.resolve.precision_on`."""
    return precision_on(str(device), precision)


def compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The number format of the forward and backward pass."""
    dtype: torch.dtype = getattr(torch, resolve_precision(config.precision, device))
    return dtype


def master_dtype(compute: torch.dtype) -> torch.dtype:
    """The number format of the weights that the optimiser updates."""
    return torch.float64 if compute == torch.float64 else torch.float32


def use(device: torch.device) -> None:
    """What is asked of "the" GPU in this thread is asked of this one from now on."""
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # it takes no device without a number


def used(device: torch.device) -> AbstractContextManager[object]:
    """What is asked of "the" GPU in this thread is asked of this one meanwhile."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def replays(device: torch.device) -> bool:
    """Whether what is computed again and again is captured there once, and then replayed."""
    return device.type == "cuda"


def wait_for(device: torch.device) -> None:
    """Until the current stream of a GPU has done what it was told; elsewhere it always has."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


@contextmanager
def insisting_that_it_works(device: torch.device) -> Iterator[None]:
    """What fails in here is told from what ends the use of a GPU by this process: after a kernel
    that reads where it must not, say, every later call fails there, whatever it is for.

    Raises:
        DeviceLost: nothing works there any more.
    """
    try:
        yield
    except RuntimeError as e:
        if _works(device):
            raise
        cause = str(e).partition("\n")[0]
        raise DeviceLost(f"{device} does not work any more for this process: {cause}") from e


def _works(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def reset_peak_memory(device: torch.device) -> None:
    """Begin anew to watch `peak_memory`, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        with contextlib.suppress(OSError):  # a sandbox may forbid it; the peak is then a bound
            _CLEAR_REFS.write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process held since `reset_peak_memory`, on the GPU if it trains
    there: also what its captured graphs keep for when they are replayed, which no tensor takes
    meanwhile. Where the system cannot begin anew, the most that it ever held."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return _of_this_process("VmHWM:")


def held_memory(device: torch.device) -> int:
    """Bytes: what this process holds now, on the GPU if it trains there. Where the system does
    not tell, the most that it ever held."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return _of_this_process("VmRSS:")


def free_memory(device: torch.device, *, others_beside: bool = False) -> int:
    """Bytes that a GPU has to give.

    Args:
        device: the GPU.
        others_beside: whether what other processes hold is given, too, since they could make room.
    """
    free, total = torch.cuda.mem_get_info(device)
    return total - held_memory(device) if others_beside else free


def _of_this_process(name: str) -> int:
    if _STATUS.exists():
        lines = (line.split() for line in _STATUS.read_text().splitlines())
        found = [int(words[1]) for words in lines if words[0] == name]
        if found:
            return found[0] * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
