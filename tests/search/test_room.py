"""How many workers fit in this machine's memory."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optuna.distributions import IntDistribution

from visweep.cli.search import _with_room
from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.data.resident import ResidentData
from visweep.search import room
from visweep.search.expectation import Expectation, memory_expectation
from visweep.search.making import TrainerMaker
from visweep.search.room import free_memory, room_for_one, room_of_each, workers_with_room
from visweep.search.watch import Watcher
from visweep.storage.limits import Limits
from visweep.storage.specification import Arm, Specification
from visweep.training import device as device_module
from visweep.training.counts import num_params
from visweep.training.estimate import Calibration, Images, peak_memory, usual_memory
from visweep.training.room import Room

GIB = 2**30


class Told(Watcher):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def expected(limits: Limits | None = None) -> Expectation:
    """A trial of one to three blocks, whose parameters take 4 bytes each, and 1 GiB besides."""
    specification = Specification(
        space={"depth": IntDistribution(1, 3)},
        data=DataConfig(),
        fingerprint="of nothing",
        model=ViTConfig(depth=1),
        train=TrainConfig(precision="float32"),
        sampler="random",
        pruner="none",
        seed=0,
        **({} if limits is None else {"limits": limits}),
    )
    memory = {"process": float(GIB), "parameters": 1.0}
    calibration = Calibration(
        device="cpu", precision="float32", step={}, evaluation={}, memory=memory, held=0.0
    )
    return Expectation(specification, Images(64, 10), calibration)


def test_the_largest_model_within_the_limits_counts() -> None:
    one, three = (num_params(ViTConfig(depth=depth)) for depth in (1, 3))
    assert expected().most_memory == GIB + 4 * three
    assert expected(Limits(max_params=one)).most_memory == GIB + 4 * one


def test_a_machine_that_was_not_probed_is_taken_for_a_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISWEEP_CACHE", str(tmp_path))
    specification = expected().specification
    found = memory_expectation(specification, Images(64, 10), "cpu", threads=1)
    assert found.calibration == usual_memory("cpu", "float32", 1)
    largest = ViTConfig(depth=3), specification.train
    assert found.most_memory == peak_memory(*largest, found.calibration) > 2**20


def test_of_arms_the_largest_counts() -> None:
    arms = {
        name: Arm(
            model=ViTConfig(depth=depth), train=TrainConfig(precision="float32"), against=against
        )
        for name, depth, against in (("a", 1, None), ("b", 4, "a"))
    }
    specification = replace(expected().specification, arms=arms)
    found = memory_expectation(specification, Images(64, 10), "cpu", threads=1)
    largest = arms["b"].model, arms["b"].train
    assert found.most_memory == peak_memory(*largest, found.calibration)


@pytest.mark.parametrize(("free", "pack", "fitting"), [(8, 1, 4), (4, 1, 3), (4, 2, 1), (0, 1, 1)])
def test_fewer_workers_where_not_all_have_room(free: int, pack: int, fitting: int) -> None:
    told = Told()
    assert workers_with_room(4, pack, expected(), free * GIB, told) == fitting
    assert [note.partition(":")[0] for note in told.notes] == (
        [] if fitting == 4 else [f"{fitting} worker{'s' * (fitting > 1)} instead of 4"]
    )


def test_each_has_its_share_beside_what_its_process_takes() -> None:
    told = Told()
    found = room_of_each(4, expected(), 8 * GIB, told)
    assert found is not None
    assert found.bytes == 2 * GIB - 2**28
    assert found.calibration == expected().calibration
    assert told.notes == []
    alone = room_of_each(None, expected(), GIB, told)
    assert alone is not None
    assert alone.bytes == GIB / 1.5
    assert told.notes == [
        "models that are estimated to take more than 683 MiB train in parts, fewer seeds or "
        "images at a time: each worker has no more memory"
    ]
    least = room_of_each(4, expected(), GIB // 2, told)
    assert least is not None
    assert least.bytes == 2**26, "however little is left"


def test_a_run_by_itself_has_what_a_trial_of_one_process_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "meminfo"
    told.write_text(f"MemAvailable: {3 * GIB // 1024} kB\n")
    monkeypatch.setattr(room, "_MEMINFO", told)
    monkeypatch.setattr(room, "_GROUP", tmp_path / "none")
    found = room_for_one("cpu", "float32", threads=2)
    assert found is not None
    assert found.bytes == 2 * GIB
    assert found.calibration == usual_memory("cpu", "float32", 2)
    told.unlink()
    assert room_for_one("cpu", "float32", threads=2) is None


def test_on_a_gpu_that_was_not_probed_little_is_expected() -> None:
    """What does not fit is noticed there; what is divided for nothing would be slower."""
    model, train = ViTConfig(), TrainConfig()
    cpu, gpu = (usual_memory(device, "float32", 1) for device in ("cpu", "cuda:1"))
    assert gpu.device == "cuda"
    on_the_high_side = replace(gpu, memory=cpu.memory)
    assert peak_memory(model, train, gpu) < 0.95 * peak_memory(model, train, on_the_high_side)
    tensors = 4 * num_params(model) * 5
    assert peak_memory(model, train, gpu) > tensors


def test_a_run_by_itself_has_what_its_gpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def free(device: torch.device) -> int:
        assert device == torch.device("cuda:1")
        return 5 * GIB

    monkeypatch.setattr(device_module, "free_memory", free)
    found = room_for_one("cuda:1", "bfloat16", threads=2)
    assert found is not None
    assert found.bytes == 5 * GIB
    assert found.calibration == usual_memory("cuda:1", "bfloat16", 0)


def test_a_search_keeps_to_its_memory_wherever_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: ResidentData
) -> None:
    (tmp_path / "meminfo").write_text(f"MemAvailable: {3 * GIB // 1024} kB\n")
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "_GROUP", tmp_path / "none")
    maker = TrainerMaker(images=images.dataset, margin=0, device="cpu", threads=1)
    calibration = expected().calibration
    assert _with_room(maker, None, expected(), Told()).room == Room(2 * GIB, calibration)
    beside = _with_room(maker, 2, expected(), Told())
    assert beside.room == Room(1.5 * GIB - 2**28, calibration)
    assert beside.on_gpu is None
    gpu = _with_room(replace(maker, device="cuda:1"), 2, expected(), Told())
    assert (gpu.room, gpu.on_gpu) == (None, calibration)


def test_where_nothing_is_known_of_the_machine_all_begin() -> None:
    told = Told()
    assert room_of_each(4, expected(), None, told) is None
    assert workers_with_room(4, 1, expected(), None, told) == 4
    assert told.notes == []


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_a_container_has_what_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_GROUP", tmp_path)
    machine = free_memory()
    assert machine is not None
    assert machine > 2**20
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1500\ninactive_file 400\n")
    assert free_memory() == 1400, "files that nobody reads are given up"
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() != 1400
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "none")
    assert free_memory() is None
