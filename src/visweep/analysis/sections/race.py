"""The race of a study's leaders: its looks, what it came to, and what the test images say."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from visweep.analysis import race_words as words
from visweep.analysis.document import (
    Block,
    Command,
    Paragraph,
    Plot,
    Section,
    Table,
    Tile,
    Tiles,
    note,
)
from visweep.analysis.figures.chart import NothingToDraw
from visweep.analysis.figures.race import race_chart
from visweep.analysis.figures.words import capital
from visweep.analysis.measure import GAP, points
from visweep.analysis.overview import Overview
from visweep.analysis.race import Raced, read_race
from visweep.analysis.sections.cells import MISSING
from visweep.analysis.sheet import Value, sheet_of
from visweep.analysis.statistics.comparison import NoResult
from visweep.analysis.statistics.racing import Look
from visweep.storage.specification import RACE, Specification


def race_section(overview: Overview) -> Section | None:
    """The race of this study, or this race; nothing where there is none."""
    own = overview if RACE in overview.attributes else overview.companions.get("race")
    raced = None if own is None else _raced(own)
    if own is None or raced is None:
        return None
    study = overview.source_now if own is overview else overview.name
    return Section("race", "Race", list(_blocks(own, raced, study)))


def race_lead(overview: Overview) -> str:
    """What a study that races has come to, as its report begins; empty where it does not race."""
    raced = _raced(overview)
    return "" if raced is None else capital(words.outcome(raced))


def _raced(overview: Overview) -> Raced | None:
    if RACE not in overview.attributes:
        return None
    specification = Specification.from_stored(overview.specification)
    return read_race(overview.attributes, specification, overview.trials)


def _blocks(own: Overview, raced: Raced, study: str | None) -> Iterator[Block]:
    """Of a race, and of what the study that it is of is called now, if that is there."""
    yield Paragraph(capital(words.outcome(raced)))
    if raced.chosen is not None:
        yield Tiles([_tile(number) for number in words.numbers(raced, raced.chosen)])
    if curse := words.curse(raced):
        yield Paragraph(curse)
    elif raced.chosen is not None and study is not None:
        again = ["visweep", "race", study, *own.where]
        yield Command("Look at the test images, once", shlex.join(again))
    try:
        yield Plot(race_chart(raced, own.measure))
    except NothingToDraw as e:
        yield note(str(e))
    yield _arms(own, raced)
    if raced.race.looks:
        yield _looks(raced)
        yield note(_unbroken(words.promised(raced)))
    missing = list(_missing(raced))
    if missing:
        yield note(f"Left out, with the runs that they pair with: {'; '.join(missing)}.")


def _tile(number: words.Number) -> Tile:
    between = f"{_unbroken(number.interval)}: " if number.interval else ""
    return Tile(
        capital(number.what), _unbroken(number.accuracy), f"{between}{_unbroken(number.remark)}"
    )


def _unbroken(words: str) -> str:
    return words.replace(" %", f"{GAP}%")


def _arms(own: Overview, raced: Raced) -> Table:
    rows = []
    for arm, searched in raced.arms.items():
        mean = raced.mean(arm)
        rows.append(
            [
                arm,
                own.measure.text(searched.accuracy),
                MISSING if mean is None else _unbroken(words.with_interval(mean)),
                str(len(raced.seeds_of(arm))),
                words.fate(raced, arm),
            ]
        )
    chosen = [place for place, arm in enumerate(raced.arms) if arm == raced.chosen]
    return Table(
        "The leaders of the search, trained with new seeds: validation accuracy",
        ["configuration of", "in the search", _unbroken("in the race (95 %)"), "seeds", "outcome"],
        rows,
        numeric=frozenset({1, 2, 3}),
        marked=frozenset(chosen),
        sheet=sheet_of([_arm_record(raced, arm) for arm in raced.arms]),
    )


def _arm_record(raced: Raced, arm: str) -> dict[str, Value]:
    mean, test = raced.mean(arm), raced.test
    tested = test if test is not None and test.arm == arm else None
    return {
        "arm": arm,
        "trial": raced.arms[arm].trial,
        "val_accuracy_in_search": raced.arms[arm].accuracy,
        "val_accuracy_in_race": None if mean is None else mean.accuracy,
        "val_accuracy_in_race_low": None if mean is None else mean.low,
        "val_accuracy_in_race_high": None if mean is None else mean.high,
        "seeds": len(raced.seeds_of(arm)),
        "outcome": words.fate(raced, arm),
        "test_accuracy": None if tested is None else tested.accuracy,
        "test_accuracy_low": None if tested is None else tested.low,
        "test_accuracy_high": None if tested is None else tested.high,
    }


def _looks(raced: Raced) -> Table:
    rows = [row for look in raced.race.looks for row in _rows(look)]
    return Table(
        "The looks: who is left, and who was dropped by which p-value",
        ["seeds", "left", "dropped", "against", "points", "p", "threshold"],
        rows,
        numeric=frozenset({1, 4, 5, 6}),
        sheet=sheet_of([record for look in raced.race.looks for record in _look_records(look)]),
    )


def _look_records(look: Look) -> Iterator[dict[str, Value]]:
    """One, or one for each arm that left."""
    own: dict[str, Value] = {"seeds": look.seeds, "left": len(look.survivors)}
    nothing = dict.fromkeys(("dropped", "against", "effect_points", "p", "threshold"))
    closest = {"nearest_p_per_threshold": look.closest}
    for drop in look.dropped:
        yield {
            **own,
            "dropped": drop.arm,
            "against": drop.better,
            "effect_points": drop.effect,
            "p": drop.p,
            "threshold": drop.threshold,
            **closest,
        }
    for arm in look.withdrawn:
        yield {**own, **nothing, "dropped": arm, **closest}
    if not (look.dropped or look.withdrawn):
        yield {**own, **nothing, **closest}


def _rows(look: Look) -> Iterator[list[str]]:
    """One, or one for each arm that left."""
    left = str(len(look.survivors))
    for drop in look.dropped:
        numbers = points(drop.effect), words.p_value(drop.p), words.p_value(drop.threshold)
        yield [str(look.seeds), left, drop.arm, drop.better, *numbers]
    for arm in look.withdrawn:
        yield [str(look.seeds), left, arm, "most runs without result", *([MISSING] * 3)]
    if not (look.dropped or look.withdrawn):
        yield [str(look.seeds), left, *([MISSING] * 3), _closest(look), MISSING]


def _closest(look: Look) -> str:
    """How far the nearest pair was from telling its worse arm."""
    if look.closest is None:
        return MISSING
    return f"{look.closest:.2g}{GAP}×{GAP}threshold"


def _missing(raced: Raced) -> Iterator[str]:
    for arm, results in raced.results.items():
        for seed in raced.seeds:
            result = results.get(seed)
            if isinstance(result, NoResult):
                yield f"{arm}, seed{GAP}{seed} ({result.reason})"
