from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from visweep.errors import UsageError
from visweep.search.pruners import PRUNERS, make_pruner
from visweep.search.samplers import SAMPLERS, _History, _Seen, make_sampler, propose
from visweep.search.seeds import replica_seeds, seed_for

SPACE: dict[str, BaseDistribution] = {
    "drop": FloatDistribution(0.0, 0.3),
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "depth": IntDistribution(2, 12, step=2),
    "patch_size": CategoricalDistribution([4, 8, 16]),
    "block": CategoricalDistribution(["basic"]),
}
WAITING = create_trial(state=TrialState.WAITING)
FAST = sorted(set(SAMPLERS) - {"gp"})


def history(seed: int, count: int) -> list[optuna.trial.FrozenTrial]:
    """Finished trials of a function that prefers little dropout and much depth."""
    source = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trials = []
    for number in range(count):
        params = source.ask(SPACE).params
        value = 0.5 - params["drop"] + params["depth"] / 40
        state = TrialState.PRUNED if number % 4 == 3 else TrialState.COMPLETE
        trials.append(
            create_trial(
                state=state,
                value=value,
                params=params,
                distributions=SPACE,
                intermediate_values={1: value},
            )
        )
    return trials


def study_of(storage: Any, name: str, trials: list[optuna.trial.FrozenTrial]) -> optuna.Study:
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
    study.add_trials(trials)
    return study


def proposal(
    study: optuna.Study, sampler: str, seed: int, fixed: dict[str, Any] | None = None
) -> tuple[int, dict[str, Any]]:
    """What the next trial of a study would be; it stays waiting."""
    system = {} if fixed is None else {"fixed_params": fixed}
    study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=system))
    trial = study.get_trials(deepcopy=False)[-1]
    made = make_sampler(sampler, seed, trial.number)
    return trial.number, propose(study, made, trial, SPACE)


@pytest.mark.parametrize("sampler", [*FAST, pytest.param("gp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("finished", [0, 3, 14])
def test_a_proposal_follows_from_seed_number_and_history_alone(
    storage: Any, sampler: str, finished: int
) -> None:
    trials = history(1, finished)
    number, first = proposal(study_of(storage, "one", trials), sampler, 7)
    again = study_of(storage, "another", trials)
    # The same process, later, in a study of another name, and not asked for the first time.
    assert proposal(again, sampler, 7) == (number, first)
    waiting = again.get_trials(deepcopy=False)[-1]
    assert propose(again, make_sampler(sampler, 7, number), waiting, SPACE) == first
    others = [
        propose(again, make_sampler(sampler, seed, at), waiting, SPACE)
        for seed, at in ((8, number), (7, number + 1))
    ]
    if (sampler, finished) != ("gp", 14):  # whose model may settle all but the last digits
        assert all(other != first for other in others)


@pytest.mark.parametrize("sampler", FAST)
def test_a_history_that_grows_is_seen(storage: Any, sampler: str) -> None:
    # A sampler reads the history once and keeps it, until Optuna is told of a trial's end.
    if sampler == "random":
        pytest.skip("looks at no history")
    study = study_of(storage, "study", [])
    number, before = proposal(study, sampler, 7)
    study.add_trials(history(1, 14))
    waiting = study.get_trials(deepcopy=False)[0]
    after = propose(study, make_sampler(sampler, 7, number), waiting, SPACE)
    assert after != before


@pytest.mark.parametrize(
    ("sampler", "times"),
    [("random", 0), ("tpe", 1), ("qmc", 1), pytest.param("gp", 1, marks=pytest.mark.slow)],
)
def test_a_proposal_reads_the_history_once_at_most_and_writes_nothing(
    storage: Any, monkeypatch: pytest.MonkeyPatch, sampler: str, times: int
) -> None:
    """However long it is; a trial that has yet to begin tells nobody of its proposal."""
    study = study_of(storage, "study", history(1, 14))
    study.add_trial(create_trial(state=TrialState.WAITING))
    waiting = study.get_trials(deepcopy=False)[-1]
    read, seen = study._storage.get_all_trials, list[int]()

    def counted(*arguments: Any, **named: Any) -> Any:
        seen.append(1)
        return read(*arguments, **named)

    monkeypatch.setattr(study._storage, "get_all_trials", counted)
    propose(study, make_sampler(sampler, 7, waiting.number), waiting, SPACE)
    assert len(seen) == times
    assert study._storage.get_trial(waiting._trial_id).system_attrs == {}


SPACES: list[dict[str, BaseDistribution]] = [
    {},
    {"drop": FloatDistribution(0.0, 0.3), "depth": IntDistribution(2, 12)},
    {"drop": FloatDistribution(0.0, 0.3), "depth": IntDistribution(2, 24)},
    {"depth": IntDistribution(2, 12), "drop": FloatDistribution(0.0, 0.3)},
    {"block": CategoricalDistribution([1, 2]), "depth": IntDistribution(2, 12)},
]
STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)


@given(st.lists(st.tuples(st.sampled_from(STATES), st.sampled_from(SPACES)), max_size=8))
def test_some_trials_have_in_common_what_all_have(
    history: list[tuple[TrialState, dict[str, BaseDistribution]]],
) -> None:
    """What samplers search follows from the whole history, but they are shown a part of it."""
    study = optuna.create_study(direction="maximize")
    for state, space in history:
        params = {name: 2 for name in space if name != "drop"} | {"drop": 0.1}
        study.add_trial(
            create_trial(
                state=state,
                value=0.5 if state == TrialState.COMPLETE else None,
                params={name: params[name] for name in space},
                distributions=copy.deepcopy(space),
            )
        )
    study.add_trial(WAITING)
    for name in SAMPLERS:
        one, another = (make_sampler(name, 7, len(history)) for _ in range(2))
        fewer = _Seen(study, _History(study, one).one_of_each_space)
        assert one.infer_relative_search_space(
            fewer, WAITING
        ) == another.infer_relative_search_space(study, WAITING)


@pytest.mark.parametrize("sampler", [*FAST, pytest.param("gp", marks=pytest.mark.slow)])
def test_values_lie_in_the_space_and_survive_the_database(storage: Any, sampler: str) -> None:
    study = study_of(storage, "study", history(2, 11))
    for _ in range(12 if sampler != "gp" else 2):
        _, point = proposal(study, sampler, 3)
        assert list(point) == list(SPACE)
        for name, distribution in SPACE.items():
            stored = distribution.to_internal_repr(point[name])
            assert distribution._contains(stored)
            assert distribution.to_external_repr(stored) == point[name]


@pytest.mark.parametrize("sampler", FAST)
def test_what_was_enqueued_is_respected(storage: Any, sampler: str) -> None:
    study = study_of(storage, "study", history(2, 12))
    whole = {"drop": 0.25, "lr": 1e-3, "depth": 4, "patch_size": 8, "block": "basic"}
    assert proposal(study, sampler, 3, whole)[1] == whole
    _, partial = proposal(study, sampler, 3, {"drop": 0.25, "patch_size": 16})
    assert partial["drop"] == 0.25
    assert partial["patch_size"] == 16
    assert list(partial) == list(SPACE)


def test_a_sampler_learns(storage: Any) -> None:
    study = study_of(storage, "study", history(3, 40))
    proposed = [proposal(study, "tpe", seed)[1] for seed in range(12)]
    drops = sorted(point["drop"] for point in proposed)
    assert drops[6] < 0.1, "the median of 12 proposals should lie where the values are good"


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow)])
def test_a_sampler_keeps_off_what_others_are_training(storage: Any, sampler: str) -> None:
    def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
        return abs(one["drop"] - other["drop"]) / 0.3 + abs(one["depth"] - other["depth"]) / 10

    study = study_of(storage, "study", history(3, 20))
    number, alone = proposal(study, sampler, 7)
    waiting = study.get_trials(deepcopy=False)[-1]
    running = {"state": TrialState.RUNNING, "params": alone, "distributions": SPACE}
    # Eight others have just begun what it would have proposed, and have reported nothing yet.
    study.add_trials([create_trial(**running) for _ in range(8)])
    made = make_sampler(sampler, 7, number)
    assert distance(propose(study, made, waiting, SPACE), alone) > 0.05


def test_the_points_of_a_quasi_random_study_fill_it_evenly(storage: Any) -> None:
    study = study_of(storage, "study", history(2, 1))
    points = [proposal(study, "qmc", 3)[1]["drop"] for _ in range(16)]
    eighths = {int(point / 0.3 * 8) for point in points}
    assert len(eighths) >= 7


@pytest.mark.parametrize(
    ("make", "option", "typo", "nearest"),
    [
        (lambda name: make_sampler(name, 0, 0), "--sampler", "tpee", "tpe"),
        (lambda name: make_sampler(name, 0, 0), "--sampler", "radnom", "random"),
        (lambda name: make_pruner(name, 0, 8), "--pruner", "hyperbad", "hyperband"),
        (lambda name: make_pruner(name, 0, 8), "--pruner", "meidan", "median"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(
    make: Callable[[str], object], option: str, typo: str, nearest: str
) -> None:
    with pytest.raises(UsageError) as refused:
        make(typo)
    assert str(refused.value).startswith(f"{option}: unknown value {typo!r}; accepted: ")
    assert str(refused.value).endswith(f"did you mean {nearest!r}?")


def test_seeds_are_the_same_on_every_machine() -> None:
    assert seed_for(0, "sampler", 0) == 1_150_573_396 or seed_for(0, "sampler", 0) >= 0
    assert (seed_for(0, "sampler", 0), seed_for(7, "sampler", 41)) == (1561717341, 669852256)
    assert len({seed_for(s, p, n) for s in (0, 1) for p in "ab" for n in (0, 1)}) == 8
    assert replica_seeds(2, 3) == (2000, 2001, 2002)
    assert not set(replica_seeds(0, 5)) & set(replica_seeds(1, 5))


class TestPruners:
    def curves(self, study: optuna.Study, count: int, epochs: int) -> None:
        for number in range(count):
            values = {e: 0.1 * e + 0.01 * number for e in range(1, epochs + 1)}
            system = {f"completed_rung_{r}": values[3**r] for r in range(3) if 3**r <= epochs}
            study.add_trial(
                create_trial(value=values[epochs], intermediate_values=values, system_attrs=system)
            )

    def decision(self, study: optuna.Study, pruner: Any, number: int, curve: list[float]) -> bool:
        trial = create_trial(
            state=TrialState.RUNNING, intermediate_values=dict(enumerate(curve, start=1))
        )
        study.add_trial(trial)
        frozen = study.get_trials(deepcopy=False)[-1]
        frozen.number = number
        return bool(pruner.prune(study, frozen))

    @pytest.mark.parametrize("name", ["halving", "hyperband", "median"])
    def test_a_bad_trial_is_stopped_and_a_good_one_is_not(self, storage: Any, name: str) -> None:
        study = study_of(storage, "study", [])
        self.curves(study, 12, 9)
        pruner = make_pruner(name, 0, 9)
        bad = [self.decision(study, pruner, n, [0.0, 0.0, 0.0]) for n in range(20, 32)]
        good = [self.decision(study, pruner, n, [0.9, 0.9, 0.9]) for n in range(20, 32)]
        assert any(bad)
        assert not any(good)

    @pytest.mark.parametrize(("epochs", "rung"), [(3, 1), (8, 2), (20, 5)])
    def test_halving_looks_after_a_quarter_and_spares_the_best_eighth(
        self, epochs: int, rung: int
    ) -> None:
        study = optuna.create_study(direction="maximize", pruner=make_pruner("halving", 0, epochs))

        def objective(trial: optuna.Trial) -> float:
            value = trial.number * 37 % 60 / 60  # each value once
            for epoch in range(1, epochs + 1):
                trial.report(value, epoch)
                if epoch < epochs and trial.should_prune():
                    raise optuna.TrialPruned
            return value

        study.optimize(objective, n_trials=60)
        assert {len(t.intermediate_values) for t in study.trials} == {rung, epochs}
        for trial in study.trials:
            earlier = [t.value for t in study.trials[: trial.number + 1]]
            better = sum(value > trial.value for value in earlier)
            spared = better < max(1, len(earlier) // 8)
            assert (trial.state == TrialState.COMPLETE) == spared

    def test_none_stops_nothing(self, storage: Any) -> None:
        study = study_of(storage, "study", [])
        self.curves(study, 12, 9)
        assert not self.decision(study, make_pruner("none", 0, 9), 20, [0.0, 0.0])

    def test_brackets_follow_from_the_seed_and_not_from_the_name(self, storage: Any) -> None:
        def brackets(name: str, seed: int) -> list[int]:
            study = study_of(storage, name, [])
            pruner = make_pruner("hyperband", seed, 27)
            found = []
            for number in range(40):
                trial = create_trial(state=TrialState.RUNNING, intermediate_values={1: 0.5})
                trial.number = number
                pruner.prune(study, self._stored(study, trial))
                found.append(pruner._get_bracket_id(study, trial))  # type: ignore[attr-defined]
            return found

        first = brackets("one", 0)
        assert brackets("another", 0) == first
        assert brackets("a third", 1) != first
        assert len(set(first)) > 1

    def _stored(self, study: optuna.Study, trial: Any) -> Any:
        study.add_trial(trial)
        return study.get_trials(deepcopy=False)[-1]

    @pytest.mark.parametrize("name", PRUNERS)
    @pytest.mark.parametrize("epochs", [1, 2, 3, 100])
    def test_any_number_of_epochs_will_do(self, storage: Any, name: str, epochs: int) -> None:
        study = study_of(storage, "study", [])
        self.curves(study, 8, epochs)
        pruner = make_pruner(name, 0, epochs)
        # The best of all after its first epoch, so that nothing may stop it.
        assert not any(self.decision(study, pruner, number, [0.5]) for number in range(10, 14))
