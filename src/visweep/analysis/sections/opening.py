"""How a report opens: what came of the study, in a paragraph and a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from optuna.trial import FrozenTrial, TrialState

from visweep import text
from visweep.analysis.ablation import AblationTable
from visweep.analysis.changes import over_seeds, tally
from visweep.analysis.document import Block, Paragraph, Tile, Tiles, note
from visweep.analysis.measure import GAP, duration, plural
from visweep.analysis.overview import (
    STATE_WORDS,
    Overview,
    mapping,
    ranked,
    shown_value,
    value_of,
)
from visweep.analysis.sections.cells import per_seed
from visweep.analysis.sections.race import race_lead
from visweep.analysis.sections.replicates import said_of
from visweep.analysis.sections.verdicts import arm_tiles, table_of
from visweep.storage.specification import TAKING_PART, TEST


def circumstances(overview: Overview) -> list[str]:
    """What was searched, with what and when, as a few words each."""
    identity = overview.identity
    if overview.compares_arms:
        return [*_compared(overview), *filter(None, [_period(overview)])]
    names = {part: mapping(identity, part).get("name") for part in ("data", "sampler", "pruner")}
    model = mapping(identity, "model").get("kind")
    words = [
        f"{model} on {names['data']}" if model and names["data"] else model or names["data"],
        f"sampler {names['sampler']}" if names["sampler"] else None,
        f"pruner {names['pruner']}" if names["pruner"] else None,
        f"up to {plural(overview.full_epochs, overview.measure.step)} a trial"
        if overview.full_epochs
        else None,
        _period(overview),
    ]
    return [str(word) for word in words if word]


def _compared(overview: Overview) -> list[str]:
    compared = overview.attributes.get(TAKING_PART, mapping(overview.identity, "arms"))
    arms = plural(len(compared), "configuration")
    images = mapping(overview.identity, "data").get("name")
    return [f"{arms} on {images}" if images else arms, "over paired seeds"]


def _period(overview: Overview) -> str | None:
    if overview.period is None:
        return None
    begin, end = overview.period
    last = f"{end:%H:%M}" if begin.date() == end.date() else _moment(end)
    return f"{_moment(begin)} to {last} UTC"


def _moment(time: datetime) -> str:
    return f"{time.day} {time:%B %Y, %H:%M}"


def opening(overview: Overview) -> list[Block]:
    """The result, the numbers that matter, and how far the study has come."""
    table = table_of(overview)
    if table is not None:
        lead = race_lead(overview) or (tally(table) if table.rows else _result_of_arms(table))
        tiles = [*arm_tiles(table), _trials_tile(overview)]
        reached = Paragraph(" ".join(_reached(overview)))
        return [Paragraph(lead, role="lead"), Tiles(tiles), reached]
    paragraphs = [
        Paragraph(_result(overview), role="lead"),
        *([note(_caution(overview, overview.best))] if overview.best else []),
        Paragraph(" ".join(_progress(overview))),
    ]
    return [paragraphs[0], Tiles(_tiles(overview)), *paragraphs[1:]]


def _result_of_arms(table: AblationTable) -> str:
    known = {each.name: each.mean for each in table.arms if each.mean is not None}
    if not known:
        return "No configuration has a result yet."
    seeds = over_seeds([len(each.values) for each in table.arms])
    best = max(known, key=lambda name: known[name])
    return (
        f"{plural(len(table.arms), 'configuration')}{seeds}; the highest mean is that of {best}, "
        f"{100 * known[best]:.1f}{GAP}%."
    )


def _result(overview: Overview) -> str:
    best, measure = overview.best, overview.measure
    if not overview.trials:
        return "This study has no trials yet."
    if best is None:
        return "No trial has completed with a value, so there is no best configuration."
    chosen = _described(best, overview.varied)
    value = measure.text(value_of(best))
    reached = f"{value} {measure.name}" if measure.percent else f"{measure.name} {value}"
    if best is overview.baseline:
        return f"The baseline, trial 0, is still the best: {reached}{chosen}."
    return f"Trial {best.number} is the best: {reached}{chosen}. {_comparison(overview, best)}"


def _described(trial: FrozenTrial, names: Sequence[str]) -> str:
    present = [name for name in names if name in trial.params]
    settings = [f"{name}{GAP}{text.value(trial.params[name])}" for name in present]
    return f" with {text.listing(settings)}" if settings else ""


def _comparison(overview: Overview, best: FrozenTrial) -> str:
    baseline, measure = overview.baseline, overview.measure
    if baseline is None:
        return ""
    if baseline.state != TrialState.COMPLETE or shown_value(baseline) is None:
        state = STATE_WORDS[baseline.state]
        return f"The baseline, trial 0, gives no final value to compare with ({state})."
    difference = value_of(best) - value_of(baseline)
    size = measure.difference(value_of(best), value_of(baseline)).lstrip("+−")
    place = "above" if difference > 0 else "below"
    return (
        f"The baseline, trial 0, reached {measure.text(value_of(baseline))}: "
        f"the best lies {size} {place} it."
    )


def _caution(overview: Overview, best: FrozenTrial) -> str:
    several = said_of(overview, best)
    return f"{_words_of_caution(overview)} {several}".rstrip()


def _words_of_caution(overview: Overview) -> str:
    complete = len(ranked(overview.trials, overview.measure))
    seeds = _seeds(overview.best)
    runs = f"one run (of {seeds} seeds)" if seeds > 1 else "one run"
    if complete == 1:
        return f"Read the number with care: it is {runs}, the only one that completed."
    data = " on the same validation data" if overview.specification else ""
    chosen = (
        f"the best was picked as the best of {complete} completed trials{data}, "
        "so that its own number is optimistic"
    )
    if overview.baseline is None or overview.best is overview.baseline:
        return f"Read the number with care: it is {runs}, and {chosen}."
    return (
        f"Read the difference with care: it compares {runs} with {runs}, and {chosen}. "
        f"It is no claim of significance. {_of_the_test_set(overview)}"
    )


def _of_the_test_set(overview: Overview) -> str:
    race = overview.companions.get("race", overview)
    if TEST in race.attributes:
        return "What the test set says stands under Race."
    return "The test set is not part of this report."


def _seeds(trial: FrozenTrial | None) -> int:
    return len(per_seed(trial)) if trial is not None else 0


def _progress(overview: Overview) -> list[str]:
    return [*_reached(overview), *_saving(overview)]


def _reached(overview: Overview) -> list[str]:
    complete = len(overview.having(TrialState.COMPLETE))
    pruned = len(overview.having(TrialState.PRUNED))
    words = [
        f"{_finished(overview)} finished: {complete:,} completed and {pruned:,} pruned"
        f"{_failed(overview)}."
    ]
    waiting = [
        f"{len(found)} {word}"
        for word, state in (("running", TrialState.RUNNING), ("waiting", TrialState.WAITING))
        if (found := overview.having(state))
    ]
    if waiting:
        words.append(f"The study is not finished: {' and '.join(waiting)}.")
    return words


def _finished(overview: Overview) -> str:
    done, budget = len(overview.finished), overview.budget
    if budget is None:
        return plural(done, "trial")
    if done > budget:
        return f"{plural(done, 'trial')} (of a budget of {budget:,})"
    return f"{done:,} of {plural(budget, 'trial')}"


def _failed(overview: Overview) -> str:
    failed = len(overview.having(TrialState.FAIL))
    return f"; {failed} more failed" if failed else ""


def _saving(overview: Overview) -> list[str]:
    cost, step = overview.cost, overview.measure.step
    if cost is None or not overview.having(TrialState.PRUNED):
        return []
    time = f" and about {duration(cost.seconds_saved)}" if cost.seconds_saved else ""
    return [
        f"They ran {plural(cost.spent, step)}; without pruning it would have been "
        f"{cost.unpruned:,}. Pruning saved {100 * cost.saved:.0f}{GAP}% of the "
        f"{step}s{time}."
    ]


def _tiles(overview: Overview) -> list[Tile]:
    tiles = [_best_tile(overview), _baseline_tile(overview), _trials_tile(overview)]
    return [tile for tile in (*tiles, _saving_tile(overview)) if tile is not None]


def _best_tile(overview: Overview) -> Tile | None:
    best = overview.best
    if best is None:
        return None
    complete = len(ranked(overview.trials, overview.measure))
    return Tile(
        f"Best {overview.measure.name}",
        overview.measure.text(value_of(best)),
        f"trial {best.number}, of {complete} completed",
    )


def _baseline_tile(overview: Overview) -> Tile | None:
    best, baseline = overview.best, overview.baseline
    if best is None or baseline is None or best is baseline:
        return None
    if baseline.state != TrialState.COMPLETE or shown_value(baseline) is None:
        return None
    return Tile(
        "Against the baseline",
        overview.measure.difference(value_of(best), value_of(baseline)),
        f"trial 0: {overview.measure.text(value_of(baseline))}; one run each",
    )


def _trials_tile(overview: Overview) -> Tile:
    done, budget = len(overview.finished), overview.budget
    within = budget is not None and done <= budget
    return Tile(
        "Trials finished",
        f"{done:,} of {budget:,}" if within else f"{done:,}",
        f"{len(overview.having(TrialState.PRUNED))} pruned, "
        f"{len(overview.having(TrialState.FAIL))} failed",
    )


def _saving_tile(overview: Overview) -> Tile | None:
    cost, step = overview.cost, overview.measure.step
    if cost is None:
        return None
    return Tile(
        f"{step.capitalize()}s saved by pruning",
        f"{100 * cost.saved:.0f}{GAP}%",
        f"{cost.spent:,} run instead of {cost.unpruned:,}",
    )
