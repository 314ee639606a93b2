"""By which versions of the trainer the trials of a study were trained."""

from __future__ import annotations

from collections.abc import Iterable

from optuna.trial import FrozenTrial

from visweep import text
from visweep.storage.tables import FINISHED
from visweep.training.results import TRAINER_VERSION


def note_of_others(trials: Iterable[FrozenTrial]) -> str | None:
    """What is to be said where a study goes on that another version of the trainer worked on.

    None where none is known to have: trials of before it was recorded do not say.
    """
    finished = (t.user_attrs.get("provenance", {}) for t in trials if t.state in FINISHED)
    recorded = [found["trainer"] for found in finished if "trainer" in found]
    others = [version for version in recorded if version != TRAINER_VERSION]
    if not others:
        return None
    versions = text.listing([str(version) for version in sorted(set(others))])
    return (
        f"{text.plural(len(others), 'finished trial')} of this study come from another version of "
        f"the trainer ({versions}; this is {TRAINER_VERSION}), which drew otherwise: trained "
        "again, the same seeds give other numbers"
    )
