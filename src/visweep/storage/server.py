"""Connections to PostgreSQL that outlive a cut link, on both of its ends."""

from __future__ import annotations

import os
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from visweep.errors import UsageError

IDLE_SECONDS = 30
"""After so long the server ends a transaction in which nothing happens: that of a worker that was
suspended in the middle of it, whose locks would keep all the others waiting."""

_CONNECT_SECONDS = 5
# A cut link is given up after this long; shorter ones are waited out by TCP itself.
_STALL_MILLISECONDS = 120_000
_KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}

_CLIENT = {
    "application_name": "visweep",
    "connect_timeout": _CONNECT_SECONDS,
    "tcp_user_timeout": _STALL_MILLISECONDS,
    **_KEEPALIVES,
}
_ENVIRONMENT = {"application_name": "PGAPPNAME", "connect_timeout": "PGCONNECT_TIMEOUT"}
# Without them the server keeps the locks of a client that has vanished.
_SERVER = {
    **{f"tcp_{name}": value for name, value in _KEEPALIVES.items()},
    "tcp_user_timeout": _STALL_MILLISECONDS,
    "idle_in_transaction_session_timeout": IDLE_SECONDS * 1000,
}


def connect_arguments(url: URL) -> dict[str, Any]:
    """What a connection is made with; what the user says in the URL or the environment wins."""
    arguments = {
        name: value
        for name, value in _CLIENT.items()
        if name not in url.query and _ENVIRONMENT.get(name, "") not in os.environ
    }
    ours = " ".join(f"-c {name}={value}" for name, value in _SERVER.items())
    theirs = url.query.get("options", os.environ.get("PGOPTIONS", ""))
    # Of two values for one setting the server takes the later.
    return {**arguments, "options": f"{ours} {theirs}".rstrip()}


def make_engine(url: URL, **arguments: Any) -> sa.Engine:
    """An engine for a PostgreSQL URL.

    Raises:
        UsageError: its driver is not installed.
    """
    try:
        return sa.create_engine(url, connect_args=connect_arguments(url), **arguments)
    except ImportError as e:
        raise UsageError(
            "--storage: the driver for PostgreSQL is not installed; run: "
            "pip install 'visweep[postgresql]'"
        ) from e


def set_view(connection: sa.Connection, *, lasting: bool) -> None:
    """Whether the transaction that begins sees the database as it is now until its end.

    Otherwise each of its statements sees what is committed by then, as a transaction must that
    waits for a lock and then looks again.
    """
    from psycopg import IsolationLevel

    level = IsolationLevel.REPEATABLE_READ if lasting else IsolationLevel.READ_COMMITTED
    driver: Any = connection.connection.dbapi_connection
    if driver.isolation_level != level:
        driver.isolation_level = level  # sent with the transaction's own beginning


def reason(error: BaseException) -> str:
    """The driver's own word on what went wrong, in one line."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DBAPIError):
        cause = cause.__cause__ or cause.__context__
    said = str(cause.orig) if isinstance(cause, DBAPIError) else str(error)
    return said.strip().splitlines()[0] if said.strip() else type(error).__name__
