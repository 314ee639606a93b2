"""What a storage is made of: Optuna's tables and ours, and what their rows have in common.

Optuna's tables are its own; ours stand beside them (see `storage.schema` for their version).
"""

from __future__ import annotations

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState

studies: sa.Table = models.StudyModel.__table__
study_attributes: sa.Table = models.StudyUserAttributeModel.__table__
study_system_attributes: sa.Table = models.StudySystemAttributeModel.__table__
trials: sa.Table = models.TrialModel.__table__
params: sa.Table = models.TrialParamModel.__table__
reports: sa.Table = models.TrialIntermediateValueModel.__table__
values: sa.Table = models.TrialValueModel.__table__
user_attributes: sa.Table = models.TrialUserAttributeModel.__table__
system_attributes: sa.Table = models.TrialSystemAttributeModel.__table__

metadata = sa.MetaData()

version = sa.Table("visweep_version", metadata, sa.Column("version", sa.Integer, nullable=False))

slots = sa.Table(
    "visweep_slots",
    metadata,
    sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("study_id", sa.Integer, nullable=False, index=True),
    # Who holds the lease, as JSON (see storage.owner.Owner); null when nobody does.
    sa.Column("owner", sa.Text, nullable=True),
    # Raised by every lease; a write under an older generation is refused.
    sa.Column("generation", sa.Integer, nullable=False, server_default="0"),
    # Raised by the holder while it lives.
    sa.Column("heartbeat", sa.Integer, nullable=False, server_default="0"),
    # Given when the trial begins, and kept wherever the study is moved; null while it waits.
    sa.Column("uuid", sa.String(32), nullable=True),
    # When the lease was taken or renewed, in seconds since 1970 by the database's own clock. Null
    # where nobody holds it, or where an older visweep did it.
    sa.Column("renewed", sa.Double, nullable=True),
    # How many workers in a row were lost with this trial, without an epoch more than `reached`.
    sa.Column("lost", sa.Integer, nullable=False, server_default="0"),
    sa.Column("reached", sa.Integer, nullable=False, server_default="0"),
    sa.Index("ix_visweep_slots_study_id_uuid", "study_id", "uuid", unique=True),
)

_ALL: tuple[sa.Table, ...] = (
    *models.BaseModel.metadata.tables.values(),
    *metadata.tables.values(),
)
OF_A_TRIAL: tuple[sa.Table, ...] = tuple(t for t in _ALL if "trial_id" in t.c and t is not trials)
OF_A_STUDY: tuple[sa.Table, ...] = tuple(
    t for t in _ALL if "study_id" in t.c and "trial_id" not in t.c and t is not studies
)
"""The tables whose rows belong to one trial, or to one study."""

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
"""The states of a trial that has a result."""
FIXED = "fixed_params"
"""Optuna's key for the parameters of an enqueued trial."""
RUNG = "completed_rung_"
"""Begins the keys under which Optuna's successive halving keeps what it decided of a trial."""
FINITE = models.TrialValueModel.TrialValueType.FINITE
"""The type of a value that is a number."""
