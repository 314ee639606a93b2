"""Studies of arms: given configurations, each trained with the same seeds, so that they compare.

Such a study is one like any other: it has slots, leases and workers, and can be stopped, moved and
resumed. Its space is the name of an arm and a seed. All arms are trained with one seed before any
is with the next, so that what is there compares in pairs however early it is stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.distributions import CategoricalDistribution, IntDistribution

from visweep import text
from visweep.config import (
    DataConfig,
    ModelConfig,
    Precision,
    TrainConfig,
    with_parameters,
)
from visweep.errors import UsageError
from visweep.storage.specification import ARM, SEED, Arm, Specification

MOST_SEEDS = 1000
"""An arm may be trained with so many; how many it is trained with, the study's budget says."""
Change = Mapping[str, Any]
"""Fields of a model's or the training configuration, and what becomes of them."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Baselines and the changes of each, as a script states them.

    Attributes:
        name: begins the default name of its studies.
        image_size: that images are resized to, unless an option says otherwise.
        baselines: by name; image size, channels and classes are replaced by the data's.
        changes: of each baseline, by its name.
        train: how each is trained, unless options say otherwise.
    """

    name: str
    image_size: int
    baselines: Mapping[str, ModelConfig]
    changes: Mapping[str, Sequence[Change]]
    train: TrainConfig = field(default_factory=TrainConfig)

    def arms(self, train: TrainConfig, fields: Mapping[str, Any]) -> dict[str, Arm]:
        """The arms, each baseline before its changes.

        Args:
            train: how baselines are trained.
            fields: of every model, as the data have them.

        Raises:
            UsageError: a configuration is invalid.
        """
        found: dict[str, Arm] = {}
        for name, model in self.baselines.items():
            baseline = Arm(model=_fitted(name, model, fields), train=train)
            found[name] = baseline
            found.update(changed(name, baseline, self.changes.get(name, ())))
        return found


def changed(name: str, baseline: Arm, changes: Sequence[Change]) -> dict[str, Arm]:
    """The arms that differ from a baseline by one change each, named after both.

    Raises:
        UsageError: a configuration is invalid, or two of them would have the same name.
    """
    found: dict[str, Arm] = {}
    for change in changes:
        called = f"{name}: {text.parameters(change)}"
        if called in found:
            raise UsageError(
                f"{called}: two changes are called so, to three digits; accepted: values that "
                "differ in them"
            )
        try:
            model, train = with_parameters(baseline.model, baseline.train, change)
        except UsageError as e:
            raise UsageError(f"{called}: {e}") from e
        found[called] = Arm(model=model, train=train, against=name)
    return found


def _fitted(name: str, model: ModelConfig, fields: Mapping[str, Any]) -> ModelConfig:
    try:
        return model.replace(**fields)
    except UsageError as e:
        raise UsageError(f"--image-size: {name} cannot take such images: {e}") from e


def arms_specification(
    arms: Mapping[str, Arm],
    *,
    first_seed: int,
    data: DataConfig,
    fingerprint: str,
    precision: Precision,
    seed: int = 0,
) -> Specification:
    """What a study of these arms is.

    Args:
        arms: by name; those with `against` None are what others are compared with.
        first_seed: that each is trained with; the numbers after it follow, for as long as the
            study's budget goes.
        data: which images.
        fingerprint: of the images' content.
        precision: number format of the training.
        seed: of the study.
    """
    first = next(iter(arms.values()))
    # A trial's own seed takes the place of those, which would only be in the way of comparing.
    plain = {n: replace(a, train=a.train.replace(seeds=(0,))) for n, a in arms.items()}
    specification = Specification(
        space={
            ARM: CategoricalDistribution(list(arms)),
            SEED: IntDistribution(first_seed, first_seed + MOST_SEEDS - 1),
        },
        data=data,
        fingerprint=fingerprint,
        model=first.model,
        train=first.train.replace(seeds=(0,)),
        sampler="grid",
        pruner="none",
        seed=seed,
        duplicates="skip",
        arms=plain,
    )
    return specification.in_precision(precision)
