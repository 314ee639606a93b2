"""What a sweep came to: the best trials, and what pruning saved."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from visweep import text
from visweep.storage.replicates import originals
from visweep.storage.tables import FINISHED
from visweep.training.results import is_lost


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
        if trial.state == TrialState.PRUNED and done and not _is_lost(trial):
            saved += trial.user_attrs.get("seconds", 0.0) / done * (epochs - done)
    full = sum(run[t.number] if _is_lost(t) else epochs for t in trials)
    return Savings(sum(run.values()), full, saved)


def _is_lost(trial: FrozenTrial) -> bool:
    return is_lost(trial.user_attrs.get("ended"))


def finished(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Those that are finished: the completed ones best first, then the pruned ones."""
    ended = [t for t in trials if t.state in FINISHED]
    return sorted(ended, key=lambda t: (t.state == TrialState.PRUNED, -(t.value or 0.0), t.number))


def print_summary(
    console: Console,
    name: str,
    trials: Iterable[FrozenTrial],
    epochs: int,
    where: Sequence[str] = (),
    images: Sequence[str] = (),
) -> None:
    """The best five trials, what pruning saved, and how to see more.

    Args:
        console: where to print.
        name: of the study.
        trials: of the study.
        epochs: of an unpruned trial.
        where: options that tell other commands in which storage the study lies.
        images: options that tell where its images lie.
    """
    ranked = finished(trials)
    if not ranked:
        return
    console.print(trial_table(ranked[:5], "best trials", states=False, among=ranked))
    see = ["visweep", "report", name, *where]
    again = ["visweep", "train", "--study", name, *where, *images]
    for line in (
        *_outcome(ranked, epochs),
        "The best of many is flattered by chance: train it again with other seeds before you "
        "trust it.",
        f"see more:   {shlex.join(see)}",
        f"train best: {shlex.join(again)}",
    ):
        text.print_line(console, line)


def _outcome(trials: list[FrozenTrial], epochs: int) -> Iterator[str]:
    pruned = sum(t.state == TrialState.PRUNED for t in trials)
    middle = text.percent(median(t.value or 0.0 for t in trials))
    yield f"{text.plural(len(trials), 'trial')} finished, {pruned} of them pruned; median {middle}"
    spent = savings(trials, epochs)
    saved = spent.full - spent.epochs
    if saved > 0:
        yield (
            f"pruning saved {saved} of {spent.full} epochs ({100 * saved / spent.full:.0f} %), "
            f"about {text.duration(spent.seconds)}"
        )


def trial_table(
    trials: Sequence[FrozenTrial],
    title: str,
    *,
    states: bool = True,
    interrupted: Collection[int] = (),
    among: Sequence[FrozenTrial] = (),
) -> Table:
    """Trials as a table, one line each where the terminal is wide enough.

    Args:
        trials: in the order of the rows.
        title: of the table.
        states: show in which state each is.
        interrupted: numbers of those that have begun and that nobody works on.
        among: all trials of the study, where only some are shown.
    """
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE)
    for heading in ("trial", "accuracy", "training", "epochs", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    if states:
        table.add_column("state", no_wrap=True)
    table.add_column("parameters", overflow="fold")
    original = originals(among or trials)
    for trial in trials:
        state = "interrupted" if trial.number in interrupted else trial.state.name.lower()
        remark = " (baseline)" if trial.number == 0 else ""
        if trial.number in original:
            remark = f" (replicate of {original[trial.number]})"
        table.add_row(*_cells(trial, state if states else None, remark))
    return table


def _cells(trial: FrozenTrial, state: str | None, remark: str) -> Iterator[str]:
    attributes, curve = trial.user_attrs, trial.intermediate_values
    reached = trial.value if trial.value is not None else curve.get(max(curve, default=0))
    yield str(trial.number)
    yield "—" if reached is None else text.percent(reached)
    yield text.percent(attributes["train_accuracy"]) if "train_accuracy" in attributes else "—"
    yield str(len(curve))
    yield text.count(attributes["num_params"]) if "num_params" in attributes else "—"
    if state is not None:
        yield state
    yield text.parameters(trial.params) + remark
