"""How many workers a device takes, tried with real processes (here of the processor)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from visweep.search import gpu_workers
from visweep.search.gpu_workers import best_count, tries, typical_and_largest, workers_on
from visweep.search.mps import Mps
from visweep.storage.specification import Specification


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ([100.0, 105.0], 1),
        ([100.0, 190.0, 200.0], 2),
        ([100.0, 200.0, 400.0, 800.0], 8),
        ([100.0, 200.0, None], 2),
        ([None], 1),
    ],
    ids=str,
)
def test_the_number_is_doubled_while_it_is_worth_it(rates: list[float | None], best: int) -> None:
    asked: list[int] = []

    def rate(count: int) -> float | None:
        asked.append(count)
        return rates[len(asked) - 1]

    assert best_count(rate) == best
    assert asked == [1, 2, 4, 8][: len(rates)]


def test_processes_train_at_once_and_are_gone_afterwards(specification: Specification) -> None:
    typical, largest = typical_and_largest(specification)
    with tries(typical, largest, "cpu") as rate:
        one, two = rate(1), rate(2)
        assert one is not None
        assert two is not None
        assert min(one, two) > 100  # images a second
        assert len(multiprocessing.active_children()) >= 2
        running = multiprocessing.active_children()
    assert not multiprocessing.active_children()
    # None was killed: what the GPU computes for one might take the others with it.
    assert [process.exitcode for process in running] == [0, 0]


def test_what_has_no_room_is_told_from_what_is_slow(specification: Specification) -> None:
    typical, (model, train) = typical_and_largest(specification)
    vast = model.replace(embed_dim=2**22), train
    with tries(typical, vast, "cpu") as rate:
        assert rate(1) is None


def test_a_process_that_ends_settles_nothing(
    specification: Specification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISWEEP_CACHE", str(tmp_path / "cache"))
    told: list[str] = []
    assert workers_on(specification, "no such device", told.append) == 1
    assert told[-1].startswith("one worker: a process that tried out the GPU ")
    assert not (tmp_path / "cache").exists()


def test_the_largest_is_that_of_most_work(specification: Specification) -> None:
    (_, _), (model, _) = typical_and_largest(specification)
    assert (model.patch_size, model.depth) == (8, 2)


def test_it_is_tried_once(
    specification: Specification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISWEEP_CACHE", str(tmp_path))
    count = 0
    served: list[object] = []

    @contextmanager
    def counted(*arguments: object) -> Iterator[gpu_workers.Rate]:
        nonlocal count
        count += 1
        served.append(arguments[-1])
        yield {1: 100.0, 2: 150.0, 4: 151.0}.__getitem__

    monkeypatch.setattr(gpu_workers, "tries", counted)
    told: list[str] = []
    assert workers_on(specification, "cpu", told.append) == 2
    assert workers_on(specification, "cpu", told.append) == 2
    assert (count, len(told)) == (1, 1)
    # Where MPS serves them it is another number, wherever it listens.
    assert workers_on(specification, "cpu", told.append, {"PIPES": "/tmp/one"}) == 2
    assert workers_on(specification, "cpu", told.append, {"PIPES": "/tmp/other"}) == 2
    assert workers_on(specification, "cpu", told.append, {}) == 2
    assert (count, len(told)) == (2, 2)
    assert served == [None, {"PIPES": "/tmp/one"}]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_tried_out(
    specification: Specification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISWEEP_CACHE", str(tmp_path))
    told: list[str] = []
    with Mps("cuda", told.append) as mps:
        found = workers_on(specification, "cuda", told.append, mps.environment)
    assert found in (1, 2, 4, 8)
    assert not any(line.startswith("one worker: ") for line in told), told
    assert not multiprocessing.active_children()
