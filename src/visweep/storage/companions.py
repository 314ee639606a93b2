"""Studies that were made of another one, found by what they say of themselves, not by their names.

A copy of a study keeps its `STUDY_ID`, whatever it is called and wherever it is moved, and what
was made of it keeps that id under `OF`. So they find each other again wherever both were copied
to. Where the study that one was made of is there under its old name, it belongs to that one alone:
a copy beside it may have gone its own way, and its trial 40 be another. In another storage a copy
that went on by itself cannot be told from a mere copy. What was made of a study without an id is
tied to its name.

Commands go on with what they find so where it has the name that they give it, or was made under a
former name of the study; and only while its configurations are those of the study's trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.study._frozen import FrozenStudy

from visweep.storage.specification import OF, STUDY_ID


def companions(study: optuna.Study) -> dict[str, list[str]]:
    """Names of the studies in its storage that were made of a study, by kind.

    Of each kind that one stands first which was made under the study's present name and has the
    name that commands give it, as far as there is one, and else the newest.
    """
    made = _made_of(study, study._storage.get_all_studies())
    return {kind: [other.study_name for other in others] for kind, others in made.items()}


def companion_name(study: optuna.Study, kind: str) -> str:
    """What the study is called that a command makes of another one, or has made of it.

    Where none that was made of it has the name that it would be given, but one was made of it
    under a former name, it is that: the newest of such.
    """
    default = f"{study.study_name}-{kind}"
    made = _made_of(study, study._storage.get_all_studies()).get(kind, [])
    former = [o.study_name for o in made if o.user_attrs[OF].get("study") != study.study_name]
    if not former or default in [other.study_name for other in made]:
        return default
    return former[0]


def source_name(study: optuna.Study) -> str | None:
    """Name of the study that a study was made of, as it is called in its storage; None where it is
    not there."""
    of = study.user_attrs.get(OF)
    if not isinstance(of, Mapping):
        return None
    there = {s.study_name: s.user_attrs.get(STUDY_ID) for s in study._storage.get_all_studies()}
    name, identifier = str(of.get("study")), of.get("id")
    if name in there and there[name] == identifier:
        return name
    copies = [each for each, own in there.items() if identifier is not None and own == identifier]
    return copies[0] if copies else None


def _made_of(study: optuna.Study, there: Sequence[FrozenStudy]) -> dict[str, list[FrozenStudy]]:
    """As `companions` says, of the studies that are there."""
    name, identifier = study.study_name, study.user_attrs.get(STUDY_ID)
    copies = {s.study_name for s in there if s.user_attrs.get(STUDY_ID) == identifier} - {name}
    found: dict[str, list[FrozenStudy]] = {}
    for other in there:
        of = other.user_attrs.get(OF)
        if isinstance(of, Mapping) and _is_of(of, name, identifier, copies):
            found.setdefault(str(of.get("kind")), []).append(other)

    def rank(other: FrozenStudy) -> tuple[bool, bool, int]:
        of = other.user_attrs[OF]
        usual = f"{name}-{of.get('kind')}"
        return of.get("study") == name, other.study_name == usual, other._study_id

    return {kind: sorted(others, key=rank, reverse=True) for kind, others in found.items()}


def _is_of(of: Mapping[str, Any], name: str, identifier: object, copies: set[str]) -> bool:
    """Whether a study that says this was made of the one with this name and id.

    Args:
        of: what it says.
        name, identifier: of the one in question.
        copies: names of others with the same id.
    """
    if of.get("id") != identifier:
        return False
    return of.get("study") == name or (identifier is not None and of.get("study") not in copies)
