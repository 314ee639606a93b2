"""What a sweep came to: the best trials, and what pruning saved."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from statistics import median

from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from visweep import text
from visweep.storage.slots import FINISHED


@dataclass(frozen=True)
class Savings:
    """What pruning saved.

    Attributes:
        epochs: trained in all.
        full: epochs that the same trials would have taken unpruned.
        seconds: saved, at each pruned trial's own pace.
    """

    epochs: int
    full: int
    seconds: float


def savings(trials: list[FrozenTrial], epochs: int) -> Savings:
    """What pruning saved over finished trials of `epochs` each."""
    run = {t.number: len(t.intermediate_values) for t in trials}
    saved = 0.0
    for trial in trials:
        done = run[trial.number]
        if trial.state == TrialState.PRUNED and done:
            saved += trial.user_attrs.get("seconds", 0.0) / done * (epochs - done)
    return Savings(sum(run.values()), len(trials) * epochs, saved)


def finished(study: Study) -> list[FrozenTrial]:
    """The finished trials, best first."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state in FINISHED]
    return sorted(trials, key=lambda t: (-(t.value or 0.0), t.number))


def print_summary(
    console: Console, study: Study, epochs: int, where: str = "", images: str = ""
) -> None:
    """The best five trials, what pruning saved, and how to see more.

    Args:
        where: options that tell other commands where the study lies.
        images: options that tell where its images lie.
    """
    trials = finished(study)
    if not trials:
        return
    console.print(best_table(trials[:5]))
    spent = savings(trials, epochs)
    share = 1 - spent.epochs / spent.full if spent.full else 0.0
    pruned = sum(t.state == TrialState.PRUNED for t in trials)
    middle = median(t.value or 0.0 for t in trials)
    for line in (
        f"{len(trials)} trials finished, {pruned} of them pruned; median {text.percent(middle)}",
        f"pruning saved {spent.full - spent.epochs} of {spent.full} epochs "
        f"({100 * share:.0f} %), about {text.duration(spent.seconds)}",
        "The best of many is flattered by chance: train it again with other seeds before you "
        "trust it.",
        f"see more:   visweep report {shlex.quote(study.study_name)}{where}",
        f"train best: visweep train --study {shlex.quote(study.study_name)}{where}{images}",
    ):
        text.print_line(console, line)


def best_table(trials: list[FrozenTrial]) -> Table:
    """Trials as a table, one line each where the terminal is wide enough."""
    table = Table(title="best trials", title_justify="left", header_style="bold", box=SIMPLE)
    for heading in ("trial", "accuracy", "training", "epochs", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("parameters", overflow="fold")
    for trial in trials:
        attributes = trial.user_attrs
        baseline = " (baseline)" if trial.number == 0 else ""
        table.add_row(
            str(trial.number),
            text.percent(trial.value or 0.0),
            text.percent(attributes["train_accuracy"]) if "train_accuracy" in attributes else "—",
            str(len(trial.intermediate_values)),
            text.count(attributes["num_params"]) if "num_params" in attributes else "—",
            text.parameters(trial.params) + baseline,
        )
    return table
