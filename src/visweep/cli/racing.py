"""A race while it runs: who goes on, and what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from optuna.trial import TrialState
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from visweep import text
from visweep.analysis import race_words as words
from visweep.analysis.race import Raced, read_race
from visweep.search.study import OpenStudy
from visweep.storage.companions import source_name
from visweep.storage.replicates import seeds_of
from visweep.storage.specification import ARM, BUDGET, DROPPED, SEED
from visweep.storage.tables import FINISHED

_MISSING = "—"
_BEGUN = (TrialState.RUNNING, *FINISHED)


def raced_in(opened: OpenStudy) -> Raced:
    """The race of a study, as far as it has come."""
    return read_race(opened.study.user_attrs, opened.specification, opened.trials())


class Deciding:
    """Decides a race look by look, and tells of each once."""

    def __init__(self, opened: OpenStudy, note: Callable[[str], None]) -> None:
        self._opened = opened
        self._note = note
        self._told = 0

    def goes_on(self) -> bool:
        """Whether more runs are wanted; there is room for them then, and for no others.

        Everyone who asks at the same time finds the same.
        """
        raced = raced_in(self._opened)
        for look in raced.race.looks[self._told :]:
            self._note(words.looked(look))
        self._told = len(raced.race.looks)
        dropped = [arm for arm in raced.arms if arm not in raced.race.survivors]
        # Before there is room, so that it is not taken for an arm that was dropped.
        self._set(DROPPED, dropped)
        if not raced.race.wanted:
            return False
        self._set(BUDGET, self._budget(raced))
        return True

    def _budget(self, raced: Raced) -> int:
        begun = [t for t in self._opened.trials() if t.state in _BEGUN]
        points = {(t.params[ARM], t.params[SEED]) for t in begun if not seeds_of(t)}
        return len(begun) + sum(point not in points for point in raced.race.wanted)

    def _set(self, name: str, value: object) -> None:
        if self._opened.study.user_attrs.get(name) != value:
            self._opened.study.set_user_attr(name, value)


def print_race(console: Console, opened: OpenStudy, where: Sequence[str] = ()) -> None:
    """The arms, the looks and the outcome, as far as the race has come.

    Args:
        console: where to print.
        opened: the study.
        where: options that tell other commands in which storage the study lies.
    """
    raced = raced_in(opened)
    if not any(raced.results.values()):
        return
    console.print(_arms(raced))
    if console.is_terminal:
        # There they were on the screen for a moment only.
        for look in raced.race.looks:
            text.print_line(console, words.looked(look))
    for line in _conclusions(raced):
        text.print_line(console, line)
    see = ["visweep", "report", opened.name, *where]
    text.print_line(console, f"see more: {shlex.join(see)}")


def print_who_looks(console: Console, opened: OpenStudy, where: Sequence[str] = ()) -> None:
    """Which command looks at the test images, where the race is decided and none did; nothing
    where the study that it is of, which the command names, is not there.

    Args:
        console: where to print.
        opened: the study.
        where: options that tell other commands in which storage the study lies.
    """
    raced, study = raced_in(opened), source_name(opened.study)
    if raced.chosen is not None and raced.test is None and study is not None:
        again = shlex.join(["visweep", "race", study, *where])
        text.print_line(console, f"the test images are looked at, once, by: {again}")


def _arms(raced: Raced) -> Table:
    shown = Table(title="validation accuracy", title_justify="left", box=SIMPLE)
    shown.header_style = "bold"
    shown.add_column("arm", overflow="fold")
    for heading in ("in the search", "in the race (95 %)", "seeds"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("", overflow="fold")
    for arm, searched in raced.arms.items():
        mean = raced.mean(arm)
        shown.add_row(
            arm,
            text.percent(searched.accuracy),
            _MISSING if mean is None else words.with_interval(mean),
            str(len(raced.seeds_of(arm))),
            words.fate(raced, arm),
        )
    return shown


def _conclusions(raced: Raced) -> list[str]:
    return [words.outcome(raced), *([words.promised(raced)] if raced.race.looks else [])]
