"""What the commands do with an existing study."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy as sa

from visweep.cli.options import storage_url
from visweep.errors import UsageError
from visweep.search.study import STOP, checkpoints_of, load_study
from visweep.storage import attached
from visweep.storage.engine import Storage
from visweep.storage.failures import storage_errors
from visweep.storage.holders import unfinished, working
from visweep.storage.opening import open_storage, open_to_read
from visweep.storage.place import Place
from visweep.storage.replicates import originals, seeds_of
from visweep.storage.specification import OF, STUDY_ID, made_of
from visweep.storage.tables import slots, studies, study_attributes
from visweep.storage.whereabouts import Artifacts

_ATTRIBUTES = (
    "val_loss", "train_accuracy", "epochs", "seconds", "images_per_second",
    "peak_memory_bytes", "num_params", "ended",
)  # fmt: skip


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


def made_of_it(study: optuna.Study, storage: Storage) -> list[str]:
    """Names of the studies that were made of one, such as its race."""
    query = (
        sa.select(studies.c.study_name, study_attributes.c.value_json)
        .join(study_attributes, study_attributes.c.study_id == studies.c.study_id)
        .where(study_attributes.c.key == OF)
        .order_by(studies.c.study_id)
    )
    own = made_of(study.study_name, study.user_attrs.get(STUDY_ID), "")
    with storage.reading() as connection:
        found = [(name, json.loads(value)) for name, value in connection.execute(query)]
    return [name for name, of in found if isinstance(of, dict) and {**of, "kind": ""} == own]


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


def trial_rows(study: optuna.Study) -> list[dict[str, Any]]:
    """One row per trial, by number."""
    trials = study.get_trials(deepcopy=False)
    original = originals(trials)
    names = list(dict.fromkeys(name for t in trials for name in t.params))
    return [
        {
            "trial": t.number,
            "state": t.state.name,
            "val_accuracy": t.values[0] if t.values else "",
            **{name: t.params.get(name, "") for name in names},
            **{name: t.user_attrs.get(name, "") for name in _ATTRIBUTES},
            "replicate_of": original.get(t.number, ""),
            "replicate_seeds": " ".join(map(str, seeds_of(t))),
        }
        for t in trials
    ]


def write_csv(rows: list[dict[str, Any]]) -> None:
    """Rows as comma-separated values on the standard output."""
    if rows:
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
