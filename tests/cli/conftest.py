from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Snapshot = Callable[[Path], dict[str, str]]


@pytest.fixture
def snapshot() -> Snapshot:
    """Every file below a folder, with its content."""

    def take(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): (
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            )
            for path in folder.rglob("*")
        }

    return take


@pytest.fixture(scope="session")
def finished_study(
    _launcher: Any, tiny_search: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a finished search of three trials, called `night-run`; do not write there."""
    folder = tmp_path_factory.mktemp("finished")
    process = _launcher.run(
        tiny_search, "--trials", 3, "--train-size", 300, "--epochs", 2, "--workers", 1,
        "--study", "night-run", "--storage", f"sqlite:///{folder}/studies.db",
    )  # fmt: skip
    assert (process.status, process.stderr) == (0, ""), process.stderr
    return folder
