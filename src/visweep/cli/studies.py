"""What the commands do with an existing study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import optuna
import sqlalchemy as sa

from visweep.cli.options import storage_url
from visweep.errors import UsageError
from visweep.search.study import STOP, checkpoints_of, load_study
from visweep.storage import attached
from visweep.storage.companions import companions
from visweep.storage.engine import Storage
from visweep.storage.failures import storage_errors
from visweep.storage.holders import unfinished, working
from visweep.storage.opening import open_storage, open_to_read
from visweep.storage.place import Place
from visweep.storage.tables import slots
from visweep.storage.whereabouts import Artifacts


@contextmanager
def opened(
    storage: str | None, name: str, *, option: str = "STUDY", to_change: bool = False
) -> Iterator[tuple[optuna.Study, Storage]]:
    """An existing study and its storage, closed again afterwards.

    Args:
        storage: where it lies; None for the usual place.
        name: of the study.
        option: that named it.
        to_change: whether it may be written to; else nothing of the storage is changed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = storage_url(storage)
    opened_storage = open_storage(url, must_exist=True) if to_change else open_to_read(url)
    try:
        with storage_errors(opened_storage):
            yield load_study(opened_storage, name, option), opened_storage
    finally:
        opened_storage.close()


def stop_study(study: optuna.Study, storage: Storage) -> str:
    """Ask a study's workers to stop; returns what came of it, as a line."""
    # Even where nobody holds a trial: a worker may be between two.
    study.set_user_attr(STOP, True)
    with storage.reading() as connection:
        holders = working(connection, study._study_id)
    if not holders:
        return f"nothing is running in {study.study_name}"
    return f"asked {study.study_name} to stop at the end of the running epoch"


def require_idle(study: optuna.Study, storage: Storage, elsewhere_too: bool) -> None:
    """See that no worker is at a study.

    Args:
        study: the study.
        storage: where it lies.
        elsewhere_too: mind workers on other machines, too.

    Raises:
        UsageError: a worker is at it.
    """
    with storage.reading() as connection:
        holders = working(connection, study._study_id)
    name = study.study_name
    for holder in sorted(holders, key=lambda h: not h.here):
        if holder.here:
            raise UsageError(
                f"STUDY: {name!r} is being worked on ({holder}); run visweep stop {name} first"
            )
        if elsewhere_too:
            raise UsageError(
                f"STUDY: {name!r} is being worked on ({holder}); run visweep stop {name} first, "
                "or give --force if that machine is gone"
            )


def delete_study(study: optuna.Study, storage: Storage, artifacts: str | None = None) -> None:
    """Delete a study, its slots, its artifacts and what is attached to it.

    Args:
        study: the study.
        storage: where it lies.
        artifacts: where this machine finds its artifacts; None for where the study says.

    Raises:
        UsageError: this machine cannot look there; then nothing was deleted.
        StorageError: the artifacts, or the storage, cannot be reached.
    """
    checkpoints = checkpoints_of(study, storage, artifacts)
    checkpoints.all()  # what cannot be reached cannot be deleted, and would stay for good
    above = place_above(study, storage, artifacts)
    study_id = study._study_id
    with storage.reading() as connection:
        files = attached.named(connection, study_id)
    # In this order: slots without a study are harmless, a study without slots would begin anew.
    optuna.delete_study(study_name=study.study_name, storage=storage)
    with storage.transaction() as connection:
        connection.execute(sa.delete(slots).where(slots.c.study_id == study_id))
        # A copy of the study may show the same.
        files -= attached.named(connection)
    checkpoints.discard()
    for key in files:
        above.remove(key)


def made_of_it(study: optuna.Study) -> list[str]:
    """Names of the studies that were made of one, such as its race."""
    found = {name for names in companions(study).values() for name in names}
    return [s.study_name for s in study._storage.get_all_studies() if s.study_name in found]


def place_above(study: optuna.Study, storage: Storage, artifacts: str | None = None) -> Place:
    """Where the files that are attached to a study lie; see `Artifacts.above`.

    Args:
        study: the study.
        storage: where it lies.
        artifacts: where this machine finds its artifacts; None for where the study says.

    Raises:
        UsageError: this machine cannot look there.
        StorageError: the place cannot be reached.
    """
    url = storage.engine.url.render_as_string(hide_password=False)
    return Artifacts(url, artifacts).above(study.study_name, study.user_attrs)


def interrupted(study: optuna.Study, storage: Storage) -> set[int]:
    """Numbers of the trials that have begun and that nobody works on, as far as can be told."""
    with storage.reading() as connection:
        ours = sa.inspect(connection).has_table(slots.name)
        found = unfinished(connection) if ours else []
    return {s.trial for s in found if s.study_id == study._study_id and s.interrupted}
