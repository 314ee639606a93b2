from __future__ import annotations

import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL

from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.sealed import write_sealed
from visweep.storage.artifacts import Checkpoints, folder_name
from visweep.storage.backup import file_url
from visweep.storage.engine import Storage
from visweep.storage.folder import Folder
from visweep.storage.lease import Lease
from visweep.storage.opening import open_storage
from visweep.storage.owner import this_process
from visweep.storage.slots import Slots
from visweep.storage.specification import BUDGET, SPECIFICATION, STUDY_ID, Specification
from visweep.storage.whereabouts import artifact_folder

OpenStorage = Callable[[Path], Storage]


@pytest.fixture
def open_url() -> Iterator[Callable[[str], Storage]]:
    """Open storages; they are closed after the test."""
    storages: list[Storage] = []

    def open_it(url: str) -> Storage:
        storages.append(open_storage(url))
        return storages[-1]

    yield open_it
    for storage in storages:
        storage.close()


@pytest.fixture
def open_file(open_url: Callable[[str], Storage]) -> OpenStorage:
    """Open SQLite files; they are closed after the test."""
    return lambda path: open_url(URL.create("sqlite", database=str(path)).render_as_string())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the test's database lies, with nothing else in the folder."""
    folder = tmp_path / "storage"
    folder.mkdir()
    return folder / "studies.db"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "studies.db"
    open_storage(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """SQLite, unless the test says `@everywhere`."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture
def url(backend: str, request: pytest.FixtureRequest) -> str:
    """A storage of ours without studies."""
    if backend == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    file: Path = request.getfixturevalue("file")
    shutil.copyfile(request.getfixturevalue("empty_database"), file)
    return f"sqlite:///{file}"


@pytest.fixture
def new_url(backend: str, request: pytest.FixtureRequest) -> str:
    """A storage that nobody has opened yet."""
    if backend == "postgresql":
        return str(request.getfixturevalue("empty_postgres"))
    return f"sqlite:///{request.getfixturevalue('file')}"


@pytest.fixture
def storage(url: str, open_url: Callable[[str], Storage]) -> Storage:
    return open_url(url)


@pytest.fixture
def study_id(storage: Storage) -> int:
    return storage.create_new_study([StudyDirection.MAXIMIZE], "study")


@pytest.fixture
def trial_id(storage: Storage, study_id: int) -> int:
    return storage.create_new_trial(study_id)


@pytest.fixture
def plain() -> Callable[[Path], AbstractContextManager[sqlite3.Connection]]:
    """Connects to a file as any other program would."""

    def connect(path: Path) -> AbstractContextManager[sqlite3.Connection]:
        return closing(sqlite3.connect(path, timeout=0.0, isolation_level=None))

    return connect


SPACE = {"drop": FloatDistribution(0.0, 0.3), "heads": CategoricalDistribution([2, 4, 8])}
EPOCHS = 4


class Sweep:
    """A study as a worker leaves it, without training: leases, reports, checkpoints, results."""

    space = SPACE

    def __init__(self, place: Path | str, name: str = "night-run", seed: int = 0) -> None:
        self.url = place if isinstance(place, str) else file_url(place)
        self.storage = open_storage(self.url)
        self.study = optuna.create_study(
            study_name=name, storage=self.storage, direction="maximize", load_if_exists=True
        )
        specification = Specification(
            space=SPACE,
            data=DataConfig(name="cluttered-digits"),
            fingerprint="f" * 64,
            model=ViTConfig(),
            train=TrainConfig(epochs=EPOCHS),
            sampler="tpe",
            pruner="none",
            seed=seed,
        )
        self.storage.set_study_attributes_once(
            self.study._study_id,
            {
                SPECIFICATION: {"identity": specification.identity()},
                STUDY_ID: uuid.uuid4().hex,
            },
        )
        self.slots = Slots(self.storage, self.study._study_id, this_process())

    @property
    def folder(self) -> Path:
        name = folder_name(self.study.study_name, self.study.user_attrs)
        return artifact_folder(self.url) / name

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self.study._study_id)

    def want(self, budget: int) -> None:
        self.study.set_user_attr(BUDGET, budget)
        self.slots.set_budget(budget)

    def take(self) -> Lease:
        lease = self.slots.take()
        assert lease is not None
        return lease

    def begin(self, drop: float = 0.1, heads: int = 4) -> Lease:
        """Go on with the trial that is running, or begin the next one."""
        lease = self.take()
        if not lease.adopted:
            self.slots.begin(lease, {"drop": drop, "heads": heads}, SPACE)
        return lease

    def train(self, lease: Lease, until: int, accuracy: float = 0.5) -> None:
        """Checkpoint and report the epochs that are missing, up to one."""
        done = len(self.storage.get_trial(lease.trial_id).intermediate_values)
        checkpoint = Checkpoints(Folder(self.folder)).inherit(lease.number, lease.generation)
        for epoch in range(done + 1, until + 1):
            write_sealed(checkpoint, f"trial {lease.trial_id} epoch {epoch}".encode())
            with self.slots.fenced(lease):
                self.storage.set_trial_intermediate_value(
                    lease.trial_id, epoch, accuracy + epoch / 100
                )

    def finish(self, lease: Lease, state: TrialState = TrialState.COMPLETE) -> None:
        trial = self.storage.get_trial(lease.trial_id)
        failed = state == TrialState.FAIL
        last = trial.intermediate_values.get(trial.last_step or 0)
        ended = "failed: it broke" if failed else "completed"
        self.storage.set_trial_attributes(
            lease.trial_id,
            {
                "ended": ended,
                "epochs": len(trial.intermediate_values),
                "provenance": {"host": "h"},
            },
        )
        values = None if failed or last is None else [last]
        self.storage.set_trial_state_values(lease.trial_id, state, values)
        self.slots.release(lease)
        self.slots.set_budget(self.study.user_attrs[BUDGET])

    def run(self, drop: float = 0.1, accuracy: float = 0.5) -> int:
        """One trial from its beginning to its end; returns its number."""
        lease = self.begin(drop)
        self.train(lease, EPOCHS, accuracy)
        self.finish(lease)
        return lease.number

    def close(self) -> None:
        self.storage.close()


@pytest.fixture
def sweep() -> Iterator[Callable[..., Sweep]]:
    """Make studies, or go on with them; their storages are closed after the test."""
    made: list[Sweep] = []

    def make(place: Path | str, **arguments: Any) -> Sweep:
        made.append(Sweep(place, **arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def sweep_type() -> type[Sweep]:
    """For tests that make many."""
    return Sweep
