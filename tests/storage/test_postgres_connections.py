"""How a PostgreSQL server is reached: settings, passwords, and what is said when it cannot be."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from postgres import PASSWORD, USER, Server
from visweep.errors import StorageError, UsageError, VisweepError
from visweep.storage.engine import Storage
from visweep.storage.opening import open_storage
from visweep.storage.overview import overview
from visweep.storage.whereabouts import artifact_folder

pytestmark = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)

OpenUrl = Callable[[str], Storage]


def setting(storage: Storage, name: str) -> str:
    with storage.reading() as connection:
        return str(connection.execute(sa.text(f"SHOW {name}")).scalar_one())


def test_both_ends_notice_when_the_other_has_vanished(storage: Storage) -> None:
    assert setting(storage, "tcp_keepalives_idle") == "10"
    assert setting(storage, "tcp_keepalives_interval") == "5"
    assert setting(storage, "tcp_keepalives_count") == "3"
    assert setting(storage, "tcp_user_timeout") == "120000"
    assert setting(storage, "idle_in_transaction_session_timeout") == "30s"
    with storage.reading() as connection:
        driver: Any = connection.connection.dbapi_connection
        parameters = driver.info.get_parameters()
    assert parameters["keepalives_idle"] == "10"
    assert parameters["tcp_user_timeout"] == "120000"


def test_what_the_url_says_wins(url: str, open_url: OpenUrl) -> None:
    storage = open_url(
        f"{url}?keepalives_idle=77&application_name=mine"
        "&options=-c%20tcp_keepalives_idle%3D66%20-c%20work_mem%3D1MB"
    )
    assert setting(storage, "tcp_keepalives_idle") == "66"
    assert setting(storage, "tcp_keepalives_count") == "3"
    assert setting(storage, "work_mem") == "1MB"
    assert setting(storage, "application_name") == "mine"
    with storage.reading() as connection:
        driver: Any = connection.connection.dbapi_connection
        assert driver.info.get_parameters()["keepalives_idle"] == "77"


def test_what_the_environment_says_wins(
    url: str, open_url: OpenUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGAPPNAME", "mine")
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=1MB")
    storage = open_url(url)
    assert setting(storage, "application_name") == "mine"
    assert setting(storage, "work_mem") == "1MB"
    assert setting(storage, "tcp_keepalives_idle") == "10"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_the_driver_need_not_be_named(url: str, open_url: OpenUrl, scheme: str) -> None:
    assert open_url(url.replace("postgresql+psycopg", scheme)).get_all_studies() == []


def test_the_password_may_come_from_elsewhere(
    postgres: Server,
    url: str,
    open_url: OpenUrl,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare = postgres.url(url.rpartition("/")[2], password=None)
    file = tmp_path / "pass file"
    escaped = PASSWORD.replace(":", "\\:")
    file.write_text(f"127.0.0.1:{postgres.port}:*:{USER}:{escaped}\n")
    file.chmod(0o600)
    assert open_url(f"{bare}?passfile={file}").get_all_studies() == []
    assert overview(f"{bare}?passfile={file}") == []
    with monkeypatch.context() as patch:
        patch.setenv("PGPASSFILE", str(file))
        assert open_url(bare).get_all_studies() == []
    with monkeypatch.context() as patch:
        patch.setenv("PGPASSWORD", PASSWORD)
        assert open_url(bare).get_all_studies() == []
    with pytest.raises(StorageError, match="no password supplied"):
        open_url(bare)


@pytest.mark.parametrize("opened", [open_storage, overview], ids=["to write", "to look"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda u: u.set(password="wr0ng"), "password authentication failed for user"),
        (lambda u: u.set(database="nope"), 'database "nope" does not exist'),
        (lambda u: u.set(host="nowhere.invalid"), "nowhere.invalid"),
        (lambda u: u.set(port=1), "Connection refused"),
        (lambda u: u.update_query_dict({"bogus": "1"}), 'invalid connection option "bogus"'),
        (lambda u: u.update_query_dict({"options": "-c a=b"}), '"a"'),
    ],
    ids=["password", "database", "host", "port", "option", "setting"],
)
def test_what_is_wrong_is_said_in_one_line_at_once(
    url: str, opened: Any, change: Any, reason: str
) -> None:
    wrong = change(sa.make_url(url)).render_as_string(hide_password=False)
    begun = time.monotonic()
    with pytest.raises(VisweepError) as refused:
        opened(wrong)
    assert time.monotonic() - begun < 5
    line = str(refused.value)
    assert reason in line
    assert "\n" not in line
    assert PASSWORD not in line
    assert "wr0ng" not in line


def test_a_look_makes_nothing(new_url: str, postgres: Server) -> None:
    with pytest.raises(UsageError, match="holds no studies"):
        open_storage(new_url, must_exist=True)
    with pytest.raises(UsageError, match="holds no studies"):
        overview(new_url)
    found = postgres.execute(
        "SELECT * FROM pg_tables WHERE schemaname = 'public'", new_url.rpartition("/")[2]
    )
    assert found == []


def test_a_newer_visweeps_is_refused(url: str, postgres: Server) -> None:
    postgres.execute("UPDATE visweep_version SET version = 99", url.rpartition("/")[2])
    with pytest.raises(UsageError, match="made by a newer visweep"):
        open_storage(url)


def test_another_optunas_is_refused(url: str, postgres: Server) -> None:
    postgres.execute("UPDATE alembic_version SET version_num = 'v9.0.0.a'", url.rpartition("/")[2])
    with pytest.raises(UsageError, match="optuna version"):
        open_storage(url)


def test_artifacts_lie_in_a_folder_of_the_user_whatever_the_current_one(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert artifact_folder(url) == tmp_path / "data" / "visweep" / "artifacts"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert artifact_folder(url) == tmp_path / ".local" / "share" / "visweep" / "artifacts"


def test_closed_is_closed(url: str, postgres: Server) -> None:
    storage = open_storage(url)
    storage.get_all_studies()
    storage.close()
    name = url.rpartition("/")[2]
    left = f"SELECT * FROM pg_stat_activity WHERE datname = '{name}'"
    deadline = time.monotonic() + 5
    while postgres.execute(left):
        assert time.monotonic() < deadline
        time.sleep(0.01)
