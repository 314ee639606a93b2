"""The section Environment: what all trials had in common, and what differed among them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from visweep.analysis.document import Block, Paragraph, Section, Table
from visweep.analysis.overview import read
from visweep.analysis.sections.environment import environment_section

NewStudy = Callable[..., optuna.Study]

RECORD = {
    "versions": {"torch": "2.13.0", "visweep": "0.1.0"},
    "trainer": 3,
    "python": "3.11.7",
    "machine": "Linux x86_64",
    "host": "one",
    "device": "cpu",
    "threads": 1,
    "data_dir": None,
    "commit": "0a1b2c3",
}


def trial_with(record: object, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    trial = create_trial(
        state=state,
        value=0.5 if state == TrialState.COMPLETE else None,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
        user_attrs={} if record is None else {"provenance": record},
    )
    trial.datetime_start = datetime(2026, 11, 20)
    return trial


def section_of(new_study: NewStudy, records: list[Any]) -> Section:
    return environment_section(read(new_study("run", [trial_with(r) for r in records])))


def words(blocks: Any) -> str:
    return " ".join(b.text for b in blocks if isinstance(b, Paragraph)).replace("\xa0", " ")


def table(section: Section, caption: str) -> list[list[str]]:
    found: list[Block] = [
        b for b in section.blocks if isinstance(b, Table) and b.caption == caption
    ]
    assert len(found) == 1, [b.caption for b in section.blocks if isinstance(b, Table)]
    assert isinstance(found[0], Table)
    return [list(row) for row in found[0].rows]


def test_what_all_trials_share_is_said_once(new_study: NewStudy) -> None:
    section = section_of(new_study, [RECORD] * 3)
    assert "All 3 trials ran alike" in words(section.blocks)
    assert table(section, "All trials") == [
        ["data", "cluttered-digits"],
        ["data fingerprint", "5f1c09aa72e3"],
        ["number format", "bfloat16"],
        ["torch", "2.13.0"],
        ["visweep", "0.1.0"],
        ["trainer version", "3"],
        ["python", "3.11.7"],
        ["system", "Linux x86_64"],
        ["host", "one"],
        ["device", "cpu"],
        ["threads per worker", "1"],
        ["commit of visweep", "0a1b2c3"],
    ]


def test_what_differs_is_said_with_the_trials(new_study: NewStudy) -> None:
    newer = {**RECORD, "versions": {"torch": "2.15.0", "visweep": "0.1.0"}, "host": "two"}
    section = section_of(new_study, [RECORD, RECORD, RECORD, newer, RECORD, newer])
    assert "differ in torch and host." in words(section.blocks)
    assert "slightly different result" in words(section.blocks)
    assert "draws otherwise" not in words(section.blocks)
    assert table(section, "What differed among the trials") == [
        ["torch", "2.13.0", "4", "0 to 2, 4"],
        ["torch", "2.15.0", "2", "3, 5"],
        ["host", "one", "4", "0 to 2, 4"],
        ["host", "two", "2", "3, 5"],
    ]
    same = [row[0] for row in table(section, "The same in all trials")]
    assert "torch" not in same
    assert "visweep" in same


def test_another_version_of_the_trainer_is_explained(new_study: NewStudy) -> None:
    section = section_of(new_study, [RECORD, {**RECORD, "trainer": 4}])
    assert "draws otherwise" in words(section.blocks)
    assert "slightly different result" not in words(section.blocks)


def test_trials_without_a_record_are_not_passed_over(new_study: NewStudy) -> None:
    section = section_of(new_study, [{"host": "one"}, None, {"host": "one"}])
    assert table(section, "What differed among the trials") == [
        ["host", "one", "2", "0, 2"],
        ["host", "not recorded", "1", "1"],
    ]


def test_many_trials_are_not_all_listed(new_study: NewStudy) -> None:
    records = [{"host": "even" if n % 2 == 0 else "odd"} for n in range(40)]
    rows = table(section_of(new_study, records), "What differed among the trials")
    assert rows[0] == ["host", "even", "20", "0, 2, 4, 6, 8, 10, 12, 14, …"]


def test_odd_records_do_no_harm(new_study: NewStudy) -> None:
    section = section_of(new_study, ["a string", {"host": ["a", {"b": 1}], "versions": None}])
    assert ["host", '["a", {"b": 1}]', "1", "1"] in table(
        section, "What differed among the trials"
    )


def test_slots_that_wait_do_not_count(new_study: NewStudy) -> None:
    waiting = trial_with(None, TrialState.WAITING)
    waiting.datetime_start = None
    study = new_study("run", [trial_with(RECORD), waiting])
    assert "1 trial has begun." in words(environment_section(read(study)).blocks)
