from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from sqlalchemy.engine import URL

from visweep.storage.engine import Storage, open_storage

OpenStorage = Callable[[Path], Storage]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture
def open_file() -> Iterator[OpenStorage]:
    """Open SQLite files; they are closed after the test."""
    storages: list[Storage] = []

    def open_it(path: Path) -> Storage:
        url = URL.create("sqlite", database=str(path)).render_as_string()
        storages.append(open_storage(url))
        return storages[-1]

    yield open_it
    for storage in storages:
        storage.close()


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
def storage(file: Path, open_file: OpenStorage, empty_database: Path) -> Storage:
    shutil.copyfile(empty_database, file)
    return open_file(file)
