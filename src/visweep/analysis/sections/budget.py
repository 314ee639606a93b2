"""Where the budget went: epochs and time by how trials ended, and what pruning saved and lost."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from visweep.analysis.document import Block, Command, Paragraph, Plot, Section, Table, note
from visweep.analysis.figures.budget import COMPLETED, LOST, PRUNED, RUNNING, spent_epochs
from visweep.analysis.measure import GAP, duration, plural
from visweep.analysis.overview import (
    Overview,
    attribute,
    curve,
    epochs,
    mapping,
    ranked,
    value_of,
    was_pruned,
)
from visweep.analysis.pruning import SAMPLE, Judged, Rerun, Sample, eligible, judge_reruns
from visweep.analysis.sections.cells import MISSING
from visweep.analysis.sections.trials import ending
from visweep.analysis.sheet import Value, sheet_of


def budget_section(overview: Overview) -> Section | None:
    """Where the epochs went; nothing where no trial ran any."""
    if not any(map(epochs, overview.trials)):
        return None
    groups = _groups([t for t in overview.trials if t.state != TrialState.WAITING])
    chart = spent_epochs(groups, overview.full_epochs, overview.measure.step)
    blocks: list[Block] = [Plot(chart), _table(overview, groups)]
    if groups[PRUNED]:
        blocks += [*_saved(overview), *_would_have_won(overview)]
    return Section("budget", "Where the budget went", blocks)


def _groups(begun: Sequence[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    groups: dict[str, list[FrozenTrial]] = {COMPLETED: [], PRUNED: [], LOST: [], RUNNING: []}
    for trial in begun:
        groups[_group(trial)].append(trial)
    return groups


def _group(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        return COMPLETED
    if trial.state == TrialState.RUNNING:
        return RUNNING
    return PRUNED if was_pruned(trial) else LOST


def _endings(groups: dict[str, list[FrozenTrial]]) -> dict[str, list[FrozenTrial]]:
    """The groups, and in place of those that were lost each cause."""
    found: dict[str, list[FrozenTrial]] = {}
    for name, trials in groups.items():
        for trial in trials:
            found.setdefault(ending(trial) if name == LOST else name, []).append(trial)
    return found


def _table(overview: Overview, groups: dict[str, list[FrozenTrial]]) -> Table:
    step = overview.measure.step
    present = _endings(groups)
    ran = {name: sum(map(epochs, trials)) for name, trials in present.items()}
    times = {name: _seconds(trials) for name, trials in present.items()}
    all_epochs, all_time = sum(ran.values()), sum(filter(None, times.values()))
    rows = [
        [
            name,
            f"{len(trials):,}",
            f"{ran[name]:,}",
            _share(ran[name], all_epochs),
            MISSING if times[name] is None else duration(times[name] or 0.0),
            _share(times[name], all_time),
        ]
        for name, trials in present.items()
    ]
    if len(rows) > 1:
        total = sum(len(trials) for trials in present.values())
        rows.append(["all", f"{total:,}", f"{all_epochs:,}", "", duration(all_time), ""])
    timed = any(seconds is not None for seconds in times.values())
    columns = ["ending", "trials", f"{step}s", f"of all {step}s", "worker time", "of all time"]
    return Table(
        f"{step.capitalize()}s by how trials ended"
        + (
            "; worker time is that of training and validation, summed over trials, also where "
            "they were trained side by side"
            if timed
            else ""
        ),
        columns if timed else columns[:4],
        rows if timed else [row[:4] for row in rows],
        numeric=frozenset(range(1, 6 if timed else 4)),
        sheet=sheet_of(
            [
                {
                    "ending": name,
                    "trials": len(trials),
                    f"{step}s": ran[name],
                    "worker_seconds": times[name],
                }
                for name, trials in present.items()
            ]
        ),
    )


def _seconds(trials: Sequence[FrozenTrial]) -> float | None:
    known = [s for trial in trials if (s := attribute(trial, "seconds")) is not None]
    return sum(known) if known else None


def _share(part: float | None, whole: float) -> str:
    return MISSING if part is None or not whole else f"{100 * part / whole:.0f}{GAP}%"


def _saved(overview: Overview) -> list[Block]:
    cost, step = overview.cost, overview.measure.step
    if cost is None:
        return []
    time = (
        f", and about {duration(cost.seconds_saved)} of worker time, if each had gone on at its "
        "own pace"
        if cost.seconds_saved
        else ""
    )
    return [
        Paragraph(
            f"Pruning saved {cost.unpruned - cost.spent:,} of {plural(cost.unpruned, step)} "
            f"({100 * cost.saved:.0f}{GAP}%){time}."
        )
    ]


def _would_have_won(overview: Overview) -> list[Block]:
    """Whether a pruned trial would have been the best, as far as that is known."""
    other = overview.companions.get("pruned")
    sample = None if other is None else Sample.from_json(other.attributes.get(SAMPLE))
    if other is None or sample is None:
        return _unknown(overview)
    if overview.best is None:
        return []
    seeds = mapping(overview.identity, "train").get("seeds")
    judged = judge_reruns(
        overview.trials,
        overview.measure,
        sample,
        seeds if isinstance(seeds, list) else [],
        other.trials,
    )
    said = [_found(overview, judged), _inferred(judged), _remarks(judged)]
    return [*(Paragraph(each) for each in said if each), _rerun_table(overview, judged)]


def _unknown(overview: Overview) -> list[Block]:
    words = "Whether pruning dropped a run that would have won is not known."
    if not overview.specification or overview.best is None or not eligible(overview.trials):
        return [note(words)]
    command = ["visweep", "pruned", overview.name, "--sample", "5", *overview.where]
    return [
        Paragraph(words),
        Command("Train a few of the pruned trials to their end to find out:", shlex.join(command)),
    ]


def _found(overview: Overview, judged: Judged) -> str:
    known, measure = judged.known, overview.measure
    best = overview.best
    assert best is not None
    chosen = plural(len(judged.reruns), "pruned trial")
    ran = f"{len(known)} of {chosen} that were chosen have been "
    if not known:
        return f"{ran}trained to the end so far."
    values = [rerun for rerun in known if rerun.value is not None]
    won = {0: "None", len(known): "All"}.get(judged.won, str(judged.won))
    words = (
        f"{ran}trained to the end, with the study's own seeds. {won} would have beaten trial "
        f"{best.number}, the best ({measure.text(value_of(best))})"
    )
    if not values:
        return f"{words}."
    top = max(values, key=lambda rerun: measure.key(rerun.value or 0.0))
    total = len(ranked(overview.trials, measure))
    return (
        f"{words}; the best of them, trial {top.trial.number}, came to "
        f"{measure.text(top.value or 0.0)}, which would have been place {top.rank} among the "
        f"{total} completed."
    )


def _inferred(judged: Judged) -> str:
    interval = judged.interval
    total = judged.others + len(judged.nearest)
    if interval is None:
        return (
            "No trial drawn at random has been trained to the end yet, so nothing can be inferred."
        )
    if interval[0] == interval[1]:
        return f"So of all {total} pruned trials exactly {interval[0]} would have won."
    drawn = sum(rerun.known for rerun in judged.random)
    return (
        f"So of all {total} pruned trials between {interval[0]} and {interval[1]} would have won "
        f"(exact 95{GAP}% interval, from the {drawn} drawn at random for the {judged.others} "
        "that were not among the nearest, and from the nearest as they came out). Few reruns "
        "leave it wide: it narrows as more are drawn."
    )


def _remarks(judged: Judged) -> str:
    lost = [r for r in judged.reruns if not r.known and r.failed]
    if not lost:
        return ""
    named = ", ".join(f"trial {r.trial.number} ({r.failed})" for r in lost)
    return f"Left out, since what they would have come to is not known: {named}."


def _rerun_table(overview: Overview, judged: Judged) -> Table:
    measure = overview.measure
    chosen = [(rerun, "nearest to the best") for rerun in judged.nearest]
    chosen += [(rerun, "at random") for rerun in judged.random]
    return Table(
        "Pruned trials that were trained to the end: half of them those that were nearest to what "
        f"the best trial had after the same {measure.step}, the others drawn at random",
        ["trial", "chosen", "pruned after", "value there", "at the end", "would have been"],
        [[f"trial {r.trial.number}", how, *_rerun_cells(overview, r)] for r, how in chosen],
        numeric=frozenset({2, 3, 4}),
        marked=frozenset(i for i, (rerun, _) in enumerate(chosen) if rerun.won),
        sheet=sheet_of([_rerun_record(overview, rerun, how) for rerun, how in chosen]),
    )


def _rerun_record(overview: Overview, rerun: Rerun, how: str) -> dict[str, Value]:
    step, value = _stopped(rerun.trial)
    return {
        "trial": rerun.trial.number,
        "chosen": how,
        f"pruned_after_{overview.measure.step}": step,
        "val_accuracy_there": value,
        "val_accuracy_at_end": rerun.value,
        "without_value": rerun.failed or None,
        "rank": rerun.rank,
        "would_have_won": rerun.won if rerun.known else None,
    }


def _stopped(trial: FrozenTrial) -> tuple[int, float | None]:
    """After which epoch a trial was pruned, and what it had reached."""
    return curve(trial)[-1] if curve(trial) else (epochs(trial), None)


def _rerun_cells(overview: Overview, rerun: Rerun) -> list[str]:
    measure = overview.measure
    epoch, value = _stopped(rerun.trial)
    before = [f"{measure.step} {epoch}", MISSING if value is None else measure.text(value)]
    if rerun.value is None:
        return [*before, rerun.failed or "to come", MISSING]
    place = "the best" if rerun.won else f"place {rerun.rank}"
    return [*before, measure.text(rerun.value), place]
