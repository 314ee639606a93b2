"""Waiting for a place of artifacts that is away for a while: unreachable, or overloaded."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from visweep.errors import StorageError, VisweepError
from visweep.storage.retry import FIRST_WAIT, LIMIT, LONGEST_WAIT, NOTICE
from visweep.storage.url import mask

Result = TypeVar("Result")

_LASTING = (
    FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError,
    ImportError, NotImplementedError, TypeError, ValueError, AttributeError, VisweepError,
)  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_LONGEST = 300
"""Characters of a driver's own words that are shown."""

_log = logging.getLogger(__name__)


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed later; drivers have a hundred errors for being away."""
    if not isinstance(error, Exception) or isinstance(error, _LASTING):
        return False
    return not (isinstance(error, OSError) and error.errno in _FULL)


def reason(error: BaseException) -> str:
    """The driver's own word on what went wrong, in one line and without secrets."""
    said = " ".join(str(error).split())
    return mask(said)[:_LONGEST] or type(error).__name__


class Endurance:
    """Repeats what failed because a place was away, until it is back.

    What has never answered is not waited for: its address may be wrong.

    Args:
        where: the place, as it may be shown.
        answered: whether it has answered this machine before.
    """

    def __init__(self, where: str, answered: bool = False) -> None:
        self._where = where
        self._answered = answered
        self._away_since: float | None = None

    def call(self, attempt: Callable[[], Result]) -> Result:
        """What `attempt` returns, once the place lets it; it may happen twice.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: the place was away for longer than `LIMIT`, or something else is wrong.
        """
        retrying = Retrying(
            retry=retry_if_exception(is_passing),
            wait=wait_random_exponential(FIRST_WAIT, LONGEST_WAIT),
            stop=stop_after_delay(LIMIT if self._answered else 0.0),
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            result: Result = retrying(attempt)
        except FileNotFoundError:
            self.has_answered()
            raise
        except VisweepError:
            raise
        except Exception as e:
            raise StorageError(f"artifacts {self._where}: {reason(e)}") from e
        self.has_answered()
        return result

    def has_answered(self) -> None:
        """The place is there: from now on it is waited for."""
        self._answered = True
        since, self._away_since = self._away_since, None
        if since is not None:
            _log.warning("the artifacts are back after %.0f s", time.monotonic() - since)

    def _tell(self, state: RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        late = (state.seconds_since_start or 0.0) >= NOTICE
        if error is not None and late and self._away_since is None:
            self._away_since = time.monotonic() - (state.seconds_since_start or 0.0)
            _log.warning("waiting for the artifacts %s: %s", self._where, reason(error))
