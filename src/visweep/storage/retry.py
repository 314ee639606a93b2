"""Waiting for a database that is away for a while: restarting, unreachable, or locked."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from functools import partial, wraps
from math import inf
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError, OperationalError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from visweep.storage.server import reason

Result = TypeVar("Result")
Method = TypeVar("Method", bound=Callable[..., Any])

LIMIT = 600.0
"""Seconds after which a database that is away is given up."""
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds between two attempts: up to twice as long each time, at random so that workers do not
crowd."""
NOTICE = 1.0
"""Seconds that nobody needs to hear of."""
STALL = 15.0
"""A call that took so many seconds was kept waiting, by the link or by another's lock. Much less
than a lease, so that what is not noticed does not matter."""

# The connection is broken (08), the server is stopping or starting (57P), has ended an idle
# transaction (25P03), or has no room (53300); a transaction was undone for another one's sake.
_PASSING = re.compile("08...|57P0[1-5]|25P0[34]|53300|40001|40P01")
# These are told while connecting, when the driver gives no code; waiting does not mend them.
_REFUSED = re.compile("authentication failed|no password supplied|does not exist|no pg_hba.conf")
_SQLITE_BUSY = (5, 6)

_log = logging.getLogger(__name__)


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed later: the database was away, and nothing is wrong."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, DBAPIError):
        found = found.__cause__ or found.__context__
    if not isinstance(found, DBAPIError):
        return False
    code = getattr(found.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _SQLITE_BUSY  # the rest of the code tells how it came to that
    state = getattr(found.orig, "sqlstate", None)
    if state is not None:
        return _PASSING.fullmatch(state) is not None
    lost = found.connection_invalidated or isinstance(found, OperationalError)
    return lost and _REFUSED.search(str(found.orig)) is None


class Patience:
    """Repeats what failed because the database was away, until it is back.

    What is repeated may have happened: a connection can break between a commit and its answer.
    So it must be harmless twice.

    Args:
        where: the storage, as it may be shown.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._away_since: float | None = None
        self._last_away = 0.0
        self._exhausted = False

    def call(self, attempt: Callable[[], Result]) -> Result:
        """What `attempt` returns, once the database lets it.

        Raises:
            DBAPIError, StorageInternalError: the database was away for longer than `LIMIT`, or
                something else is wrong with it.
        """
        if getattr(self._thread, "inside", False):
            return attempt()
        self._thread.inside = True
        try:
            result = self._attempted(attempt)
        except BaseException as e:
            # Whoever gave up, or was told to, does not wait again to tidy up.
            self._exhausted = is_passing(e) or isinstance(e, KeyboardInterrupt)
            raise
        finally:
            self._thread.inside = False
        self._back()
        return result

    def _attempted(self, attempt: Callable[[], Result]) -> Result:
        # The first attempt needs no retrying machinery, which costs more than most statements.
        began = time.monotonic()
        try:
            return self.once(attempt)
        except Exception as e:
            if self._exhausted or not is_passing(e):
                raise
            self._tell(e, began)
        result: Result = self._retrying(began)(self.once, attempt)
        return result

    def once(self, attempt: Callable[[], Result]) -> Result:
        """What `attempt` returns; it is not repeated, and remembered if the database was away."""
        self._thread.begun = time.monotonic()
        try:
            result = attempt()
        except Exception as e:
            if is_passing(e):
                self._thread.failed = True
            raise
        finally:
            self._last_away = self.watching_since()
            self._thread.begun = inf
        self._thread.failed = False
        return result

    def watching_since(self) -> float:
        """Since when, on the monotonic clock, nothing kept this process from the database.

        Who could not look cannot say that another one was silent; it may have been kept from
        writing by the same thing.
        """
        now = time.monotonic()
        stalled = now - getattr(self._thread, "begun", inf) > STALL
        kept = stalled or getattr(self._thread, "failed", False)
        return now if kept else self._last_away

    def _retrying(self, began: float) -> Retrying:
        def tell(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if error is not None:
                self._tell(error, began)

        return Retrying(
            retry=retry_if_exception(is_passing),
            wait=wait_random_exponential(FIRST_WAIT, LONGEST_WAIT),
            stop=stop_after_delay(LIMIT),
            before_sleep=tell,
            reraise=True,
        )

    def _tell(self, error: BaseException, began: float) -> None:
        if time.monotonic() - began < NOTICE:
            return
        with self._lock:
            told, self._away_since = self._away_since, self._away_since or began
        if told is None:
            _log.warning("waiting for the storage %s: %s", self._where, reason(error))

    def _back(self) -> None:
        with self._lock:
            since, self._away_since = self._away_since, None
            self._exhausted = False
        if since is not None:
            _log.warning("the storage is back after %.0f s", time.monotonic() - since)


def patient(method: Method) -> Method:
    """Repeat a method while the database is away; `self.patience` knows how long.

    It may happen twice, so it must be a transaction that changes nothing the second time.
    """

    @wraps(method)
    def waiting(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.patience.call(partial(method, self, *args, **kwargs))

    return waiting  # type: ignore[return-value]


def watched(method: Method) -> Method:
    """Do not repeat a method, and remember when the database was away."""

    @wraps(method)
    def once(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.patience.once(partial(method, self, *args, **kwargs))

    return once  # type: ignore[return-value]
