"""Which parameters mattered, by two methods, with pruned trials counted.

Optuna's evaluators read completed trials only. Where pruning is informative, as it is meant to
be, the completed trials are a selection by the very parameters in question: one whose bad values
are always pruned does not vary among them, and seems not to matter. The last value of a pruned
trial is no way out, since it comes from an earlier epoch than the final ones
(https://github.com/optuna/optuna/issues/3709). So trials are compared where all of them were, see
`at_common_epoch`; what completed trials alone would give stands beside it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
)
from optuna.trial import FrozenTrial, TrialState, create_trial
from sklearn.ensemble import RandomForestRegressor

from visweep.analysis.axes import parameter_axes
from visweep.analysis.measure import Measure
from visweep.analysis.overview import curve, ranked, value_of
from visweep.analysis.statistics.power import LEVEL
from visweep.training.results import OUT_OF_MEMORY

LEAST_TOP = 5
"""PED-ANOVA's authors advise at least this many trials among the best."""
LEAST_TRIALS = 2 * LEAST_TOP
TOP_SHARE = 0.1
MOST_TRIALS = 120
"""fANOVA reads no more: Optuna's takes half a minute for a thousand."""
MOST_PAIRED = 500
"""Trials whose pairs are counted: there are a hundred thousand of them."""
SHUFFLES = 59
"""Deals by chance that PED-ANOVA's importances are compared with."""
_TREES = 32

Shares = Mapping[str, float]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """Trials with values that may be compared.

    Attributes:
        trials: each varies the parameters.
        values: one for each, larger is better.
        epoch: after which they are taken; None where they are the final ones.
        worst: how many of the trials have no value there and count as the worst.
        absent: how many finished trials are left out, since nothing is known of them there.
    """

    trials: tuple[FrozenTrial, ...]
    values: tuple[float, ...]
    epoch: int | None = None
    worst: int = 0
    absent: int = 0

    @property
    def top(self) -> int:
        """How many are among the best: a tenth, 5 at least, and all that equal the last one."""
        wanted = _wanted(len(self.values))
        least = sorted(self.values, reverse=True)[wanted - 1]
        return sum(value >= least for value in self.values)

    @property
    def lacking(self) -> str:
        """Why nothing can be said of these, as a sentence; empty where something can."""
        found = len(self.trials)
        if found < LEAST_TRIALS:
            return (
                f"Importance compares the best {LEAST_TOP} trials with the rest: it needs at "
                f"least {LEAST_TRIALS} finished trials with comparable values; there "
                f"{'is' if found == 1 else 'are'} {found}."
            )
        if 2 * self.top > found:
            return f"{self.top} of {found} finished trials are equally good at the top."
        return ""


@dataclass(frozen=True)
class Importances:
    """What both methods say of the same trials; shares add up to 1.

    Attributes:
        ped_anova: which parameters tell the best tenth from all.
        fanova: the share of the variance over the whole space that is due to each parameter alone;
            empty where it can read fewer than two, of which there is nothing to tell. It reads
            only parameters that every trial has, over one range.
        clear: the parameters whose importance in PED-ANOVA is beyond chance, at 0.05 for all of
            them together: beyond what it gives after the values were dealt out anew among the
            trials.
        explained: share of the variance of trials not seen that fANOVA's model predicts (out of
            bag; below 0 where the mean would predict them better); None without a model.
        read: how many trials fANOVA read.
    """

    ped_anova: Shares
    fanova: Shares
    clear: frozenset[str]
    explained: float | None
    read: int

    @property
    def names(self) -> list[str]:
        """The parameters, the most important first, by the mean of both methods."""
        both = [shares for shares in (self.ped_anova, self.fanova) if shares]
        found = dict.fromkeys(name for shares in both for name in shares)
        return sorted(found, key=lambda name: -sum(s.get(name, 0.0) for s in both))

    @property
    def unread(self) -> list[str]:
        """The parameters that fANOVA left out."""
        return [name for name in self.ped_anova if name not in self.fanova]

    @property
    def overlap(self) -> float:
        """The share of importance that both put on the same parameters."""
        return sum(min(share, self.fanova.get(n, 0.0)) for n, share in self.ped_anova.items())

    @property
    def ordered_alike(self) -> tuple[int, int]:
        """Pairs of parameters that both put in the same order, and all pairs."""
        pairs = list(combinations([n for n in self.ped_anova if n in self.fanova], 2))
        return sum(self._alike(*pair) for pair in pairs), len(pairs)

    def _alike(self, one: str, other: str) -> bool:
        here = self.ped_anova[one] - self.ped_anova[other]
        return here * (self.fanova[one] - self.fanova[other]) > 0


def completed_only(trials: Sequence[FrozenTrial], measure: Measure) -> Compared:
    """The completed trials by their final values, as Optuna has it."""
    complete = ranked(trials, measure)
    return Compared(tuple(complete), tuple(measure.key(value_of(t)) for t in complete))


def at_common_epoch(trials: Sequence[FrozenTrial], measure: Measure) -> Compared:
    """All finished trials by their values after the last epoch that all of them reached.

    That is the epoch of the first pruning decision, so that nothing has been selected yet; the
    price is that it is early. A trial that diverged before counts as the worst, since it is known
    to be no good. One that did not fit in memory is left out: how good it would be is not known.
    A pruned trial that reported nothing was found bad by other means, and counts as the worst too.
    Where nothing was pruned, the final values are compared.
    """
    pruned = [t for t in trials if t.state == TrialState.PRUNED and not _was_too_large(t)]
    final = completed_only(trials, measure)
    absent = sum(_was_too_large(t) for t in trials)
    if not pruned:
        return replace(final, absent=absent)
    stopped = [t for t in pruned if curve(t) and not _diverged(t)]
    if not stopped:
        return _with_worst(final, pruned, absent)
    epoch = min(curve(trial)[-1][0] for trial in stopped)
    placed: list[tuple[FrozenTrial, float]] = []
    worst: list[FrozenTrial] = []
    for trial in (*final.trials, *pruned):
        reached = dict(curve(trial))
        if epoch in reached:
            placed.append((trial, measure.key(reached[epoch])))
        elif trial.state == TrialState.PRUNED:
            worst.append(trial)
        else:
            absent += 1
    known = Compared(tuple(t for t, _ in placed), tuple(v for _, v in placed), epoch)
    return _with_worst(known, worst, absent)


def at_the_end(trials: Sequence[FrozenTrial], measure: Measure) -> Compared:
    """The completed trials by their final values, and all pruned ones as worse than those.

    Enough for a method that asks only which trials are among the best.
    """
    pruned = [t for t in trials if t.state == TrialState.PRUNED]
    return _with_worst(completed_only(trials, measure), pruned, 0)


def order_kept(trials: Sequence[FrozenTrial], measure: Measure, epoch: int) -> float | None:
    """The share of pairs of completed trials that ended in the order in which they stood then.

    None where there are fewer than five such trials. Of more than `MOST_PAIRED` trials so many
    are read, evenly over the order in which they ended up.
    """
    ends = [
        (there, value_of(t))
        for t in ranked(trials, measure)
        if (there := t.intermediate_values.get(epoch)) is not None and math.isfinite(there)
    ]
    if len(ends) < LEAST_TOP:
        return None
    kept = np.asarray([ends[i] for i in _evenly_chosen(len(ends), MOST_PAIRED)])
    # Of each pair 1 where its order was kept, -1 where it was not, 0 where it was tied.
    then, in_the_end = (np.sign(column[:, None] - column) for column in kept.T)
    alike = then * in_the_end
    different = np.count_nonzero(alike)
    return float((alike > 0).sum() / different) if different else None


def importances(compared: Compared, deals: int = SHUFFLES) -> Importances:
    """What both methods say.

    Args:
        compared: trials of which something can be said; see `Compared.lacking`.
        deals: how often values are dealt out by chance; 0 where `clear` is of no interest.
    """
    ped_anova, clear = _ped_anova(compared, deals)
    some = _thinned(compared)
    fanova, explained = _fanova(some)
    return Importances(ped_anova, fanova, clear, explained, len(some.trials))


def ped_anova(compared: Compared) -> Shares:
    """What PED-ANOVA says alone."""
    return _ped_anova(compared, deals=0)[0]


def _wanted(total: int) -> int:
    return max(LEAST_TOP, math.ceil(TOP_SHARE * total))


def _was_too_large(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("ended") == OUT_OF_MEMORY


def _diverged(trial: FrozenTrial) -> bool:
    return str(trial.user_attrs.get("ended")).startswith("diverged")


def _with_worst(compared: Compared, worst: Sequence[FrozenTrial], absent: int) -> Compared:
    """Trials without a value take one just below all others; how far below is not known."""
    lowest = math.nextafter(min(compared.values, default=0.0), -math.inf)
    return Compared(
        (*compared.trials, *worst),
        (*compared.values, *[lowest] * len(worst)),
        compared.epoch,
        len(worst),
        absent,
    )


def _thinned(compared: Compared) -> Compared:
    """No more trials than fANOVA reads in a few seconds, evenly over the order of the study."""
    total = len(compared.trials)
    if total <= MOST_TRIALS:
        return compared
    order = sorted(range(total), key=lambda i: compared.trials[i].number)
    kept = [order[i] for i in _evenly_chosen(total, MOST_TRIALS)]
    return replace(
        compared,
        trials=tuple(compared.trials[i] for i in kept),
        values=tuple(compared.values[i] for i in kept),
    )


def _evenly_chosen(total: int, most: int) -> list[int]:
    """So many places of `total`, or all."""
    count = min(total, most)
    return [i * total // count for i in range(count)]


def _ped_anova(compared: Compared, deals: int = SHUFFLES) -> tuple[Shares, frozenset[str]]:
    """The shares, and the parameters that chance does not explain."""
    names, values = _varied(compared), np.asarray(compared.values)
    study = _study(compared, _in_place)
    found = _by_ped_anova(study, values)
    generator = np.random.default_rng(0)
    dealt = [_by_ped_anova(study, generator.permutation(values)) for _ in range(deals)]
    if not dealt:
        return _scaled(found, names), frozenset()
    chances = _chances(
        np.array([found[name] for name in names]),
        np.array([[deal[name] for name in names] for deal in dealt]),
    )
    clear = {name for name, chance in zip(names, chances, strict=True) if chance < LEVEL}
    return _scaled(found, names), frozenset(clear)


def _chances(found: Values, deals: Values) -> list[float]:
    """P-values of a permutation test, adjusted for there being several parameters.

    P. Westfall and S. Young (1993), Resampling-Based Multiple Testing, by the largest of the
    importances: each by its own mean and scatter over the deals, since a parameter with more
    values has more by chance.
    """
    scatter = np.maximum(deals.std(0), 1e-12)
    largest = ((deals - deals.mean(0)) / scatter).max(1)
    standing = (found - deals.mean(0)) / scatter
    return [float((1 + (largest >= each).sum()) / (1 + len(deals))) for each in standing]


def _by_ped_anova(study: optuna.Study, values: Values) -> dict[str, float]:
    # Half a trial less than the quotient: Optuna rounds up, and the quotient may be inexact.
    quantile = (_wanted(len(values)) - 0.5) / len(values)
    return _evaluate(PedAnovaImportanceEvaluator(target_quantile=quantile), study, values)


def _fanova(compared: Compared) -> tuple[Shares, float | None]:
    """The shares, and how well such a model predicts trials that it has not seen."""
    names = [n for n in _varied(compared) if all(n in t.params for t in compared.trials)]
    if len(names) < 2 or len(set(compared.values)) < 2:
        return {}, None
    study, values = _study(compared, _evenly), np.asarray(compared.values)
    found = _evaluate(FanovaImportanceEvaluator(n_trees=_TREES, seed=0), study, values)
    # It reads only parameters of one range throughout.
    read = [name for name in names if name in found]
    if len(read) < 2:
        return {}, None
    return _scaled(found, read), _explained(study.get_trials(deepcopy=False), read, values)


def _evaluate(
    evaluator: BaseImportanceEvaluator, study: optuna.Study, values: Values
) -> dict[str, float]:
    """Importances of the study's trials at these values, not scaled."""
    with warnings.catch_warnings():
        # They warn of values that occur once, which is normal in a small study, and of targets.
        warnings.simplefilter("ignore")
        return evaluator.evaluate(study, target=lambda trial: -float(values[trial.number]))


def _explained(trials: Sequence[FrozenTrial], names: Sequence[str], values: Values) -> float:
    """Out-of-bag R² of a forest of fANOVA's kind."""
    columns = [
        _columns(trials[0].distributions[name], [trial.params[name] for trial in trials])
        for name in names
    ]
    forest = RandomForestRegressor(n_estimators=4 * _TREES, oob_score=True, random_state=0)
    forest.fit(np.hstack(columns), values)
    return float(forest.oob_score_)


def _columns(distribution: BaseDistribution, values: Sequence[Any]) -> Values:
    if not isinstance(distribution, CategoricalDistribution):
        return np.asarray(values, np.float64)[:, None]
    places = [distribution.to_internal_repr(value) for value in values]
    return np.eye(len(distribution.choices))[np.asarray(places, np.int64)]


def _varied(compared: Compared) -> list[str]:
    return [axis.name for axis in parameter_axes(compared.trials)]


def _scaled(found: Mapping[str, float], names: Sequence[str]) -> Shares:
    """Largest first, adding up to 1; all equal where nothing has any."""
    total = sum(float(found[name]) for name in names)
    shares = {n: float(found[n]) / total if total > 0 else 1 / len(names) for n in names}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


Recoding = Callable[[Any, BaseDistribution], tuple[Any, BaseDistribution]]


def _study(compared: Compared, recode: Recoding) -> optuna.Study:
    """A study in memory of these trials, numbered from 0, each completed."""
    study = _silent_study()
    study.add_trials([_recoded(trial, recode) for trial in compared.trials])
    return study


def _recoded(trial: FrozenTrial, recode: Recoding) -> FrozenTrial:
    pairs = {n: recode(v, trial.distributions[n]) for n, v in trial.params.items()}
    return create_trial(
        value=0.0,
        params={name: value for name, (value, _) in pairs.items()},
        distributions={name: distribution for name, (_, distribution) in pairs.items()},
    )


def _in_place(value: Any, distribution: BaseDistribution) -> tuple[Any, BaseDistribution]:
    """For PED-ANOVA: choices as numbers, in the order of the space.

    Optuna blurs choices by how few different ones occur: where all of the best trials agree on one
    of five, it reads that as 40 % of them.
    """
    if not isinstance(distribution, CategoricalDistribution):
        return value, distribution
    place = int(distribution.to_internal_repr(value))
    return place, IntDistribution(0, len(distribution.choices) - 1)


def _evenly(value: Any, distribution: BaseDistribution) -> tuple[Any, BaseDistribution]:
    """For fANOVA: logarithms in place of what is searched on a logarithmic scale.

    It averages evenly over the space, so that otherwise the upper end of a range that spans
    decades would be all that counts.
    """
    if not isinstance(distribution, FloatDistribution | IntDistribution) or not distribution.log:
        return value, distribution
    low, high = math.log(distribution.low), math.log(distribution.high)
    return min(max(low, math.log(value)), high), FloatDistribution(low, high)


def _silent_study() -> optuna.Study:
    """A study in memory, made without Optuna's line about it."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
