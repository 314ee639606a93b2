"""Which sampler and pruner reach a good model in the fewest epochs?

    python benchmarks/search_quality.py --repetitions 20

Replays searches of 50 trials on a surrogate: a Gaussian process fitted to the curves of really
trained random points (benchmarks/curves/*.jsonl, made by train_curves.py), plus the residual curve
of a random one of them, as measured out of fold and scaled to the scatter between two seeds of one
configuration. The samplers and pruners are visweep's own; only the training is replayed.

Prints, per data set and pair: the median number of epochs until some trial first shows the target
accuracy (searches that never do count as infinite), the best accuracy after 50 trials, and the
epochs spent.

The target is one point below the best of 5,000 random points on the surrogate, to be shown by a
proposal (not by trial 0, which is the baseline).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.trial import TrialState
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))

from train_curves import random_point
from vit_search import small

from visweep.search.pruners import PRUNERS
from visweep.search.samplers import SAMPLERS, make_sampler, propose

CURVES = Path(__file__).parent / "curves"
TRIALS = 50
RUN_SCATTER = 0.015
"""Standard deviation of the final accuracy between seeds of one configuration, on the digits."""
SPACE = small(32)


def _halving(rung: int, factor: int, *_: int) -> BasePruner:
    return SuccessiveHalvingPruner(rung, factor)


def _bootstrapped(rung: int, factor: int, first: int, *_: int) -> BasePruner:
    return SuccessiveHalvingPruner(rung, factor, bootstrap_count=first)


def _hyperband(least: int, factor: int, _: int, epochs: int) -> BasePruner:
    return HyperbandPruner(least, epochs, factor)


def _percentile(share: int, startup: int, warmup: int, *_: int) -> BasePruner:
    return PercentilePruner(share, startup, warmup)


# Beside the shipped pruners, what they were chosen among.
CANDIDATES: dict[str, Callable[[int, int], BasePruner]] = {
    **PRUNERS,
    **{
        f"halving-{rung}-{factor}": partial(_halving, rung, factor)
        for rung in (1, 2, 3)
        for factor in (2, 3, 4, 6, 8, 10)
    },
    **{
        f"halving-{rung}-{factor}-{first}": partial(_bootstrapped, rung, factor, first)
        for rung in (2, 3)
        for factor in (4, 5, 6, 7)
        for first in (3, 6, 10)
    },
    **{
        f"hyperband-{least}-{factor}": partial(_hyperband, least, factor)
        for least in (1, 2)
        for factor in (2, 3)
    },
    **{
        f"percentile-{share}-{startup}-{warmup}": partial(_percentile, share, startup, warmup)
        for share in (20, 25, 33, 50)
        for startup in (1, 2, 3, 4, 5)
        for warmup in (1, 2, 3)
    },
}


class Surrogate:
    """Curves for any point of the space, learnt from really trained ones."""

    def __init__(self, path: Path) -> None:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows.sort(key=lambda row: row["index"])
        self.points = [row["point"] for row in rows]
        curves = np.array([row["accuracy"] for row in rows])
        features = np.array([_features(p) for p in self.points])
        kernel = ConstantKernel() * Matern([3.0] * features.shape[1], (0.3, 1e6), nu=1.5)
        process = GaussianProcessRegressor(kernel + WhiteKernel(), normalize_y=True)
        model = make_pipeline(StandardScaler(), process)
        folds = KFold(10, shuffle=True, random_state=0)
        held_out = cross_val_predict(model, features, _logit(curves), cv=folds)
        self.model = model.fit(features, _logit(curves))
        self.final = curves[:, -1]
        missed = self.final - _expit(held_out[:, -1])
        self.rmse = float(np.sqrt((missed**2).mean()))
        self.r2 = 1 - (missed**2).sum() / ((self.final - self.final.mean()) ** 2).sum()
        # The surrogate errs by more than runs scatter; its error must not be taken for luck.
        scale = min(1.0, RUN_SCATTER / self.rmse)
        self.residuals = scale * (_logit(curves) - held_out)
        self.epochs = curves.shape[1]

    def curve(self, point: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
        """Accuracy per epoch of one run of `point`."""
        return _expit(self._logits([point])[0] + self.residuals[rng.integers(len(self.points))])

    def target(self) -> float:
        """One point below the best of many random points."""
        rng = np.random.default_rng(0)
        many = [random_point(int(rng.integers(1_000, 10**9))) for _ in range(5_000)]
        return float(_expit(self._logits(many)[:, -1]).max()) - 0.01

    def _logits(self, points: list[dict[str, Any]]) -> np.ndarray:
        return self.model.predict(np.array([_features(p) for p in points]))


@dataclass(frozen=True)
class Outcome:
    """What one search came to; `reached` is infinite if it never showed the target."""

    reached: float
    best: float
    epochs: int


def search(surrogate: Surrogate, sampler: str, pruner: str, seed: int, target: float) -> Outcome:
    """Replay one search of TRIALS trials."""
    rng = np.random.default_rng(seed)
    study = optuna.create_study(direction="maximize", study_name=f"{sampler}-{pruner}-{seed}")
    pruning = CANDIDATES[pruner](seed, surrogate.epochs)
    spent, reached, best = 0, float("inf"), 0.0
    for number in range(TRIALS):
        study.sampler = make_sampler(sampler, seed, number)
        trial_id = study.ask()._trial_id
        point = _point(study, trial_id, number, surrogate)
        curve = surrogate.curve(point, rng)
        state = TrialState.COMPLETE
        for epoch, accuracy in enumerate(curve, start=1):
            spent += 1
            if number > 0 and accuracy >= target:
                reached = min(reached, spent)
            study._storage.set_trial_intermediate_value(trial_id, epoch, float(accuracy))
            decided = pruning.prune(study, study._storage.get_trial(trial_id))
            if epoch < len(curve) and decided and number > 0:
                state = TrialState.PRUNED
                break
        if state == TrialState.COMPLETE:
            best = max(best, float(curve[-1]))
            study.tell(number, float(curve[-1]))
        else:
            study.tell(number, state=state)
    return Outcome(reached, best, spent)


def _point(
    study: optuna.Study, trial_id: int, number: int, surrogate: Surrogate
) -> dict[str, Any]:
    trial = study._storage.get_trial(trial_id)
    point = surrogate.points[0] if number == 0 else propose(study, study.sampler, trial, SPACE)
    for name, distribution in SPACE.items():
        internal = distribution.to_internal_repr(point[name])
        study._storage.set_trial_param(trial_id, name, internal, distribution)
    return point


def _features(point: dict[str, Any]) -> list[float]:
    return [
        point["drop"],
        point["attn_drop"],
        np.log2(point["patch_size"]),
        float(point["patch_size"] == 8),
        point["embed_dim"],
        point["depth"],
        np.log2(point["num_heads"]),
    ]


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 0.01, 0.99)
    return np.log(p / (1 - p))


def _expit(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--datasets", nargs="+", default=[p.stem for p in CURVES.glob("*.jsonl")])
    parser.add_argument("--pruners", nargs="+", default=list(PRUNERS))
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name in sorted(options.datasets):
        surrogate = Surrogate(CURVES / f"{name}.jsonl")
        baseline, best, target = surrogate.final[0], surrogate.final.max(), surrogate.target()
        print(
            f"\n{name}: {len(surrogate.points)} trained points, out-of-fold R² of the final "
            f"accuracy {surrogate.r2:.2f} (root mean square error {surrogate.rmse:.3f}); "
            f"median {np.median(surrogate.final):.3f}, "
            f"baseline {baseline:.3f}, best {best:.3f}, target {target:.3f}\n"
        )
        print("| sampler | pruner | epochs to target | reached | best of 50 | epochs spent |")
        print("|---|---|---:|---:|---:|---:|", flush=True)
        for sampler in options.samplers:
            for pruner in options.pruners:
                _print_row(surrogate, sampler, pruner, target, options.repetitions)


def _print_row(
    surrogate: Surrogate, sampler: str, pruner: str, target: float, repetitions: int
) -> None:
    started = time.perf_counter()
    # Gaussian processes take seconds per proposal.
    count = max(5, repetitions // 4) if sampler == "gp" else repetitions
    found = [search(surrogate, sampler, pruner, seed, target) for seed in range(count)]
    reached = np.array([f.reached for f in found])
    low, middle, high = np.quantile(reached, [0.25, 0.5, 0.75], method="nearest")
    print(
        f"| {sampler} | {pruner} | {middle:.0f} ({low:.0f}–{high:.0f}) "
        f"| {np.isfinite(reached).sum()} of {count} "
        f"| {np.mean([f.best for f in found]):.3f} ± {np.std([f.best for f in found]):.3f} "
        f"| {np.median([f.epochs for f in found]):.0f} |",
        flush=True,
    )
    print(f"{sampler}/{pruner}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
