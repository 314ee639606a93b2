"""What `--artifacts` accepts, and where a study's artifacts are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from visweep.errors import UsageError
from visweep.storage.folder import Folder
from visweep.storage.remote import Remote
from visweep.storage.specification import ARTIFACTS, STUDY_ID
from visweep.storage.whereabouts import Artifacts, accepted_place, make_ready

NIGHT = {STUDY_ID: "0123456789abcdef"}
SERVER = "postgresql://user@nowhere.invalid/db"
SECRET = "wJalr/XUtn+FEMI=K7"


def test_nothing_given_is_nothing() -> None:
    assert accepted_place(None) is None


def test_a_folder_is_stored_as_every_folder_of_this_machine_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("share", "./share/", "~/share", f"{tmp_path}/share", f"file://{tmp_path}/share"):
        assert accepted_place(given) == str(tmp_path / "share")
    assert list(tmp_path.iterdir()) == []


def test_a_url_is_stored_as_it_is() -> None:
    assert accepted_place("s3://bucket/of mine/") == "s3://bucket/of mine"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("", "the place is empty; accepted: a folder, or a URL"),
        ("nope://x/y", "unknown scheme 'nope'; accepted: a folder, or a URL"),
        ("memory://x", "no other process would see memory://"),
        ("gs://bucket/x", r"gs:// is not supported yet \(.*gcsfs.*\); run: pip install gcsfs"),
        ("simplecache::s3://bucket/x", "chains file systems"),
        ("no/such/folder", "there is no folder .*/no/such; create it first"),
        (f"s3://AKIAKEY:{SECRET}@bucket/x", "has a secret or a query in it, .*FSSPEC_S3_KEY"),
        (f"sftp://me:{SECRET}@host/x", "has a secret or a query in it, .*FSSPEC_SFTP_KEY"),
        (f"s3://bucket/x?secret={SECRET}", "has a secret or a query in it"),
        (f"s3://a:{SECRET}@bucket/x?b@{SECRET}", "has a secret or a query in it"),
    ],
)
def test_what_is_refused(given: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"^--artifacts: .*{reason}") as refused:
        accepted_place(given)
    line = str(refused.value)
    assert "\n" not in line
    assert not any(part in line for part in (SECRET, *SECRET.split("/")))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--artifacts: .*/file is not a folder"):
        accepted_place(str(tmp_path / "file"))


def test_a_folder_is_made_when_all_else_is_good(tmp_path: Path) -> None:
    make_ready(str(tmp_path / "share"))
    make_ready(str(tmp_path / "share"))
    assert (tmp_path / "share").is_dir()


class TestWhereToLook:
    def test_beside_a_file(self, tmp_path: Path) -> None:
        found = Artifacts(f"sqlite:///{tmp_path}/x.db").of("night", NIGHT)
        assert found.where == f"{tmp_path}/artifacts/night-01234567"

    def test_in_a_folder_of_the_user_with_a_server(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        artifacts = Artifacts(SERVER)
        assert artifacts.of("night", NIGHT).where == f"{tmp_path}/visweep/artifacts/night-01234567"
        assert artifacts.are_of_this_machine(NIGHT)

    def test_where_the_study_says(self, tmp_path: Path) -> None:
        attributes = {**NIGHT, ARTIFACTS: str(tmp_path)}
        for url in (SERVER, "sqlite:///x.db"):
            artifacts = Artifacts(url)
            assert artifacts.of("night", attributes).where == f"{tmp_path}/night-01234567"
            assert not artifacts.are_of_this_machine(attributes)

    def test_where_this_machine_has_it(self, tmp_path: Path) -> None:
        attributes = {**NIGHT, ARTIFACTS: "/mnt/of another machine"}
        found = Artifacts(SERVER, str(tmp_path)).of("night", attributes)
        assert isinstance(found, Folder)
        assert found.where == f"{tmp_path}/night-01234567"

    def test_in_an_object_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VISWEEP_CACHE", str(tmp_path))
        one, other = (
            Artifacts(SERVER).of("night", {**NIGHT, ARTIFACTS: url})
            for url in ("s3://bucket/x", "s3://bucket/y")
        )
        assert isinstance(one, Remote)
        assert one.where == "s3://bucket/x/night-01234567"
        assert one.path("a").is_relative_to(tmp_path)
        assert one.path("a") != other.path("a")

    def test_a_folder_that_this_machine_does_not_have_is_not_made(self, tmp_path: Path) -> None:
        attributes = {**NIGHT, ARTIFACTS: f"{tmp_path}/mnt"}
        with pytest.raises(UsageError, match=r"'night' keeps .*/mnt, which is no folder here"):
            Artifacts(SERVER).of("night", attributes)
