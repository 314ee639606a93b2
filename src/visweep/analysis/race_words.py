"""A race as sentences: what each look decided, what it came to, and what that is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from visweep import text
from visweep.analysis.measure import points
from visweep.analysis.race import Mean, Raced, TestResult
from visweep.analysis.statistics.racing import Drop, Look, Outcome


def looked(look: Look) -> str:
    """`look at 5 seeds: trial 7 is dropped (…); 4 left, trial 12 leads with 87.3 %`."""
    parts = [
        *(f"{drop.arm} is dropped ({shown_by(drop)})" for drop in look.dropped),
        *(f"{arm} is withdrawn: most of its runs have no result" for arm in look.withdrawn),
    ]
    left = {arm: look.accuracy[arm] for arm in look.survivors}
    if not left:
        parts.append("no arm is left")
    else:
        leader = max(left, key=lambda arm: left[arm])
        how = "leads with" if len(left) > 1 else "has"
        parts.append(f"{len(left)} left, {leader} {how} {text.percent(left[leader])}")
    return f"look at {look.seeds} seeds: {'; '.join(parts)}"


def shown_by(drop: Drop) -> str:
    """`−2.1 points against trial 12, p 0.00012 ≤ 0.00031`."""
    return (
        f"{points(drop.effect)} points against {drop.better}, p {p_value(drop.p)} ≤ "
        f"{p_value(drop.threshold)}"
    )


def p_value(p: float) -> str:
    """To two significant digits."""
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.1e}"


def outcome(raced: Raced) -> str:
    """What the race has come to, as a sentence."""
    race = raced.race
    if race.outcome is Outcome.WINNER:
        seeds = race.looks[-1].seeds
        return f"{race.winner} wins, after {text.plural(seeds, 'seed')}."
    if race.outcome is Outcome.TIE:
        return (
            f"A tie: {len(raced.seeds)} seeds do not tell {text.listing(race.survivors)} apart. "
            f"{raced.chosen} has the highest mean and is taken."
        )
    if race.outcome is Outcome.NOBODY:
        return "No arm is left: most runs of each came to no result."
    return f"The race is not decided: {text.plural(len(race.survivors), 'arm')} are left."


def fate(raced: Raced, arm: str) -> str:
    """`dropped at 5 seeds`, `wins`, `tied`, or `in the race`."""
    for look in raced.race.looks:
        if arm in look.took_part and arm not in look.survivors:
            how = "withdrawn" if arm in look.withdrawn else "dropped"
            return f"{how} at {look.seeds} seeds"
    decided = {Outcome.WINNER: "wins", Outcome.TIE: "tied"}
    return decided.get(raced.race.outcome, "in the race")


def promised(raced: Raced) -> str:
    """What the rule of dropping is worth."""
    return (
        "An arm is dropped where a paired t-test shows it to be worse than another one. The "
        f"thresholds divide 5 % over all pairs of the {len(raced.arms)} arms, and over the looks "
        f"from {raced.first} to {len(raced.seeds)} seeds: in at most 5 % of such races is any arm "
        "dropped for one that is no better."
    )


@dataclass(frozen=True)
class Number:
    """An accuracy, what it is, and what it is worth.

    Attributes:
        what: a few words.
        accuracy: in per cent.
        interval: its 95 % interval in per cent; empty where there is none.
        remark: what it was measured on.
    """

    what: str
    accuracy: str
    interval: str
    remark: str


def numbers(raced: Raced, arm: str) -> Iterator[Number]:
    """The accuracies of an arm, the most flattered one first."""
    searched = raced.arms[arm]
    yield Number(
        "validation, in the search",
        text.percent(searched.accuracy),
        "",
        f"trial {searched.trial}, chosen as one of the best of {raced.among}: optimistic",
    )
    mean = raced.mean(arm)
    if mean is not None:
        remark = "new seeds, on the validation images that it was chosen by"
        yield Number(
            "validation, in the race",
            text.percent(mean.accuracy),
            interval(mean),
            f"{remark}; who wins a race is flattered a little again",
        )
    if raced.test is not None and raced.test.arm == arm:
        test = raced.test
        yield Number("test", text.percent(test.accuracy), interval(test), tested(test))


def interval(found: Mean | TestResult) -> str:
    """`86.1 to 88.5 %`, the 95 % interval; empty where there is none."""
    if found.low is None or found.high is None:
        return ""
    return f"{100 * found.low:.1f} to {text.percent(found.high)}"


def with_interval(found: Mean | TestResult) -> str:
    """`87.3 % (86.1 to 88.5 %)`."""
    between = interval(found)
    return (
        f"{text.percent(found.accuracy)} ({between})" if between else text.percent(found.accuracy)
    )


def tested(test: TestResult) -> str:
    """What the interval of a test number is over."""
    sources = f" of {test.groups:,} independent sources" if test.groups < test.images else ""
    over = f"the mean of {text.plural(len(test.seeds), 'run')} on {test.images:,} images{sources}"
    said = f"{over} that nothing was chosen by; measured once"
    if test.seed_error is None:
        return said
    return (
        f"{said}; 95 % over seeds (±{test.seed_error:.1f} points, one standard error) and images "
        f"(±{test.image_error:.1f})"
    )


def curse(raced: Raced) -> str:
    """How far the number of the search was above that of the test images; empty without one."""
    test = raced.test
    if test is None:
        return ""
    searched = raced.arms[test.arm].accuracy
    difference = 100 * (searched - test.accuracy)
    if difference <= 0:
        return "The search's own number is not above that of the test images this time."
    return (
        f"The search's own number is {difference:.1f} points above that of the test images: the "
        "winner's curse, and whatever else makes those images harder."
    )
