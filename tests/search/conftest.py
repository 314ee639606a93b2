"""A study in a file, real data, and models that train in a fraction of a second."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from visweep import data as datasets
from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.data.resident import ResidentData, to_device
from visweep.search.interrupt import Interrupt
from visweep.search.study import OpenStudy, open_study
from visweep.search.trainer import SharedTrainer
from visweep.search.watch import Progress, TrialView, Watcher
from visweep.search.worker import Worker
from visweep.storage.engine import Storage
from visweep.storage.opening import open_storage
from visweep.storage.specification import Specification

SPACE = {
    "drop": FloatDistribution(0.0, 0.3),
    "patch_size": CategoricalDistribution([8, 16]),
    "depth": IntDistribution(1, 2),
    "num_heads": CategoricalDistribution([1, 2]),
}
MODEL = ViTConfig(patch_size=16, embed_dim=8, depth=1, num_heads=2)
TRAIN = TrainConfig(epochs=3, precision="float32")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def images(environment: dict[str, str]) -> ResidentData:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISWEEP_CACHE", environment["VISWEEP_CACHE"])
        dataset = datasets.load(DataConfig(train_size=200))
    return to_device(dataset, torch.device("cpu"))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "studies.db"
    open_storage(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def file(tmp_path: Path, empty_database: Path) -> Path:
    """A database without studies, with nothing else in its folder."""
    folder = tmp_path / "storage"
    folder.mkdir()
    shutil.copyfile(empty_database, folder / "studies.db")
    return folder / "studies.db"


@pytest.fixture
def open_file() -> Iterator[Callable[[Path], Storage]]:
    """Open SQLite files; they are closed after the test."""
    storages: list[Storage] = []

    def open_it(path: Path) -> Storage:
        storages.append(open_storage(f"sqlite:///{path}"))
        return storages[-1]

    yield open_it
    for storage in storages:
        storage.close()


@pytest.fixture
def storage(file: Path, open_file: Callable[[Path], Storage]) -> Storage:
    return open_file(file)


@pytest.fixture
def specification(images: ResidentData) -> Specification:
    return Specification(
        space=SPACE,
        data=DataConfig(train_size=200),
        fingerprint=images.dataset.fingerprint,
        model=MODEL,
        train=TRAIN,
        sampler="tpe",
        pruner="none",
        seed=0,
    )


@dataclass
class Recorder(Watcher):
    """Writes down what it hears; may act on it."""

    began_with: list[TrialView] = field(default_factory=list)
    epochs: list[tuple[int, int]] = field(default_factory=list)
    endings: list[TrialView] = field(default_factory=list)
    last: Progress = field(default_factory=lambda: Progress(budget=0))
    running: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    on_epoch: Callable[[TrialView], None] = lambda trial: None

    def opened(self, name: str, progress: Progress) -> None:
        self.last = progress

    def began(self, trial: TrialView, progress: Progress) -> None:
        self.began_with.append(trial)
        self.last = progress
        self.running.append(progress.running)

    def advanced(self, trial: TrialView) -> None:
        self.epochs.append((trial.number, len(trial.curve)))
        self.on_epoch(trial)

    def ended(self, trial: TrialView, progress: Progress) -> None:
        self.endings.append(trial)
        self.last = progress
        self.running.append(progress.running)

    def note(self, message: str) -> None:
        self.notes.append(message)


@dataclass
class Sweep:
    """A study and what its worker told."""

    opened: OpenStudy
    heard: Recorder
    interrupt: Interrupt
    worker: Worker

    def run(self) -> Sweep:
        self.worker.run()
        return self

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.opened.storage.get_all_trials(self.opened.study_id)

    @property
    def states(self) -> list[str]:
        return [trial.state.name for trial in self.trials]


@pytest.fixture
def sweep(
    storage: Storage, specification: Specification, images: ResidentData
) -> Callable[..., Sweep]:
    """Open a study as a worker does: `sweep(budget, name=…, train={…}, **specification)`."""

    def make(
        budget: int,
        *,
        name: str = "study",
        train: Mapping[str, Any] | None = None,
        within: Storage | None = None,
        heard: Recorder | None = None,
        **changes: Any,
    ) -> Sweep:
        changes["train"] = specification.train.replace(**(train or {}))
        spec = replace(specification, **changes)
        opened = open_study(within or storage, name, spec, budget)
        heard, interrupt = heard or Recorder(), Interrupt()
        return Sweep(
            opened, heard, interrupt, Worker(opened, SharedTrainer(images), heard, interrupt)
        )

    return make
