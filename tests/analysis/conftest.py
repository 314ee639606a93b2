"""Synthetic studies in real SQLite files: what a sweep leaves behind, made without training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from arms_studies import arms_of_report, noise, runs_of_report, specification_of

EPOCHS = 8
BEGIN = datetime(2026, 11, 20, 9, 30)

SPACE: dict[str, BaseDistribution] = {
    "patch_size": CategoricalDistribution([4, 8, 16]),
    "embed_dim": CategoricalDistribution([64, 96, 128]),
    "depth": IntDistribution(2, 8),
    "num_heads": CategoricalDistribution([2, 4, 8]),
    "drop": FloatDistribution(0.0, 0.3, step=0.05),
    "attn_drop": FloatDistribution(0.0, 0.3),
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "class_token": CategoricalDistribution([False]),
}

BASELINE = {
    "patch_size": 16,
    "embed_dim": 64,
    "depth": 6,
    "num_heads": 4,
    "drop": 0.0,
    "attn_drop": 0.0,
    "lr": 2e-3,
    "class_token": False,
}

SPECIFICATION = {
    "identity": {
        "space": {name: distribution_to_json(d) for name, d in SPACE.items()},
        "data": {"kind": "data", "name": "cluttered-digits", "fingerprint": "5f1c09aa72e3"},
        "model": {"kind": "vit", "image_size": 32, "num_classes": 10, "depth": 6},
        "train": {"kind": "train", "epochs": EPOCHS, "precision": "bfloat16", "seeds": [0]},
        "sampler": {"name": "tpe", "multivariate": True},
        "pruner": {"name": "hyperband", "min_resource": 1, "reduction_factor": 3},
        "seed": 0,
    },
}

PROVENANCE = {
    "versions": {"visweep": "0.1.0", "optuna": "5.0.0", "torch": "2.13.0"},
    "commit": "0a1b2c3",
    "device": "cpu",
    "host": "example",
    "data_dir": "/images of digits",
}


def accuracy(parameters: dict[str, Any], number: int, epoch: int) -> float:
    """What a trial would report after an epoch: a curve that saturates, with a little noise."""
    final = 0.93 - 0.17 * math.log2(parameters["patch_size"] / 4) / 2 - 0.5 * parameters["drop"]
    final -= 0.06 * abs(math.log10(parameters["lr"] / 2e-3))
    final += 0.008 * parameters["depth"] + 0.02 * math.log2(parameters["embed_dim"] / 64)
    reached = 0.1 + (final - 0.12) * (1 - math.exp(-epoch / 2.2))
    return reached + 0.012 * noise("epoch", number, epoch)


def parameters_of(number: int) -> dict[str, Any]:
    """A point of the space, drawn evenly."""
    if number == 0:
        return dict(BASELINE)
    return {name: _drawn(d, (noise(name, number) + 1) / 2) for name, d in SPACE.items()}


def _drawn(distribution: BaseDistribution, share: float) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log:
        return low * (high / low) ** share
    if step is None:
        return low + share * (high - low)
    value = low + step * int(share * (round((high - low) / step) + 1))
    return value if isinstance(distribution, IntDistribution) else round(value, 10)


def attributes(number: int, parameters: dict[str, Any], values: list[float]) -> dict[str, Any]:
    epochs = len(values)
    ended = "completed" if epochs == EPOCHS else f"pruned at epoch {epochs}"
    return {
        "val_loss": 0.5 + 1.4 * (1 - values[-1]),
        "train_accuracy": values[-1] + 0.02,
        "epochs": epochs,
        "seconds": epochs * (1.1 + 0.3 * parameters["depth"]),
        "images_per_second": 5200.0 - 300 * parameters["depth"],
        "peak_memory_bytes": 400 * 2**20 + number * 2**20,
        "num_params": 12 * parameters["depth"] * parameters["embed_dim"] ** 2,
        "ended": ended,
        "val_accuracy_per_seed": [values[-1]],
        "device": "cpu",
        "provenance": {**PROVENANCE, "host": "other" if number % 5 == 4 else "example"},
    }


def finished_trials(count: int) -> list[FrozenTrial]:
    """Trials 0 to `count - 1`; those below the others at epoch 1, 3 or 5 are pruned there."""
    seen: dict[int, list[float]] = {1: [], 3: [], 5: []}
    trials = []
    for number in range(count):
        parameters = parameters_of(number)
        values: list[float] = []
        pruned = False
        for epoch in range(1, EPOCHS + 1):
            values.append(accuracy(parameters, number, epoch))
            if epoch in seen and number > 0:
                earlier = sorted(seen[epoch])
                pruned = len(earlier) > 2 and values[-1] < earlier[len(earlier) // 2]
                seen[epoch].append(values[-1])
            if pruned:
                break
        trials.append(_trial(number, parameters, values, pruned))
    return trials


def _trial(
    number: int, parameters: dict[str, Any], values: list[float], pruned: bool
) -> FrozenTrial:
    trial = create_trial(
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        value=values[-1],
        params=parameters,
        distributions=SPACE,
        intermediate_values=dict(enumerate(values, start=1)),
        user_attrs=attributes(number, parameters, values),
    )
    trial.datetime_start = BEGIN + timedelta(seconds=14 * number)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=len(values))
    return trial


NewStudy = Callable[..., optuna.Study]


@pytest.fixture(scope="session")
def new_study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewStudy]:
    """Make a study in a SQLite file of its own: `new_study(name, trials, is_sweep=True, …)`.

    With `beside=STUDY` it is made in the file of that one.
    """
    storages: list[RDBStorage] = []

    def make(
        name: str,
        trials: list[FrozenTrial],
        *,
        is_sweep: bool = True,
        budget: int | None = None,
        direction: str = "maximize",
        beside: optuna.Study | None = None,
        specification: dict[str, Any] = SPECIFICATION,
        attributes: dict[str, Any] | None = None,
    ) -> optuna.Study:
        if beside is None:
            file: Path = tmp_path_factory.mktemp("study") / "studies.db"
            storage = RDBStorage(
                f"sqlite:///{file}", engine_kwargs={"pool_events": [(_fast, "connect")]}
            )
            storages.append(storage)
        study = optuna.create_study(
            study_name=name,
            storage=storage if beside is None else beside._storage,
            direction=direction,
        )
        if is_sweep:
            study.set_user_attr("visweep:specification", specification)
            study.set_user_attr("visweep:budget", len(trials) if budget is None else budget)
        for key, value in (attributes or {}).items():
            study.set_user_attr(key, value)
        study.add_trials(trials)
        return study

    yield make
    for storage in storages:
        storage.scoped_session.remove()
        storage.engine.dispose()


def _fast(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA journal_mode = MEMORY")


@pytest.fixture(scope="session")
def sweep(new_study: NewStudy) -> optuna.Study:
    """A whole sweep: 50 finished trials, of which many were pruned, and one that failed."""
    trials = finished_trials(50)
    failed = create_trial(
        state=TrialState.FAIL,
        params=parameters_of(99),
        distributions=SPACE,
        user_attrs={"ended": "failed: RuntimeError: out of disk"},
    )
    failed.datetime_start = failed.datetime_complete = BEGIN + timedelta(seconds=14 * 50)
    return new_study("vit-cluttered-digits", [*trials, failed], budget=50)


@pytest.fixture(scope="session")
def thousand_trials() -> optuna.Study:
    """A large sweep; in memory, since writing that many to a file takes half a minute."""
    study = optuna.create_study(study_name="large", direction="maximize")
    study.set_user_attr("visweep:specification", SPECIFICATION)
    study.set_user_attr("visweep:budget", 1000)
    study.add_trials(finished_trials(1000))
    return study


@pytest.fixture(scope="session")
def comparison(new_study: NewStudy) -> optuna.Study:
    """A study of arms with planted effects: 8 arms over 5 seeds."""
    return new_study(
        "report-ablation-fashion-mnist",
        runs_of_report(5),
        specification=specification_of(arms_of_report()),
    )
