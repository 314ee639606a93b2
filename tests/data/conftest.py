from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for every test: none reads what the user's own holds."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VISWEEP_CACHE", str(folder))
    return folder
