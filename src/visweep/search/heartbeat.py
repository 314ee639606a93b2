"""Keeps a lease alive while its trial trains."""

from __future__ import annotations

import threading
from types import TracebackType

from visweep.errors import StorageError
from visweep.storage.lease import Lease, LeaseLost
from visweep.storage.slots import Slots


class Heartbeat:
    """Renews a lease from a thread of its own until the `with` block ends.

    Torch releases the interpreter during its operations, so a long step does not starve it.
    """

    def __init__(self, slots: Slots, lease: Lease, interval: float | None = None) -> None:
        self._slots = slots
        self._lease = lease
        # Often enough that one lost beat does no harm.
        self._interval = slots.lease_seconds / 6 if interval is None else interval
        self._done = threading.Event()
        self._lost: LeaseLost | None = None
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def check(self) -> None:
        """See that the lease is still held.

        Raises:
            LeaseLost: another worker has adopted the trial.
        """
        if self._lost is not None:
            raise self._lost

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._done.wait(self._interval):
            try:
                self._slots.renew(self._lease)
            except LeaseLost as e:
                self._lost = e
                return
            except StorageError:
                # The trial's own writes will fail with the same cause, where it can be told.
                continue
