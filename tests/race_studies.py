"""Synthetic races of a study's leaders, made without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.search.arms import arms_specification
from visweep.storage.specification import OF, RACE, TEST, Arm, Specification

FIRST, LAST = 3, 10
DIVERGED = "diverged"
TESTED: Mapping[str, Any] = {
    "arm": "trial 7",
    "accuracy": 0.842,
    "low": 0.825,
    "high": 0.859,
    "seeds": [1, 2, 3],
    "images": 2000,
    "groups": 359,
    "seed_error": 0.2,
    "image_error": 0.8,
    "measured": "2026-11-28T12:00:00+00:00",
}
NAMES = ("trial 7", "trial 2", "trial 9")


def arms() -> dict[str, Arm]:
    return {
        name: Arm(model=ViTConfig(depth=depth), train=TrainConfig())
        for depth, name in enumerate(NAMES, 1)
    }


def specification() -> Specification:
    return arms_specification(
        arms(),
        first_seed=1,
        data=DataConfig(name="cluttered-digits"),
        fingerprint="5f1c09aa72e3",
        precision="float32",
    )


def add_race(
    study: optuna.Study, behind: Mapping[str, float], seeds: int, test: bool = False
) -> optuna.Study:
    """A race of the study, in its storage: each arm so many points behind the first one."""
    race = optuna.create_study(
        study_name=f"{study.study_name}-race", storage=study._storage, direction="maximize"
    )
    race.set_user_attr("visweep:specification", specification().stored())
    race.set_user_attr(OF, {"study": study.study_name, "kind": "race"})
    found = {name: {"trial": int(name[6:]), "accuracy": 0.9, "runs": 1} for name in NAMES}
    begun = {"first": FIRST, "last": LAST, "arms": found, "among": 31}
    race.set_user_attr(RACE, begun)
    if test:
        race.set_user_attr(TEST, dict(TESTED))
    rng = np.random.default_rng(2)
    for seed in range(1, seeds + 1):
        for name in NAMES:
            value = 0.85 - behind[name] / 100 + 0.005 * float(rng.standard_normal())
            add_run(race, name, seed, value)
    return race


def add_run(race: optuna.Study, name: str, seed: int, value: float | None) -> None:
    race.add_trial(
        create_trial(
            state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
            value=value,
            params={"arm": name, "seed": seed},
            distributions=dict(specification().space),
            user_attrs={"ended": DIVERGED if value is None else "completed", "provenance": {}},
        )
    )
