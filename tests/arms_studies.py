"""Synthetic studies of arms, made without training: the student report, with planted effects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from visweep.config import ConvNetConfig, DataConfig, TrainConfig, ViTConfig
from visweep.search.arms import arms_specification, changed
from visweep.storage.specification import Arm

EPOCHS = 8


def noise(*key: object) -> float:
    """A fixed number in [-1, 1) for a key, the same on every machine and version."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**31 - 1.0


EFFECTS = {
    ("convnet", "block", "late_relu"): -0.019,
    ("convnet", "block", "preadd_relu"): 0.007,
    ("vit", "block", "post_norm"): -0.008,
    ("vit", "drop", 0.2): -0.013,
    ("vit", "patch_size", 16): 0.053,
    ("vit", "depth", 24): -0.003,
}
"""What each change of the student report did, by its own single run."""

BASELINES = {
    "convnet": (ConvNetConfig(image_size=64), 0.80),
    "vit": (ViTConfig(image_size=64, patch_size=32, depth=16), 0.515),
}


def arms_of_report() -> dict[str, Arm]:
    """Both baselines of the student report, and some of its changes."""
    train = TrainConfig(epochs=EPOCHS)
    found: dict[str, Arm] = {}
    for name, (model, _) in BASELINES.items():
        found[name] = Arm(model=model, train=train)
        changes = [{field: value} for of, field, value in EFFECTS if of == name]
        found.update(changed(name, found[name], changes))
    return found


def specification_of(arms: dict[str, Arm]) -> dict[str, Any]:
    """As a study of arms stores it."""
    return arms_specification(
        arms,
        first_seed=0,
        data=DataConfig(name="fashion-mnist"),
        fingerprint="5f1c09aa72e3",
        precision="float32",
    ).stored()


def run_of(
    arms: Iterable[str], arm: str, seed: int, value: float | None, **attributes: Any
) -> FrozenTrial:
    """A run of one of the arms: completed, or pruned for a reason that `ended` gives."""
    space = {"arm": CategoricalDistribution(list(arms)), "seed": IntDistribution(0, 999)}
    curve = {} if value is None else {e: value * (1 - 0.6**e) for e in range(1, EPOCHS)}
    return create_trial(
        state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
        value=value,
        params={"arm": arm, "seed": seed},
        distributions=space,
        intermediate_values={**curve, **({} if value is None else {EPOCHS: value})},
        user_attrs={
            "epochs": EPOCHS if value is not None else 2,
            "seconds": 12.5,
            "ended": "completed",
            "provenance": {},
            **({} if value is None else {"val_loss": 1.9 - value, "val_error_points": 0.4}),
            **attributes,
        },
    )


def runs_of_report(seeds: int, scatter: float = 0.008) -> list[FrozenTrial]:
    """Each arm with each seed; one run diverged."""
    arms = arms_of_report()
    effects = {f"{of}: {field}={value}": effect for (of, field, value), effect in EFFECTS.items()}
    runs = []
    for seed in range(seeds):
        for name in arms:
            mean = BASELINES[name.partition(":")[0]][1] + effects.get(name, 0.0)
            if (name, seed) == ("vit: drop=0.2", 1):
                runs.append(run_of(arms, name, seed, None, ended="diverged at epoch 2"))
            else:
                runs.append(run_of(arms, name, seed, mean + scatter * noise(name, seed)))
    return runs
