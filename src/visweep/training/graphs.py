"""CUDA graphs: kernels that are captured once, and replayed without the host in between.

A step of a small model is hundreds of kernels, each shorter than its launch; see
https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/. What is captured reads its input
from, and leaves its outcome in, tensors that stay where they are.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from visweep.errors import OutOfMemory
from visweep.training.evaluate import Predicted
from visweep.training.memory import drop_work_space, is_out_of_memory

_log = logging.getLogger(__name__)
_told: set[str] = set()


class Graph:
    """A piece of work on the GPU, captured; it is not done by that.

    Args:
        work: does it; it was done before, so that nothing is made for the first time in it.
        device: that it is done on.
        generators: that it draws from. What it draws depends on how they are seeded when it is
            replayed, not on how they were.

    Raises:
        RuntimeError: something in it cannot be captured.
    """

    def __init__(
        self,
        work: Callable[[], object],
        device: torch.device,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        own = torch.cuda.current_stream(device)
        # In a lane on the lane's own stream, which no other lane computes on meanwhile.
        beside = own == torch.cuda.default_stream(device)
        stream = _side_stream(device) if beside else own
        # Where a capture fails, torch leaves its stream behind as the current one.
        with _undisturbed(), torch.cuda.stream(own):
            self._graph = torch.cuda.CUDAGraph()
            if torch.__version__ < "2.14":  # which sees by itself what is drawn from
                for generator in generators:
                    self._graph.register_generator_state(generator)
            with torch.cuda.graph(self._graph, stream=stream):
                work()

    def replay(self) -> None:
        """Do it."""
        self._graph.replay()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What is captured meanwhile has work space of its own for matrix products, and no other
    graph goes.

    Torch keeps one such space for each stream, which the kernels of all graphs captured there
    write to, and gives it up with the first of these that goes
    (https://github.com/pytorch/pytorch/issues/193402).
    """
    collects = gc.isenabled()
    gc.disable()
    drop_work_space()
    try:
        yield
    finally:
        drop_work_space()
        if collects:
            gc.enable()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Torch would take one of the first device that it captured on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def captured(
    work: Callable[[], object],
    device: torch.device,
    generators: Sequence[torch.Generator] = (),
    *,
    or_fail: bool = False,
) -> Graph | None:
    """The work as a graph; None where it cannot be captured, which is logged once per cause.

    Args:
        work, device, generators: see `Graph`.
        or_fail: where memory is short, since others could make room.

    Raises:
        OutOfMemory: it was to fail, and memory is short.
    """
    try:
        return Graph(work, device, generators)
    except RuntimeError as e:
        if or_fail and _for_want_of_memory(e):
            raise OutOfMemory(f"capturing a step does not fit in memory: {e}") from e
        cause = str(e).partition("\n")[0]
    if cause not in _told:
        _told.add(cause)
        _log.warning("trained without CUDA graphs, more slowly: %s", cause)
    return None


def _for_want_of_memory(error: BaseException) -> bool:
    """Also where what ends a capture failed in turn."""
    link: BaseException | None = error
    while link is not None:
        if is_out_of_memory(link):
            return True
        link = link.__cause__ or link.__context__
    return False


class Forward:
    """Logits from a captured forward pass, for batches of the size of the first one; from a plain
    one for others."""

    def __init__(self) -> None:
        self._captured: tuple[Tensor, Tensor, Graph] | None = None
        self._refused = False

    def __call__(self, predicted: Predicted, images: Tensor) -> Tensor:
        """As `predicted` gives them, which is the same function in every call."""
        if self._refused:
            return predicted(images)
        if self._captured is None:
            return self._capture(predicted, images)
        given, logits, graph = self._captured
        if given.shape != images.shape:
            return predicted(images)
        given.copy_(images)
        graph.replay()
        return logits

    def _capture(self, predicted: Predicted, images: Tensor) -> Tensor:
        given = images.clone()
        logits = predicted(given)
        graph = captured(lambda: logits.copy_(predicted(given)), images.device)
        self._refused = graph is None
        self._captured = None if graph is None else (given, logits, graph)
        # Computed before; what is captured is not computed by that.
        return logits
