"""What is waited for, and for how long."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from optuna.exceptions import StorageInternalError
from optuna.study import StudyDirection
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from visweep.errors import StorageError
from visweep.storage import retry, transactions
from visweep.storage.retry import Patience, is_passing


def wrapped(cause: Exception, kind: type[DBAPIError] = OperationalError) -> DBAPIError:
    return kind("SELECT 1", {}, cause)


def raised(state: str) -> DBAPIError:
    return wrapped(psycopg.errors.lookup(state)("no"))


def caused(cause: Exception) -> Exception:
    """As Optuna raises it."""
    error = StorageInternalError("the storage failed")
    error.__cause__ = cause
    return error


LOST = wrapped(psycopg.OperationalError("server closed the connection unexpectedly"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LOST, True),
        (caused(LOST), True),
        (wrapped(psycopg.OperationalError('connection to "h" failed: Connection refused')), True),
        (wrapped(psycopg.OperationalError("FATAL:  the database system is starting up")), True),
        (wrapped(psycopg.errors.ConnectionTimeout("connection timeout expired")), True),
        (raised("57P01"), True),
        (raised("57P03"), True),
        (raised("08006"), True),
        (raised("25P03"), True),
        (raised("40P01"), True),
        (raised("53300"), True),
        (raised("53100"), False),  # the disk is full
        (raised("42P01"), False),  # a table is missing
        (wrapped(psycopg.errors.UniqueViolation("twice"), IntegrityError), False),
        (wrapped(psycopg.OperationalError("FATAL:  password authentication failed")), False),
        (wrapped(psycopg.OperationalError('FATAL:  database "x" does not exist')), False),
        (wrapped(psycopg.DataError("a constraint of the data"), DBAPIError), False),
        (ValueError("something else"), False),
    ],
    ids=str,
)
def test_only_a_database_that_is_away_is_waited_for(error: Exception, expected: bool) -> None:
    assert is_passing(error) is expected


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "LIMIT", 0.5)
    monkeypatch.setattr(retry, "NOTICE", 0.0)


def failing(times: int, error: BaseException = LOST) -> Any:
    left = iter(range(times))

    def attempt() -> str:
        if next(left, None) is not None:
            raise error
        return "done"

    return attempt


@pytest.mark.usefixtures("quick")
def test_it_is_told_once_and_then_that_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    patience = Patience("sqlite:///x.db")
    with caplog.at_level(logging.WARNING, "visweep"):
        assert patience.call(failing(3)) == "done"
        assert patience.call(failing(0)) == "done"
    told, back = (r.message for r in caplog.records)
    assert (
        told == "waiting for the storage sqlite:///x.db: server closed the connection unexpectedly"
    )
    assert back.startswith("the storage is back after ")


def test_short_waits_are_not_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert Patience("x").call(failing(2)) == "done"
    assert caplog.records == []


@pytest.mark.usefixtures("quick")
def test_it_gives_up_and_then_does_not_wait_to_tidy_up() -> None:
    patience = Patience("x")
    begun = time.monotonic()
    with pytest.raises(OperationalError):
        patience.call(failing(1000))
    assert time.monotonic() - begun >= 0.3
    begun = time.monotonic()
    with pytest.raises(OperationalError):
        patience.call(failing(1))
    assert time.monotonic() - begun < 0.1
    assert patience.call(failing(0)) == "done"
    assert patience.call(failing(1)) == "done"  # it is there again, so patience is, too


def test_whoever_is_interrupted_does_not_wait_again() -> None:
    patience = Patience("x")
    with pytest.raises(KeyboardInterrupt):
        patience.call(failing(1, KeyboardInterrupt()))
    with pytest.raises(OperationalError):
        patience.call(failing(1))


def test_calls_within_a_call_are_repeated_with_it() -> None:
    patience, attempts = Patience("x"), []

    def outer() -> str:
        attempts.append("outer")
        return patience.call(inner)

    def inner() -> str:
        attempts.append("inner")
        if len(attempts) < 4:
            raise LOST
        return "done"

    assert patience.call(outer) == "done"
    assert attempts == ["outer", "inner"] * 2


def test_a_locked_file_is_waited_for(
    file: Path, open_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "LOCK_TIMEOUT", 0.05)
    storage = open_file(file)
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.5, lambda: other.execute("ROLLBACK"))
        release.start()
        study_id = storage.create_new_study([StudyDirection.MAXIMIZE], "study")
        release.join()
    assert storage.get_study_name_from_id(study_id) == "study"


@pytest.mark.usefixtures("quick")
def test_what_is_wrong_is_not_waited_for(storage: Any, file: Path) -> None:
    with closing(sqlite3.connect(file)) as other:
        other.execute("DROP TABLE study_user_attributes")
        other.commit()
    begun = time.monotonic()
    with pytest.raises(StorageError, match="no such table"):
        storage.set_study_attributes_once(1, {"k": 1})
    assert time.monotonic() - begun < 0.3
