"""visweep: hyperparameter sweeps for image classifiers, on one shared GPU trainer.

What scripts and notebooks need, imported when it is first used (so that nothing that trains
nothing waits for torch):

    from visweep import DataConfig, TrainConfig, ViTConfig, fit, load
    data = load(DataConfig(name="cluttered-digits"))
    result = fit(ViTConfig(), TrainConfig(), data, on_epoch=print)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visweep.cli.sweep import run
    from visweep.config import ConvNetConfig, DataConfig, TrainConfig, ViTConfig
    from visweep.data import load
    from visweep.search.arms import Ablation
    from visweep.search.recipe import Recipe
    from visweep.search.spaces import patch_sizes
    from visweep.storage.specification import Space
    from visweep.training.fit import fit

__all__ = [
    "Ablation",
    "ConvNetConfig",
    "DataConfig",
    "Recipe",
    "Space",
    "TrainConfig",
    "ViTConfig",
    "fit",
    "load",
    "patch_sizes",
    "run",
]

_HOMES = {
    "Ablation": "visweep.search.arms",
    "ConvNetConfig": "visweep.config",
    "DataConfig": "visweep.config",
    "Recipe": "visweep.search.recipe",
    "Space": "visweep.storage.specification",
    "TrainConfig": "visweep.config",
    "ViTConfig": "visweep.config",
    "fit": "visweep.training.fit",
    "load": "visweep.data",
    "patch_sizes": "visweep.search.spaces",
    "run": "visweep.cli.sweep",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
