from __future__ import annotations

import io

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from visweep.search.summary import finished, print_summary, savings


def trial(
    value: float | None, epochs: int, state: str = "COMPLETE", seconds: float = 4.0
) -> FrozenTrial:
    return create_trial(
        state=TrialState[state],
        value=value,
        params={"depth": 4},
        distributions={"depth": optuna.distributions.IntDistribution(1, 8)},
        intermediate_values={e: value or 0.0 for e in range(1, epochs + 1)},
        user_attrs={"seconds": seconds, "train_accuracy": 0.9, "num_params": 12_345},
    )


@pytest.fixture
def study() -> optuna.Study:
    study = optuna.create_study(study_name="night run", direction="maximize")
    study.add_trials(
        [
            trial(0.5, 8),
            trial(0.75, 8),
            trial(0.25, 2, "PRUNED"),
            trial(0.75, 4, "PRUNED", seconds=2.0),
            trial(None, 1, "FAIL"),
            trial(None, 0, "WAITING"),
            *[trial(0.1, 8) for _ in range(4)],
        ]
    )
    return study


def printed(study: optuna.Study, width: int, where: tuple[str, ...] = ()) -> str:
    file = io.StringIO()
    print_summary(Console(file=file, width=width), study.study_name, study.trials, 8, where)
    return file.getvalue()


def test_the_completed_come_first_and_the_best_of_them(study: optuna.Study) -> None:
    numbers = [t.number for t in finished(study.trials)]
    assert (numbers[:2], numbers[-2:]) == ([1, 0], [3, 2])


def test_what_pruning_saved(study: optuna.Study) -> None:
    saved = savings(finished(study.trials), 8)
    assert (saved.epochs, saved.full) == (54, 64)
    assert saved.seconds == pytest.approx(6 * 4.0 / 2 + 4 * 2.0 / 4)
    assert savings([], 8).full == 0


@pytest.mark.parametrize("ended", ["diverged", "out of memory"])
def test_what_could_not_go_on_was_not_saved_by_pruning(ended: str) -> None:
    lost = trial(0.1, 2, "PRUNED")
    lost.set_user_attr("ended", ended)
    study = optuna.create_study(direction="maximize")
    study.add_trials([trial(0.5, 8), trial(0.25, 4, "PRUNED"), lost])
    saved = savings(study.trials, 8)
    assert (saved.epochs, saved.full, saved.seconds) == (14, 18, pytest.approx(4.0))


@pytest.mark.parametrize("width", [80, 120])
def test_the_summary(study: optuna.Study, width: int) -> None:
    shown = printed(study, width, ("--storage", "sqlite:///x.db"))
    lines = shown.splitlines()
    assert sum("depth=4" in line for line in lines) == 5
    assert max(len(line) for line in lines[:10]) <= width
    assert "75.0 %" in shown
    assert "(baseline)" in shown
    assert "8 trials finished, 2 of them pruned; median 17.5 %" in lines
    assert "pruning saved 10 of 64 epochs (16 %), about 14 s" in lines
    assert "see more:   visweep report 'night run' --storage sqlite:///x.db" in lines
    assert "train best: visweep train --study 'night run' --storage sqlite:///x.db" in lines


def test_without_pruning_there_is_no_word_of_it() -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trial(trial(0.5, 8))
    shown = printed(study, 80)
    assert "1 trial finished, 0 of them pruned; median 50.0 %" in shown
    assert "saved" not in shown


def test_nothing_finished_is_nothing_to_tell() -> None:
    assert printed(optuna.create_study(direction="maximize"), 80) == ""
