"""Which sampler and pruner reach a good model in the fewest epochs?

    python benchmarks/search_quality.py --repetitions 20

Replays searches of 50 trials on a surrogate: a forest fitted to the curves of really trained
random points (benchmarks/curves/*.jsonl, made by train_curves.py), plus the residual curve of a
random one of them, as measured out of fold, for the scatter between runs. The samplers and
pruners are visweep's own; only the training is replayed. Prints, per data set and pair: the
median number of epochs until some trial first shows the target accuracy (searches that never do
count as infinite), the best accuracy after 50 trials, and the epochs spent.

The target is one point below the best trained point, to be shown by a proposal (not by trial 0,
which is the baseline).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.trial import TrialState
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.model_selection import cross_val_predict

sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))

from vit_search import small

from visweep.search.pruners import PRUNERS
from visweep.search.samplers import SAMPLERS, make_sampler, propose

CURVES = Path(__file__).parent / "curves"
TRIALS = 50
SPACE = small(32)

# Beside the shipped pruners, what they were chosen among.
CANDIDATES: dict[str, Callable[[int, int], BasePruner]] = {
    **PRUNERS,
    "hyperband-2-3": lambda _, epochs: HyperbandPruner(2, epochs, 3),
    "sha-2-3": lambda _, __: SuccessiveHalvingPruner(2, 3),
    "sha-2-2": lambda _, __: SuccessiveHalvingPruner(2, 2),
    "sha-3-3": lambda _, __: SuccessiveHalvingPruner(3, 3),
    "hyperband-2-2": lambda _, epochs: HyperbandPruner(2, epochs, 2),
    "median-1": lambda _, epochs: MedianPruner(5, 1),
    "median-2": lambda _, epochs: MedianPruner(5, 2),
    "median-3": lambda _, epochs: MedianPruner(5, 3),
    "quartile-2": lambda _, epochs: PercentilePruner(25.0, 5, 2),
    "tertile-2": lambda _, epochs: PercentilePruner(33.0, 5, 2),
}


class Surrogate:
    """Curves for any point of the space, learnt from really trained ones."""

    def __init__(self, path: Path) -> None:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows.sort(key=lambda row: row["index"])
        self.points = [row["point"] for row in rows]
        curves = np.array([row["accuracy"] for row in rows])
        features = np.array([_features(p) for p in self.points])
        forest = ExtraTreesRegressor(500, min_samples_leaf=2, random_state=0)
        held_out = cross_val_predict(forest, features, _logit(curves), cv=10)
        self.residuals = _logit(curves) - held_out
        self.forest = forest.fit(features, _logit(curves))
        self.final = curves[:, -1]
        spread = ((self.final - self.final.mean()) ** 2).sum()
        self.r2 = 1 - ((self.final - _expit(held_out[:, -1])) ** 2).sum() / spread
        self.epochs = curves.shape[1]
        self.seconds = float(np.mean([row["seconds"] for row in rows]))

    def curve(self, point: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
        """Accuracy per epoch of one run of `point`."""
        mean = self.forest.predict([_features(point)])[0]
        # A run scatters less than the forest errs; half of the residual is closer to the truth
        # (seeds of one configuration differ by about 1.5 points here).
        return _expit(mean + 0.5 * self.residuals[rng.integers(len(self.residuals))])


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
        baseline, best = surrogate.final[0], surrogate.final.max()
        target = float(best) - 0.01
        print(
            f"\n{name}: {len(surrogate.points)} trained points, out-of-fold R² of the final "
            f"accuracy {surrogate.r2:.2f}; median {np.median(surrogate.final):.3f}, "
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
