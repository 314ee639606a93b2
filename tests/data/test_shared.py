"""Images that processes share: they arrive as they are, and are not copied."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared_child import describe, described
from visweep.data.dataset import Dataset, Split
from visweep.data.resident import to_device
from visweep.data.shared import shared
from visweep.errors import DataError

CPU = torch.device("cpu")


def dataset(images: int = 12, groups: int | None = None) -> Dataset:
    draw = np.random.default_rng(0)

    def split(count: int) -> Split:
        pixels = draw.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
        labels = draw.integers(0, 2, count)
        return Split(pixels, labels, None if groups is None else np.arange(count) % groups)

    return Dataset("spots", ("a", "b"), split(images), split(5), "print", may_flip=True, padding=2)


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("margin", [0, 2])
def test_they_arrive_as_a_copy_would(margin: int, groups: int | None) -> None:
    source = dataset(groups=groups)
    with shared(source, margin) as images:
        assert described(images.to(CPU)) == described(to_device(source, CPU, margin))


def test_processes_see_the_same_memory() -> None:
    context = multiprocessing.get_context("forkserver")
    answers = context.Queue()
    seen = []
    with shared(dataset(), 1) as images:
        for _ in range(2):
            process = context.Process(target=describe, args=(images, answers))
            process.start()
            seen.append(answers.get(timeout=60))
            process.join()
    first, second = (found["train images"] for found in seen)
    assert second[0][0][0][0] == first[0][0][0][0] + 1
    second[0][0][0][0] -= 1
    assert second == first
    expected = described(to_device(dataset(), CPU, 1))
    assert seen[0] == expected


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visweep.data.shared._MEMORY", tmp_path)
    with shared(dataset(), 0) as images:
        # Not even while it is used, so that no kill can leave it.
        assert list(tmp_path.iterdir()) == []
        assert len(images.to(CPU).train) == 12
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real full device stands for a full /dev/shm."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def full_device(**_: object) -> Any:
        return Path("/dev/full").open("r+b", buffering=0)

    monkeypatch.setattr("tempfile.TemporaryFile", full_device)
    with (
        pytest.raises(DataError, match=r"--workers: the images .* do not fit into") as refused,
        shared(dataset(), 0),
    ):
        pass
    assert "accepted: 1" in str(refused.value)


def test_to_share_takes_no_torch() -> None:
    code = "import sys, visweep.data.shared; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
