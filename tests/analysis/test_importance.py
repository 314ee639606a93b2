"""Importance of parameters, on studies whose importances are known and whose pruning is informed.

Two parameters matter: all but one choice of `gate` are bad, by more than `slope` can make good,
and are pruned. The others do nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial

from visweep.analysis import importance as analysed
from visweep.analysis.figures.importance import importance
from visweep.analysis.importance import (
    at_common_epoch,
    at_the_end,
    completed_only,
    importances,
    order_kept,
    ped_anova,
)
from visweep.analysis.measure import Measure
from visweep.analysis.overview import read
from visweep.analysis.sections.importance import importance_section

NewStudy = Callable[..., optuna.Study]

ACCURACY = Measure("validation accuracy", percent=True, maximize=True)
LOSS = Measure("loss", percent=False, maximize=False, step="step")
EPOCHS, RUNG = 8, 2
GATES = ["good", "bad", "worn", "cold", "odd"]

SPACE: dict[str, BaseDistribution] = {
    "gate": CategoricalDistribution(GATES),
    "slope": FloatDistribution(0, 1),
    "idle": IntDistribution(1, 9),
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
}


def planted(
    count: int, seed: int, *, gate: float = 0.4, slope: float = 0.15, sign: float = 1.0
) -> list[FrozenTrial]:
    """Random trials; those below 0.45 after epoch 2 are pruned there, which no good one is."""
    generator = np.random.default_rng(seed)
    trials: list[FrozenTrial] = []
    for number in range(count):
        params = {
            "gate": GATES[generator.integers(5)],
            "slope": float(generator.random()),
            "idle": int(generator.integers(1, 10)),
            "lr": float(10 ** generator.uniform(-4, -1)),
        }
        final = 0.4 + gate * (params["gate"] == "good") + slope * float(params["slope"])
        noise = 0.01 * generator.normal(size=EPOCHS + 1)
        curve = {e: sign * (final * (1 - 0.5**e) + noise[e]) for e in range(1, EPOCHS + 1)}
        pruned = sign * curve[RUNG] < 0.45
        trials.append(trial_of(number, params, curve, pruned))
    return trials


def trial_of(
    number: int,
    params: dict[str, object],
    curve: dict[int, float],
    pruned: bool,
    space: dict[str, BaseDistribution] = SPACE,
    **attributes: object,
) -> FrozenTrial:
    kept = {epoch: value for epoch, value in curve.items() if not pruned or epoch <= RUNG}
    trial = create_trial(
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        value=kept[max(kept)] if kept else None,
        params=params,
        distributions=space,
        intermediate_values=kept,
        user_attrs={"ended": "pruned" if pruned else "completed", **attributes},
    )
    trial.number = number
    return trial


@pytest.mark.parametrize("seed", range(4))
def test_completed_trials_alone_miss_what_decided_the_pruning(seed: int) -> None:
    trials = planted(80, seed)
    completed = completed_only(trials, ACCURACY)
    assert 10 <= len(completed.trials) < 30
    alone, found = importances(completed, deals=0), importances(at_common_epoch(trials, ACCURACY))
    for shares in (alone.ped_anova, alone.fanova):
        assert shares["gate"] < 0.2
    for shares in (found.ped_anova, found.fanova):
        assert next(iter(shares)) == "gate"
        assert shares["gate"] > 0.5
        assert math.isclose(sum(shares.values()), 1.0)
    assert "gate" in found.clear
    assert not found.clear & {"idle", "lr"}


def test_fanova_gives_the_shares_of_variance_that_were_planted() -> None:
    """The variance of the choice is 0.4² · 4/25, that of the slope 0.15² / 12: 93 % and 7 %."""
    found = importances(at_common_epoch(planted(120, 1), ACCURACY), deals=0)
    assert found.fanova["gate"] == pytest.approx(0.93, abs=0.04)
    assert found.fanova["slope"] == pytest.approx(0.07, abs=0.04)
    assert found.explained is not None
    assert found.explained > 0.9


@pytest.mark.slow
def test_without_any_effect_chance_is_hardly_ever_taken_for_one() -> None:
    studies = [planted(40, seed, gate=0.0, slope=0.0) for seed in range(30)]
    found = [analysed._ped_anova(at_common_epoch(trials, ACCURACY))[1] for trials in studies]
    assert sum(map(bool, found)) <= 4
    explained = importances(at_common_epoch(studies[0], ACCURACY)).explained
    assert explained is not None
    assert explained < 0.1


def test_less_is_better() -> None:
    up, down = planted(80, 2), planted(80, 2, sign=-1.0)
    assert importances(at_common_epoch(up, ACCURACY), deals=9) == importances(
        at_common_epoch(down, LOSS), deals=9
    )


def test_all_are_compared_at_the_last_epoch_that_all_reached() -> None:
    trials = planted(30, 0)
    compared = at_common_epoch(trials, ACCURACY)
    assert compared.epoch == RUNG
    assert {t.number for t in compared.trials} == set(range(30))
    for trial, value in zip(compared.trials, compared.values, strict=True):
        assert value == trial.intermediate_values[RUNG]


def test_without_pruning_it_is_the_end() -> None:
    trials = [t for t in planted(80, 0) if t.state == TrialState.COMPLETE]
    assert at_common_epoch(trials, ACCURACY) == completed_only(trials, ACCURACY)


def test_diverged_trials_are_the_worst_and_too_large_ones_unknown() -> None:
    trials = planted(30, 0)
    early = trial_of(30, trials[0].params, {1: 0.9}, True, ended="diverged at epoch 1")
    large = trial_of(31, trials[0].params, {}, True, ended="out of memory")
    compared = at_common_epoch([*trials, early, large], ACCURACY)
    assert compared.epoch == RUNG
    assert (compared.worst, compared.absent) == (1, 1)
    assert compared.trials[-1] is early
    assert compared.values[-1] < min(compared.values[:-1])
    assert compared.values[-1] == pytest.approx(min(compared.values[:-1]))


def test_pruned_trials_that_reported_nothing_are_the_worst() -> None:
    trials = [t for t in planted(80, 0) if t.state == TrialState.COMPLETE]
    silent = [
        trial_of(80 + i, {**trials[i % 9].params, "gate": "bad"}, {}, True) for i in range(30)
    ]
    compared = at_common_epoch([*trials, *silent], ACCURACY)
    assert (compared.epoch, compared.worst) == (None, 30)
    assert next(iter(ped_anova(compared))) == "gate"


def test_at_the_end_pruned_trials_are_the_rest() -> None:
    trials = planted(80, 0)
    compared = at_the_end(trials, ACCURACY)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    assert sorted(compared.values[: len(complete)]) == sorted(t.value or 0 for t in complete)
    assert max(compared.values[len(complete) :]) < min(compared.values[: len(complete)])
    assert next(iter(ped_anova(compared))) == "gate"


def test_choices_are_not_blurred() -> None:
    """All of the best agree on one of five choices, which a fifth of all have."""
    compared = at_common_epoch(planted(80, 1, slope=0.0), ACCURACY)
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            create_trial(value=v, params=t.params, distributions=SPACE)
            for t, v in zip(compared.trials, compared.values, strict=True)
        ]
    )
    assert PedAnovaImportanceEvaluator().evaluate(study)["gate"] < 0.005
    found = analysed._by_ped_anova(
        analysed._study(compared, analysed._in_place), np.asarray(compared.values)
    )["gate"]
    # (8/80)² times the Pearson divergence of (1, 0, 0, 0, 0) from fifths, which is 4.
    assert found == pytest.approx(0.04, abs=0.015)


def test_a_logarithmic_range_is_read_as_such() -> None:
    """Half of the decades matter: on a linear scale that is a three-hundredth of the range."""
    space: dict[str, BaseDistribution] = {
        "lr": FloatDistribution(1e-5, 1e-1, log=True),
        "idle": FloatDistribution(0, 1),
    }
    generator = np.random.default_rng(0)
    trials = []
    for number in range(80):
        lr, idle = float(10 ** generator.uniform(-5, -1)), float(generator.random())
        value = 0.5 + 0.2 * (lr < 3e-4) + 0.03 * idle
        trials.append(trial_of(number, {"lr": lr, "idle": idle}, {8: value}, False, space))
    assert importances(completed_only(trials, ACCURACY), deals=0).fanova["lr"] > 0.95
    study = optuna.create_study()
    study.add_trials(trials)
    assert FanovaImportanceEvaluator(seed=0).evaluate(study)["lr"] < 0.7


def test_conditional_parameters_are_read_by_the_one_method_that_can() -> None:
    found = importances(completed_only(conditional(["x", "z"]), ACCURACY), deals=0)
    assert set(found.ped_anova) == {"x", "y", "z"}
    assert set(found.fanova) == {"x", "z"}
    assert found.unread == ["y"]


def test_a_share_of_a_single_parameter_is_none() -> None:
    found = importances(completed_only(conditional(["x"]), ACCURACY), deals=0)
    assert set(found.ped_anova) == {"x", "y"}
    assert (found.fanova, found.explained) == ({}, None)


def conditional(everywhere: list[str]) -> list[FrozenTrial]:
    """Trials with some parameters, of which every other one has `y` besides."""
    generator = np.random.default_rng(0)
    space: dict[str, BaseDistribution] = {name: FloatDistribution(0, 1) for name in everywhere}
    more: dict[str, BaseDistribution] = {**space, "y": IntDistribution(1, 100, log=True)}
    trials = []
    for number in range(40):
        params: dict[str, object] = {name: float(generator.random()) for name in everywhere}
        curve = {RUNG: number / 50, EPOCHS: number / 40}
        if number % 2:
            params["y"] = 1 + number
        own = more if number % 2 else space
        trials.append(trial_of(number, params, curve, False, own))
    return trials


@pytest.mark.parametrize(
    ("everywhere", "remark", "method"),
    [
        (["x", "z"], "over one range: it leaves out y.", "two of Optuna's evaluators"),
        (["x"], "there are fewer than two, so that it says nothing here", "one of Optuna's, on"),
    ],
)
def test_the_page_compares_the_methods_only_where_both_read_all(
    new_study: NewStudy, everywhere: list[str], remark: str, method: str
) -> None:
    study = new_study(f"conditional-{len(everywhere)}", conditional(everywhere))
    words = said(importance_section(read(study)))
    assert remark in words
    assert method in words
    assert "of parameters alike" not in words


def test_how_far_the_order_was_kept() -> None:
    def ended(number: int, early: float, late: float) -> FrozenTrial:
        return trial_of(number, {}, {1: early, 8: late}, False, {})

    kept = [ended(i, i / 10, i / 10) for i in range(5)]
    assert order_kept(kept, ACCURACY, 1) == 1.0
    assert order_kept([*kept[:4], ended(4, 0.0, 0.9)], ACCURACY, 1) == pytest.approx(6 / 9)
    assert order_kept(kept[:4], ACCURACY, 1) is None


def test_the_order_is_that_of_kendall() -> None:
    generator = np.random.default_rng(1)
    early, late = generator.integers(0, 12, (2, 80)) / 12
    trials = [
        trial_of(i, {}, {1: a, 8: b}, False, {})
        for i, (a, b) in enumerate(zip(early, late, strict=True))
    ]
    pairs = [
        (a, b)
        for a, b in combinations(zip(early, late, strict=True), 2)
        if a[0] != b[0] and a[1] != b[1]
    ]
    expected = sum((a[0] > b[0]) == (a[1] > b[1]) for a, b in pairs) / len(pairs)
    for measure in (ACCURACY, LOSS):
        assert order_kept(trials, measure, 1) == pytest.approx(expected)


def test_of_many_trials_some_pairs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(number: int, early: float, late: float) -> FrozenTrial:
        return trial_of(number, {}, {1: early, 8: late}, False, {})

    monkeypatch.setattr(analysed, "MOST_PAIRED", 10)
    trials = [ended(i, i / 30 if i % 3 == 2 else 0.5, i / 30) for i in range(30)]
    assert order_kept(trials, ACCURACY, 1) == 1.0


def test_many_trials_are_thinned_for_fanova_alone() -> None:
    found = importances(at_common_epoch(planted(160, 0), ACCURACY), deals=0)
    assert found.read == analysed.MOST_TRIALS


# What the page says -----------------------------------------------------------------------------


def said(section: object) -> str:
    return repr(section).replace("\\xa0", " ").replace("\N{NO-BREAK SPACE}", " ")


def test_the_page_states_method_agreement_and_what_chance_gives(new_study: NewStudy) -> None:
    section = importance_section(read(new_study("planted", planted(80, 0))))
    words = said(section)
    assert "same 80 finished trials, by what each had reached after epoch 2" in words
    assert "nothing had been pruned by then" in words
    assert "pairs of parameters alike; both put gate first" in words
    assert "By PED-ANOVA, gate" in words
    assert "of the variance of trials that it has not seen" in words
    assert "alone are a selection by what is asked about" in words
    figure = section.blocks[0].chart.figure  # type: ignore[union-attr]
    assert [trace.name for trace in reversed(figure.data)] == [
        "PED-ANOVA",
        "fANOVA",
        "PED-ANOVA, completed trials only",
        "fANOVA, completed trials only",
    ]
    table = section.blocks[-1]
    assert next(row[0] for row in table.rows) == "gate"  # type: ignore[union-attr]
    assert list(table.columns) == [  # type: ignore[union-attr]
        "parameter",
        "PED-ANOVA, epoch 2",
        "fANOVA, epoch 2",
        "PED-ANOVA, end",
        "PED-ANOVA, completed",
        "fANOVA, completed",
        "beyond chance",
    ]


def test_the_page_says_when_trials_are_too_few(new_study: NewStudy) -> None:
    nothing = planted(20, 3, gate=0.0, slope=0.0)
    words = said(importance_section(read(new_study("nothing", nothing))))
    assert "Too few trials for PED-ANOVA: among the best 5 no parameter stands out beyond" in words
    assert "These 20 trials do not show that any parameter matters." in words
    assert "its shares mean nothing here" in words
    few = said(importance_section(read(new_study("few", planted(9, 0)))))
    assert "at least 10 finished trials with comparable values; there are 9." in few
    same = [trial_of(i, planted(1, i)[0].params, {8: 0.5}, False) for i in range(12)]
    equal = said(importance_section(read(new_study("equal", same))))
    assert "12 of 12 finished trials are equally good at the top." in equal


def test_a_single_possible_value_cannot_be_important(new_study: NewStudy) -> None:
    space: dict[str, BaseDistribution] = {"only": CategoricalDistribution(["one"])}
    trials = [trial_of(i, {"only": "one"}, {8: 0.5}, False, space) for i in range(12)]
    words = said(importance_section(read(new_study("single", trials))))
    assert "No parameter has more than one value" in words


def test_names_are_escaped_for_plotly() -> None:
    space: dict[str, BaseDistribution] = {"<b>x</b>": FloatDistribution(0, 1)}
    trials = [trial_of(i, {"<b>x</b>": i / 12}, {8: i / 12}, False, space) for i in range(12)]
    chart = importance(importances(completed_only(trials, ACCURACY), deals=0), "")
    assert "<b>x" not in str(chart.figure.to_plotly_json())
