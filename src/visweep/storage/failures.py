"""What goes wrong with a storage, in the words of whoever gave its URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import DBAPIError

from visweep.errors import StorageError, VisweepError
from visweep.storage import server
from visweep.storage.url import without_password

DATABASE_ERRORS = (DBAPIError, StorageInternalError)
"""What the driver raises, and what Optuna makes of it."""


class TrialEnded(VisweepError):
    """The trial is finished, so that nothing of it can be written any more."""


def describe(error: BaseException, url: sqlalchemy.URL) -> str:
    """One line that says what is wrong with the storage, from the driver's own words."""
    return f"storage {without_password(url)}: {server.reason(error)}"


@contextmanager
def storage_errors(storage: RDBStorage) -> Iterator[None]:
    """Turn what Optuna and the driver raise into a `StorageError` that names the cause."""
    try:
        yield
    except DATABASE_ERRORS as e:
        raise StorageError(describe(e, storage.engine.url)) from e
