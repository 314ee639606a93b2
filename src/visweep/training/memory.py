"""Memory that runs out: how that is told from other failures, and what is done about it."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

from visweep.errors import OutOfMemory

_Outcome = TypeVar("_Outcome")

_SIGNS = (
    "DefaultCPUAllocator",
    "not enough memory",
    "bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch's plain RuntimeErrors say where an allocation failed."""

_DOUBTFUL = ("could not create a primitive", "could not execute a primitive")
"""What they say where oneDNN failed, which may have had other reasons."""

_DOUBTFUL_ON_A_GPU = (
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "nable to find an engine",
)
"""What they say where a library of the GPU failed, for want of room for its own work or not."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of settings in <malloc.h>."""
_PR_SET_THP_DISABLE = 41
"""Its number in <linux/prctl.h>."""
_NEVER = 2**30
"""Bytes: the largest that the settings take."""

_LITTLE = 2**28
"""Bytes: where not even these are left, memory is the reason. What a library of its own wanted
besides is free again when it has failed, and may have been more than a tensor."""


_told_for_memory: set[str] = set()
"""What oneDNN has said in this process when memory was the reason. It may say so again of the same
shapes, having kept what it failed to make, whatever is left by then.
"""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the processor or on a GPU; to be asked at once."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error)
    if any(sign in said for sign in _SIGNS):
        return True
    if any(sign in said for sign in _DOUBTFUL_ON_A_GPU):
        return not _is_left_on_the_gpu(_LITTLE)
    doubtful = {sign for sign in _DOUBTFUL if sign in said}
    if doubtful and not _is_left(_LITTLE):
        _told_for_memory.update(doubtful)
    return not doubtful.isdisjoint(_told_for_memory)


def _is_left_on_the_gpu(size: int) -> bool:
    """Whether the current GPU has so many bytes more; also where it cannot tell any more."""
    try:
        free, _ = torch.cuda.mem_get_info()
    except RuntimeError:
        return True
    return free >= size


def _is_left(size: int) -> bool:
    """Whether this process may have so many bytes more."""
    try:
        # Private memory: what is shared does not count for every limit.
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as e:
        if e.errno != errno.ENOMEM:
            raise
        return False
    return True


def attempt(compute: Callable[[], _Outcome]) -> _Outcome | None:
    """What `compute` returns; None where memory ran out, and all that it held is given back."""
    try:
        return compute()
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
    give_back()
    return None


def insist(compute: Callable[[], _Outcome], what: str) -> _Outcome:
    """What `compute` returns.

    Args:
        compute: what to do.
        what: names it in the error.

    Raises:
        OutOfMemory: memory ran out, and all that `compute` held is given back.
    """
    try:
        return compute()
    except OutOfMemory as e:
        error, cause = e.with_traceback(None), e.__cause__
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        why = str(e).partition("\n")[0] or type(e).__name__
        error = OutOfMemory(f"{what} does not fit in memory: {why}")
        cause = _without_frames(e)
    give_back()
    try:
        raise error from cause
    finally:
        del error, cause  # or this frame and the error would hold each other


def give_back() -> None:
    """Let others have what torch and the C library keep for later."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()  # a captured step and its pass hold each other
        drop_work_space()
        torch.cuda.empty_cache()
    trim()


def drop_work_space() -> None:
    """Have torch take the work space of a GPU's matrix products anew when it next wants some."""
    torch._C._cuda_clearCublasWorkspaces()


def trim() -> None:
    """Let others have what the C library keeps for later.

    What comes next then takes what it needs and no more: the pieces that a step has left seldom
    serve an evaluation, and would be held beside what it takes anew.
    """
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if release is not None:
        release(0)


@cache
def keep_pages() -> None:
    """Have the C library keep what a step has freed for the next one, until `trim`.

    It returns tensors of more than 32 MiB to the system one by one, and the next step takes them
    anew, page by page: 8 % of the time of models with many tokens.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if adjust is not None:
        adjust(_MMAP_THRESHOLD, _NEVER)
        adjust(_TRIM_THRESHOLD, _NEVER)


@contextmanager
def small_pages() -> Iterator[None]:
    """What is taken meanwhile comes in the system's small pages, where it is Linux.

    How many pages of 2 MiB a trial touches is chance, and as much as a small model takes: what is
    measured in them tells less of the model.
    """
    control = getattr(ctypes.CDLL(None), "prctl", lambda *_: None)
    on, off = ctypes.c_ulong(1), ctypes.c_ulong(0)
    control(_PR_SET_THP_DISABLE, on, off, off, off)
    try:
        yield
    finally:
        control(_PR_SET_THP_DISABLE, off, off, off, off)


def _without_frames(error: BaseException) -> BaseException:
    """The error without its tracebacks, whose frames hold what was computed."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
