"""What is timed on a processor whose speed changes is told apart from its speed."""

from __future__ import annotations

import pytest
import torch

from visweep.training.stopwatch import Stopwatch

CPU = torch.device("cpu")


class Processor:
    """One that computes so much a second, and whose clock says how long that took."""

    def __init__(self) -> None:
        self.speed = 1.0
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def compute(self, amount: float) -> None:
        self.now += amount / self.speed


@pytest.fixture
def processor() -> Processor:
    return Processor()


@pytest.fixture
def watch(processor: Processor) -> Stopwatch:
    made = Stopwatch(CPU, processor.clock)
    made._work = lambda: processor.compute(0.004)
    return made


def test_a_computation_takes_as_many_units_on_a_slower_processor(
    processor: Processor, watch: Stopwatch
) -> None:
    found = []
    for processor.speed in (1.0, 0.5, 0.7):
        found.append(watch.time(lambda: processor.compute(0.02)))
    assert found == pytest.approx([5.0, 5.0, 5.0])


def test_the_unit_is_that_of_the_quickest_moment(processor: Processor, watch: Stopwatch) -> None:
    for processor.speed in (0.5, 1.0, 0.7):
        watch.time(lambda: processor.compute(0.02))
    assert watch.unit == pytest.approx(0.004)


def test_a_moment_in_which_others_took_the_processor_does_not_count(
    processor: Processor, watch: Stopwatch
) -> None:
    others = iter([0.0, 0.3])
    found = watch.time(lambda: processor.compute(0.02 + next(others, 0.0)))
    assert found == pytest.approx(5.0)


def test_the_piece_of_work_takes_some_milliseconds_and_is_always_the_same() -> None:
    watch = Stopwatch(CPU)
    one = watch.time(watch._work)  # type: ignore[arg-type]
    assert 0.5 < one < 2.0
    assert 1e-4 < watch.unit < 0.5
