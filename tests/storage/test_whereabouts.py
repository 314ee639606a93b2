"""What `--artifacts` accepts, and where a study's artifacts are found."""

from __future__ import annotations

import signal
import socket
import threading
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, cast

import pytest

from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.errors import StorageError, UsageError
from visweep.search import crew
from visweep.search.study import open_study
from visweep.storage.engine import Storage
from visweep.storage.folder import Folder
from visweep.storage.remote import Remote
from visweep.storage.specification import ARTIFACTS, STUDY_ID, Specification
from visweep.storage.whereabouts import Artifacts, accepted_place, artifact_folder, make_ready

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
    assert accepted_place("s3://bucket//") == "s3://bucket"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("", "the place is empty; accepted: a folder, or a URL"),
        ("nope://x/y", "unknown scheme 'nope'; accepted: a folder, or a URL"),
        ("s3://", "'s3://' names no place; accepted: a folder, or a URL"),
        ("s3:///", "'s3:///' names no place; accepted: a folder, or a URL"),
        ("://x", "'://x' names no place; accepted: a folder, or a URL"),
        ("github://x/y", r"github:// cannot be used \(.*'org' and 'repo'\); accepted: a folder"),
        ("ftp://host:port/x", r"ftp:// cannot be used \(.*'port'\); accepted: a folder, or a URL"),
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


class TestAServerThatIsConnectedToAtOnce:
    """Whoever names it is told that it is away; a worker of a crew waits for it."""

    @pytest.fixture
    def port(self) -> int:
        """Nobody listens there."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def test_it_is_away(self, port: int) -> None:
        line = f"artifacts ftp://127.0.0.1:{port}/x: .*Connection refused"
        with pytest.raises(StorageError, match=line):
            accepted_place(f"ftp://127.0.0.1:{port}/x/")
        with pytest.raises(StorageError, match=line.replace("/x", "/x/night-01234567")):
            Artifacts(SERVER, f"ftp://127.0.0.1:{port}/x").of("night", NIGHT)

    def test_a_worker_of_a_crew_waits_for_it(self, port: int, storage: Storage) -> None:
        """It never answered this process, but it did the one that began the crew."""
        specification = Specification(
            space={},
            data=DataConfig(),
            fingerprint="of nothing",
            model=ViTConfig(patch_size=16, embed_dim=8, depth=1, num_heads=2),
            train=TrainConfig(epochs=1, precision="float32"),
            sampler="random",
            pruner="none",
            seed=0,
        )
        open_study(storage, "night", specification, 1)

        class Joined(Exception):
            pass

        def make_trainer() -> Any:
            raise Joined

        job = crew.Job(
            storage=storage.engine.url.render_as_string(hide_password=False),
            study="night",
            data_dir=None,
            artifacts=f"ftp://127.0.0.1:{port}/x",
            make_trainer=make_trainer,
        )
        back = threading.Timer(1.0, _greet, [port])
        back.start()
        before = signal.getsignal(signal.SIGUSR1)
        begun = time.monotonic()
        try:
            with pytest.raises(Joined):
                crew._work(job, crew._Teller(Pipe()[0]), cast(Any, None))
        finally:
            signal.signal(signal.SIGUSR1, before)
            back.join()
        assert time.monotonic() - begun > 0.9


def _greet(port: int) -> None:
    """As a server of FTP does: it lets one client in."""
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(30)
        client, _ = server.accept()
        with client, client.makefile("rwb") as lines:
            lines.write(b"220 here\r\n")
            lines.flush()
            for _ in lines:
                lines.write(b"230 you are in\r\n")
                lines.flush()
                break


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


def test_artifacts_lie_beside_the_file(tmp_path: Path) -> None:
    assert artifact_folder(f"sqlite:///{tmp_path}/x.db") == tmp_path / "artifacts"
