"""What a report says of shifted images, read from the trials that were measured."""

from __future__ import annotations

import copy
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial

from visweep.analysis.figures.chart import NothingToDraw
from visweep.analysis.figures.shift import shift_chart
from visweep.analysis.measure import Measure
from visweep.analysis.overview import read
from visweep.analysis.sections.shift import shift_section
from visweep.analysis.shifted import read_shifted, shifted
from visweep.training.shift import Layer, Robustness

ACCURACY = Measure("validation accuracy", percent=True, maximize=True)
KEPT = Robustness(
    pixels=(0, 1, 2),
    accuracy=(0.9, 0.8, 0.6),
    invariance=(0.0, 0.25, 0.5),
    layers=(Layer("stem", 1, 0.125, 0.75), Layer("block 1", 16, 0.375)),
).to_json()


def trial(number: int = 3, arm: str | None = None, **changes: Any) -> FrozenTrial:
    names = {"arm": CategoricalDistribution([arm]), "seed": IntDistribution(0, 9)} if arm else {}
    made = create_trial(
        value=0.9,
        params={"arm": arm, "seed": 2} if arm else {},
        distributions=names,
        user_attrs={"shift": {**copy.deepcopy(KEPT), **changes}},
    )
    made.number = number
    return made


def test_what_the_trainer_measures_is_read_again() -> None:
    found = shifted(trial())
    assert found is not None
    assert (found.trial, found.name) == (3, "trial 3")
    assert found.pixels == (0, 1, 2)
    assert found.accuracy == (0.9, 0.8, 0.6)
    assert found.invariance == (0.0, 0.25, 0.5)
    seen = [(each.name, each.stride, each.error, each.far_error) for each in found.layers]
    assert seen == [("stem", 1, 0.125, 0.75), ("block 1", 16, 0.375, None)]
    (arm,) = read_shifted([trial(5, "a convnet")])
    assert arm.name == "a convnet (trial 5)"


@pytest.mark.parametrize(
    "changes",
    [
        {"pixels": []},
        {"pixels": "012"},
        {"accuracy": [0.9, 0.8]},
        {"accuracy": [0.9, None, 0.6]},
        {"invariance": {}},
    ],
)
def test_what_cannot_be_read_is_left_out(changes: dict[str, Any]) -> None:
    assert read_shifted([trial(**changes)]) == []
    assert shifted(create_trial(value=0.5, user_attrs={"shift": 7})) is None
    assert shifted(create_trial(value=0.5)) is None


@pytest.mark.parametrize("changes", [{"strides": None}, {"equivariance": [1]}, {"far": "no"}])
def test_layers_that_cannot_be_read_are_left_out_alone(changes: dict[str, Any]) -> None:
    found = shifted(trial(**changes))
    assert found is not None
    assert found.accuracy == (0.9, 0.8, 0.6)
    assert all(layer.far_error is None for layer in found.layers)


def test_the_figure_has_a_line_a_model() -> None:
    with pytest.raises(NothingToDraw):
        shift_chart([], ACCURACY)
    chart = shift_chart(read_shifted([trial(3, "<b>vit"), trial(4, "convnet")]), ACCURACY)
    assert [line.name for line in chart.figure.data] == [
        "&lt;b&gt;vit (trial 3)",
        "convnet (trial 4)",
    ]
    for line in chart.figure.data:
        assert list(line.x) == [0, 1, 2]
        assert list(line.y) == [90.0, 80.0, 60.0]
    assert "convnet (trial 4) goes from 90.0" in chart.summary
    assert chart.caption.endswith(".")


def test_the_section_is_there_once_something_was_measured(sweep: optuna.Study) -> None:
    assert shift_section(read(sweep)) is None
    study = optuna.create_study(direction="maximize")
    study.add_trials([trial(), create_trial(value=0.5), trial(strides={})])
    section = shift_section(read(study))
    assert section is not None
    _, pooled, layers, words = section.blocks
    assert pooled.rows == [
        ["trial 0", "0.00", "0.25", "0.50"],
        ["trial 2", "0.00", "0.25", "0.50"],
    ]
    assert layers.rows == [
        ["trial 0", "stem", "1", "0.12", "0.75"],
        ["trial 0", "block 1", "16", "0.38", "–"],
    ]
    assert "Equivariance error: how far" in words.text
