"""Studies that were made of another one, found by what they say of themselves, not by their names.

A copy of a study keeps its `STUDY_ID`, whatever it is called and wherever it is moved, and what
was made of it keeps that id under `OF`. So they find each other again wherever both were copied
to. Where the study that one was made of is there under its old name, it belongs to that one alone:
a copy beside it may have gone its own way, and its trial 40 be another. In another storage a copy
that went on by itself cannot be told from a mere copy. What was made of a study without an id is
tied to its name. Commands go on with what they find so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

from visweep.storage.specification import OF, STUDY_ID


def companions(study: optuna.Study) -> dict[str, list[str]]:
    """Names of the studies in its storage that were made of a study, by kind.

    Of each kind that one stands first which was made under the study's present name and has the
    name that commands give it, as far as there is one, and else the newest.
    """
    name, identifier = study.study_name, study.user_attrs.get(STUDY_ID)
    there = study._storage.get_all_studies()
    copies = {s.study_name for s in there if s.user_attrs.get(STUDY_ID) == identifier} - {name}
    found: dict[str, list[tuple[bool, bool, int, str]]] = {}
    for other in there:
        of = other.user_attrs.get(OF)
        if isinstance(of, Mapping) and _is_of(of, name, identifier, copies):
            kind = str(of.get("kind"))
            rank = (of.get("study") == name, other.study_name == f"{name}-{kind}")
            found.setdefault(kind, []).append((*rank, other._study_id, other.study_name))
    return {
        kind: [ranked[-1] for ranked in sorted(others, reverse=True)]
        for kind, others in found.items()
    }


def companion_name(study: optuna.Study, kind: str) -> str:
    """What the study is called that a command makes of another one, or has made of it.

    Where there is none of the name that it would be given, but one that was made of the other one
    under a former name, it is that: the newest of such.
    """
    default = f"{study.study_name}-{kind}"
    there = {other.study_name: other.user_attrs for other in study._storage.get_all_studies()}
    if default in there:
        return default
    made = companions(study).get(kind, ())
    return next((m for m in made if there[m][OF].get("study") != study.study_name), default)


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
