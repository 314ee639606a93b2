"""The errors that visweep raises on purpose: one small family, rooted in `VisweepError`.

A `UsageError` is the user's to mend: the command line prints its one line and exits with status 2.
Everything else in the family is a failure at run time and keeps its cause (`raise … from e`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VisweepError(Exception):
    """Base of every error that visweep raises on purpose."""


class UsageError(VisweepError):
    """Bad input. The message is one line: the option, the value and what would be accepted."""


class DataError(UsageError):
    """The images are missing, unreadable, or not what the study was begun with."""


class SpecificationMismatch(UsageError):
    """A study is resumed under another identity than the one that it was created with."""


class StorageError(VisweepError):
    """The storage failed at run time: locked for too long, full, damaged or unreachable."""


class CheckpointError(VisweepError):
    """A checkpoint is half-written, damaged, or belongs to another run."""


class ExportError(VisweepError):
    """An exported model does not compute what the trained one does."""


class OutOfMemory(VisweepError):
    """A model does not fit in memory, however its batches are divided."""


class Crowded(VisweepError):
    """A model does not fit in memory beside the others that are trained there."""


class DeviceLost(VisweepError):
    """After an error there, a device fails whatever it is asked by this process."""


def unknown_name(option: str, value: str, accepted: Iterable[str]) -> UsageError:
    """The error for a misspelt name, with the nearest accepted one suggested."""
    names = sorted(accepted)
    nearest = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return UsageError(f"{option}: unknown value {value!r}; accepted: {', '.join(names)}{hint}")
