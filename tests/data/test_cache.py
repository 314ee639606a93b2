from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from visweep.data.cache import cached
from visweep.folders import cache_dir


class Maker:
    """Makes the same arrays whenever it is called, and counts that."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"a": np.arange(12).reshape(3, 4), "b": np.array([1, 255], np.uint8)}


def assert_right(arrays):
    expected = Maker()()
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_made_once_and_then_read():
    make = Maker()
    assert_right(cached("name", make))
    assert_right(cached("name", make))
    assert make.calls == 1


def test_another_name_is_another_file():
    make = Maker()
    cached("one", make)
    cached("other", make)
    assert make.calls == 2


def test_the_file_is_an_ordinary_npz(cache: Path):
    cached("name", Maker())
    with np.load(cache / "name.npz") as arrays:
        assert_right(dict(arrays))


def test_nothing_unfinished_stays(cache: Path):
    cached("name", Maker())
    assert [entry.name for entry in cache.iterdir()] == ["name.npz"]


def test_a_file_damaged_anywhere_is_made_anew(cache: Path, caplog: pytest.LogCaptureFixture):
    make = Maker()
    cached("name", make)
    path = cache / "name.npz"
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 37)]
    for at in range(0, len(whole), 11):
        damaged.append(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
    for calls, content in enumerate(damaged, start=2):
        path.write_bytes(content)
        assert_right(cached("name", make))
        assert make.calls == calls
        assert path.read_bytes() == whole
    assert len(caplog.messages) == len(damaged)
    assert str(path) in caplog.messages[0]


def test_without_a_place_to_write_nothing_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VISWEEP_CACHE", str(tmp_path / "file" / "cache"))
    make = Maker()
    assert_right(cached("name", make))
    assert_right(cached("name", make))
    assert make.calls == 2
    assert "is not cached" in caplog.messages[-1]
    assert "\n" not in caplog.messages[-1]


def test_a_write_that_fails_leaves_nothing(cache: Path, caplog: pytest.LogCaptureFixture):
    (cache / "name.npz").mkdir(parents=True)  # cannot be replaced by a file
    assert_right(cached("name", Maker()))
    assert [entry.name for entry in cache.iterdir()] == ["name.npz"]
    assert "is not cached" in caplog.messages[-1]


def test_an_error_while_making_is_passed_on(cache: Path):
    def fail() -> dict[str, np.ndarray]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached("name", fail)
    assert not (cache / "name.npz").exists()


def test_the_folder_is_the_systems_unless_another_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    assert cache_dir() == cache
    monkeypatch.delenv("VISWEEP_CACHE")
    assert cache_dir().name == "visweep"
