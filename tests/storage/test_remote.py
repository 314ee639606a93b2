"""An object store that goes away: it is waited for, and given up in one clear line."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem

from s3 import KEY, SECRET, Server
from visweep.errors import StorageError, UsageError
from visweep.sealed import unseal, write_sealed
from visweep.storage import waiting
from visweep.storage.remote import Remote
from visweep.storage.whereabouts import Artifacts


@pytest.fixture
def place(s3: Server, s3_url: str, tmp_path: Path) -> Iterator[Remote]:
    """A place that has one file, `kept`."""
    made = Remote(s3.files(), s3_url.removeprefix("s3://"), s3_url, tmp_path / "copies")
    made.path("kept").parent.mkdir(parents=True)
    made.path("kept").write_bytes(b"before")
    made.keep("kept")
    yield made
    if s3.port and s3._server is None:
        s3.start()


def test_a_store_that_is_away_for_a_while_is_waited_for(
    place: Remote, s3: Server, s3_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    s3.stop()
    back = threading.Timer(3, s3.start)
    back.start()
    begun = time.monotonic()
    place.path("kept").write_bytes(b"after")
    with caplog.at_level(logging.WARNING, "visweep"):
        place.keep("kept")
    back.join()
    assert time.monotonic() - begun > 2.5
    assert place.read("kept") == b"after"
    said = [record.getMessage() for record in caplog.records]
    assert all(SECRET not in line and KEY not in line for line in said)
    # The driver itself repeats a call for some seconds before it says a word.
    assert said == [] or said[0].startswith(f"waiting for the artifacts {s3_url}: ")


@pytest.mark.slow
def test_a_store_that_is_away_for_longer_is_announced_and_given_up(
    place: Remote,
    s3: Server,
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(waiting, "LIMIT", 20.0)
    s3.stop()
    with caplog.at_level(logging.WARNING, "visweep"), pytest.raises(StorageError) as given_up:
        place.keep("kept")
    line = str(given_up.value)
    assert line.startswith(f"artifacts {s3_url}: ")
    assert "\n" not in line
    assert SECRET not in line
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith(f"waiting for the artifacts {s3_url}: ")
    s3.start()
    with caplog.at_level(logging.WARNING, "visweep"):
        place.keep("kept")
    assert "the artifacts are back after" in caplog.text


@pytest.mark.parametrize("answered", [True, False])
def test_what_answered_another_process_is_waited_for_from_the_first_call_on(
    s3: Server, s3_url: str, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    client = {"key": KEY, "secret": SECRET, "endpoint_url": f"http://127.0.0.1:{s3.port}"}
    # The driver is not to repeat by itself what fails.
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    once = {"retries": {"total_max_attempts": 1}}
    monkeypatch.setitem(fsspec.config.conf, "s3", {**client, "config_kwargs": once})
    place = Artifacts("sqlite:///x.db", s3_url, answered).of("night", {})
    s3.stop()
    back = threading.Timer(1, s3.start)
    if answered:
        back.start()
        try:
            assert place.names() == []
        finally:
            back.join()
        return
    try:
        with pytest.raises(StorageError, match="artifacts s3://"):
            place.names()
    finally:
        s3.start()


@pytest.mark.slow
def test_what_never_answered_is_not_waited_for(s3: Server, s3_url: str, tmp_path: Path) -> None:
    place = Remote(s3.files(), s3_url.removeprefix("s3://"), s3_url, tmp_path)
    s3.stop()
    try:
        for ask in (place.names, place.require_usable):
            begun = time.monotonic()
            with pytest.raises(StorageError, match="artifacts s3://"):
                ask()
            assert time.monotonic() - begun < 30
    finally:
        s3.start()


class CutShort(LocalFileSystem):
    """A server of files, whose link breaks in the midst of so many uploads."""

    cuts = 0

    def put_file(self, path1: str, path2: str, **_: Any) -> None:
        content = Path(path1).read_bytes()
        Path(path2).write_bytes(content[: len(content) // 2] if self.cuts else content)
        if self.cuts:
            self.cuts -= 1
            raise ConnectionResetError("the link broke")


def test_half_an_upload_does_not_replace_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LIMIT", 0.5)
    files = CutShort(skip_instance_cache=True)
    place = Remote(files, f"{tmp_path}/place", "the place", tmp_path / "copies")
    write_sealed(place.path("a"), b"epoch 1")
    place.keep("a")
    before = place.read("a")
    write_sealed(place.path("a"), b"epoch 2")
    files.cuts = 1000
    with pytest.raises(StorageError, match="artifacts the place: the link broke"):
        place.keep("a")
    assert (place.names(), place.unfinished()) == (["a"], [".a.growing"])
    assert place.read("a") == before
    files.cuts = 3
    monkeypatch.undo()
    place.keep("a")
    assert (files.cuts, unseal(place.read("a"), "a")) == (0, b"epoch 2")


class NotReplacing(LocalFileSystem):
    """A server of files that gives no file a name that another has, and may not say so."""

    says_so = True

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if not Path(path2).exists():
            Path(path1).rename(path2)
        elif self.says_so:
            raise OSError(errno.EEXIST, "object name collision")


@pytest.mark.parametrize("says_so", [True, False])
def test_a_place_that_does_not_replace_is_refused_before_the_second_epoch(
    tmp_path: Path, says_so: bool
) -> None:
    files = NotReplacing(skip_instance_cache=True)
    files.says_so = says_so
    place = Remote(files, f"{tmp_path}/place", "the place", tmp_path / "copies")
    with pytest.raises(UsageError) as refused:
        place.require_usable()
    line = "--artifacts: the place does not replace a file by one of its name"
    assert str(refused.value) == line
    assert isinstance(refused.value.__cause__, OSError) == says_so
    assert list((tmp_path / "place").iterdir()) == []


def test_a_link_that_breaks_in_the_second_upload_is_no_fault_of_the_place(tmp_path: Path) -> None:
    class Away(LocalFileSystem):
        def mv(self, path1: str, path2: str, **_: Any) -> None:
            if Path(path2).exists():
                Path(path2).parent.rename(tmp_path / "away")
                raise ConnectionResetError("the link broke")
            Path(path1).rename(path2)

        def cat_file(self, path: str, *_: Any, **__: Any) -> Any:
            if not Path(path).exists():
                raise ConnectionResetError("no route")
            return Path(path).read_bytes()

    files = Away(skip_instance_cache=True)
    place = Remote(files, f"{tmp_path}/place", "the place", tmp_path / "copies")
    with pytest.raises(StorageError, match=r"^artifacts the place: no route$"):
        place.require_usable()


def test_what_was_found_usable_is_waited_for_from_then_on(tmp_path: Path) -> None:
    files = CutShort(skip_instance_cache=True)
    place = Remote(files, f"{tmp_path}/place", "the place", tmp_path / "copies")
    place.require_usable()
    place.path("a").parent.mkdir(parents=True)
    place.path("a").write_bytes(b"whole")
    files.cuts = 2
    place.keep("a")
    assert place.read("a") == b"whole"


def test_a_bucket_that_is_not_there(s3: Server, tmp_path: Path) -> None:
    place = Remote(s3.files(), "no-such-bucket/x", "s3://no-such-bucket/x", tmp_path)
    with pytest.raises(UsageError, match=r"--artifacts: s3://no-such-bucket/x cannot be used \("):
        place.require_usable()
