"""The report of a study: one HTML file that opens offline.

A report is a list of sections; each is a function from the overview of the study to a `Section`,
and a new one is added to `SECTIONS`. How a page looks is `rendering`'s business.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState

from visweep import text
from visweep.analysis import figures
from visweep.analysis.document import (
    Block,
    Columns,
    Command,
    Document,
    Folded,
    Paragraph,
    Plot,
    PlotGrid,
    Section,
    Table,
    Tile,
    Tiles,
)
from visweep.analysis.figures import Chart, NothingToDraw
from visweep.analysis.measure import GAP, Measure, count, duration, memory, plural
from visweep.analysis.overview import (
    Overview,
    attribute,
    epochs,
    mapping,
    parameter_names,
    ranked,
    read,
    shown_value,
    value_of,
)
from visweep.analysis.rendering import to_html
from visweep.errors import UsageError

TOP_TRIALS = 10
"""How many trials the table of the best ones lists."""

MISSING = "–"


def build_report(study: optuna.Study, where: Sequence[str] = ()) -> str:
    """The report of a study as a complete HTML page that loads nothing else.

    It works for any study with one objective, whoever made it: what is not known is left out.

    Args:
        study: what to report.
        where: options that tell `visweep train` in which storage the study lies.

    Raises:
        UsageError: the study has several objectives.
    """
    return to_html(document(study, where))


def write_report(study: optuna.Study, path: Path, where: Sequence[str] = ()) -> None:
    """Write the report to `path`: the whole of it, or nothing.

    Args:
        study: what to report.
        path: the file.
        where: see `build_report`.

    Raises:
        UsageError: the study has several objectives, or the file cannot be written.
    """
    page = build_report(study, where)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"report: cannot write {path}: {e.strerror}") from e


def document(study: optuna.Study, where: Sequence[str] = ()) -> Document:
    """The report's contents, before they become a page."""
    overview = read(study, where)
    return Document(
        title=overview.name,
        subtitle=" · ".join(_circumstances(overview)),
        opening=_opening(overview),
        sections=[section(overview) for section in SECTIONS],
        footer=f"Made by visweep {version('visweep')} with Optuna {optuna.__version__}. "
        "This page is complete in itself: it loads nothing from the network.",
    )


# The opening ------------------------------------------------------------------------------------


def _circumstances(overview: Overview) -> list[str]:
    identity = overview.identity
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


def _period(overview: Overview) -> str | None:
    if overview.period is None:
        return None
    begin, end = overview.period
    last = f"{end:%H:%M}" if begin.date() == end.date() else _moment(end)
    return f"{_moment(begin)} to {last} UTC"


def _moment(time: datetime) -> str:
    return f"{time.day} {time:%B %Y, %H:%M}"


def _opening(overview: Overview) -> list[Block]:
    paragraphs = [
        Paragraph(_result(overview), role="lead"),
        *([Paragraph(_caution(overview), role="note")] if overview.best else []),
        Paragraph(" ".join(_progress(overview))),
    ]
    return [paragraphs[0], Tiles(_tiles(overview)), *paragraphs[1:]]


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
        state = figures.STATE_WORDS[baseline.state]
        return f"The baseline, trial 0, gives no final value to compare with ({state})."
    difference = value_of(best) - value_of(baseline)
    size = measure.difference(value_of(best), value_of(baseline)).lstrip("+−")
    place = "above" if difference > 0 else "below"
    return (
        f"The baseline, trial 0, reached {measure.text(value_of(baseline))}: "
        f"the best lies {size} {place} it."
    )


def _caution(overview: Overview) -> str:
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
        "It is no claim of significance. The test set is not part of this report."
    )


def _seeds(trial: FrozenTrial | None) -> int:
    return len(_per_seed(trial)) if trial is not None else 0


def _per_seed(trial: FrozenTrial) -> list[float]:
    values = trial.user_attrs.get("val_accuracy_per_seed")
    if not isinstance(values, list):
        return []
    return [float(value) for value in values if isinstance(value, int | float)]


def _progress(overview: Overview) -> list[str]:
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
    return [*words, *_saving(overview)]


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


# Sections ---------------------------------------------------------------------------------------


def best_section(overview: Overview) -> Section:
    """The best configuration: the command that trains it again, beside the baseline."""
    best = overview.best
    if best is None:
        return Section("best", "Best configuration", [_note("No trial has completed yet.")])
    compared = [best]
    if overview.baseline is not None and overview.baseline is not best:
        compared.append(overview.baseline)
    blocks: list[Block] = [_command(overview, best), _parameter_table(overview, compared)]
    return Section("best", "Best configuration", [*blocks, *_measured_table(overview, compared)])


def history_section(overview: Overview) -> Section:
    """The objective by trial number."""
    chart = partial(figures.history, *_shown(overview), overview.baseline)
    return _drawn("history", "History", chart)


def curves_section(overview: Overview) -> Section:
    """The learning curves."""
    chart = partial(figures.learning_curves, *_shown(overview), overview.baseline)
    return _drawn("curves", "Learning curves", chart)


def parallel_section(overview: Overview) -> Section:
    """All parameters of all trials in one picture."""
    chart = partial(figures.parallel_coordinates, *_shown(overview), overview.baseline)
    return _drawn("parallel", "Parallel coordinates", chart)


def slices_section(overview: Overview) -> Section:
    """The objective against one parameter at a time."""
    try:
        charts = figures.slices(overview.trials, overview.measure, overview.baseline)
    except NothingToDraw as e:
        return Section("slices", "Slices", [_note(str(e))])
    diamond = "" if overview.baseline in (None, overview.best) else ", the diamond the baseline"
    caption = (
        f"{overview.measure.name.capitalize()} of each trial against one parameter at a time. "
        "Circles completed; crosses were pruned and stand at the last value that they reported; "
        f"the star is the best trial{diamond}. The other parameters differ from point to point, "
        "so a slice does not show the effect of one parameter alone."
    )
    return Section("slices", "Slices", [PlotGrid(charts, caption)])


def importance_section(overview: Overview) -> Section:
    """Which parameters mattered for being among the best."""
    title = "Parameter importance"
    return _drawn("importance", title, partial(figures.importance, *_shown(overview)))


def trials_section(overview: Overview) -> Section:
    """The best trials and how all trials ended."""
    if not overview.trials:
        return Section("trials", "Trials", [_note("There are no trials yet.")])
    return Section("trials", "Trials", [*_top_table(overview), _endings_table(overview)])


def specification_section(overview: Overview) -> Section:
    """What was searched, and what was held fixed."""
    blocks: list[Block] = []
    if not overview.specification:
        blocks.append(
            _note(
                "This study stores no specification, so it was not made by a visweep sweep; "
                "the space is read from its trials."
            )
        )
    blocks += _space_table(overview)
    settings = _settings(overview.identity)
    if settings:
        blocks.append(Folded("Data, model, training and search", [_settings_tables(settings)]))
    return Section("specification", "Specification", blocks)


def provenance_section(overview: Overview) -> Section:
    """Where and with which versions the study was made."""
    records = overview.provenance
    if not records:
        return Section("provenance", "Provenance", [_note("Nothing is recorded.")])
    return Section("provenance", "Provenance", [_settings_tables(_agreed(records))])


SECTIONS: tuple[Callable[[Overview], Section], ...] = (
    best_section,
    history_section,
    curves_section,
    parallel_section,
    slices_section,
    importance_section,
    trials_section,
    specification_section,
    provenance_section,
)
"""The report's sections, in order."""


def _note(words: str) -> Paragraph:
    return Paragraph(words, role="note")


def _shown(overview: Overview) -> tuple[Sequence[FrozenTrial], Measure]:
    return overview.trials, overview.measure


def _drawn(anchor: str, title: str, draw: Callable[[], Chart]) -> Section:
    """A section of one figure, or of the reason why there is none."""
    try:
        return Section(anchor, title, [Plot(draw())])
    except NothingToDraw as e:
        return Section(anchor, title, [_note(str(e))])


# Best configuration -----------------------------------------------------------------------------


def _command(overview: Overview, best: FrozenTrial) -> Block:
    if not overview.specification:
        return _note("Without a stored specification there is no command that trains it again.")
    command = ["visweep", "train", "--study", overview.name, "--trial", str(best.number)]
    folder = mapping(best.user_attrs, "provenance").get("data_dir")
    command += [*overview.where, *(["--data-dir", str(folder)] if folder else [])]
    return Command("Train it again:", shlex.join(command))


def _parameter_table(overview: Overview, compared: Sequence[FrozenTrial]) -> Table:
    names = [n for n in parameter_names(overview.trials) if n in compared[0].params]
    cells = [[_setting(trial, name) for trial in compared] for name in names]
    changed = frozenset(i for i, row in enumerate(cells) if len(set(row)) > 1)
    marks = [["changed" if i in changed else "same"] for i in range(len(names))]
    is_compared = len(compared) > 1
    return Table(
        "Parameters",
        ["parameter", *_headings(compared), *(["change"] if is_compared else [])],
        [
            [name, *row, *(mark if is_compared else [])]
            for name, row, mark in zip(names, cells, marks, strict=True)
        ],
        numeric=frozenset(range(1, 1 + len(compared))),
        marked=changed,
    )


def _setting(trial: FrozenTrial, name: str) -> str:
    return text.value(trial.params[name]) if name in trial.params else MISSING


def _headings(compared: Sequence[FrozenTrial]) -> list[str]:
    roles = ("best", "baseline")
    return [f"{role} (trial{GAP}{t.number})" for role, t in zip(roles, compared, strict=False)]


def _measured_table(overview: Overview, compared: Sequence[FrozenTrial]) -> list[Block]:
    rows = [[heading, *(cell(trial) for trial in compared)] for heading, cell in _cells(overview)]
    measured = [row for row in rows if any(value != MISSING for value in row[1:])]
    columns = ["measurement", *_headings(compared)]
    numeric = frozenset(range(1, len(columns)))
    return [Table("Measurements", columns, measured, numeric)] if measured else []


Cell = Callable[[FrozenTrial], str]


def _cells(overview: Overview) -> list[tuple[str, Cell]]:
    """What trials are measured by: a heading, and the trial's number as text."""
    measure = overview.measure

    def recorded(name: str, write: Callable[[float], str]) -> Cell:
        def cell(trial: FrozenTrial) -> str:
            value = attribute(trial, name)
            return MISSING if value is None else write(value)

        return cell

    return [
        (measure.name, lambda trial: _final(overview, trial)),
        ("per seed", _seed_range),
        ("validation loss", recorded("val_loss", lambda value: f"{value:.3f}")),
        ("training accuracy", recorded("train_accuracy", _percent)),
        (f"{measure.step}s run", lambda trial: str(epochs(trial)) if epochs(trial) else MISSING),
        ("time", recorded("seconds", duration)),
        ("model parameters", recorded("num_params", count)),
        ("images per second", recorded("images_per_second", text.rate)),
        ("peak memory", recorded("peak_memory_bytes", memory)),
    ]


def _final(overview: Overview, trial: FrozenTrial) -> str:
    value = shown_value(trial)
    if value is None:
        return MISSING
    shown = overview.measure.text(value)
    return shown if trial.state == TrialState.COMPLETE else f"{shown} when it was stopped"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}{GAP}%"


def _seed_range(trial: FrozenTrial) -> str:
    values = _per_seed(trial)
    if len(values) < 2:
        return MISSING
    return f"{_percent(min(values))} to {_percent(max(values))} over {len(values)} seeds"


# Trials -----------------------------------------------------------------------------------------


def _top_table(overview: Overview) -> list[Block]:
    best = ranked(overview.trials, overview.measure)[:TOP_TRIALS]
    if not best:
        return [_note("No trial has completed with a value.")]
    measured = [(heading, [cell(trial) for trial in best]) for heading, cell in _cells(overview)]
    known = [column for column in measured if set(column[1]) != {MISSING}]
    searched = [(name, [_setting(trial, name) for trial in best]) for name in overview.varied]
    columns = [known[0], *searched, *known[1:]]
    rows = [
        [f"{rank}. trial {trial.number}", *(column[rank - 1] for _, column in columns)]
        for rank, trial in enumerate(best, start=1)
    ]
    headings = ["rank", *(heading for heading, _ in columns)]
    caption = f"The best {len(best)} of the completed trials, by {overview.measure.name}"
    numeric = frozenset(range(1, len(headings)))
    return [Table(caption, headings, rows, numeric, marked=frozenset({0}))]


def _endings_table(overview: Overview) -> Table:
    trials: Counter[str] = Counter()
    ran: Counter[str] = Counter()
    for trial in overview.trials:
        ending = _ending(trial)
        trials[ending] += 1
        ran[ending] += epochs(trial)
    return Table(
        "How the trials ended",
        ["ending", "trials", f"{overview.measure.step}s run"],
        [[ending, f"{count:,}", f"{ran[ending]:,}"] for ending, count in trials.most_common()],
        numeric=frozenset({1, 2}),
    )


def _ending(trial: FrozenTrial) -> str:
    """Why the trial ended, without the epoch at which it did."""
    reason = trial.user_attrs.get("ended")
    if not trial.state.is_finished() or not isinstance(reason, str) or not reason:
        return figures.STATE_WORDS[trial.state]
    return re.sub(r" at epoch \d+$", "", reason)


# Specification ----------------------------------------------------------------------------------


def _space_table(overview: Overview) -> list[Block]:
    space = _space(overview)
    if not space:
        return [_note("No parameters are known.")]
    rows = [[name, *_distribution_cells(distribution)] for name, distribution in space.items()]
    return [Table("The space that was searched", ["parameter", "kind", "values"], rows)]


def _space(overview: Overview) -> Mapping[str, Any]:
    stored = mapping(overview.identity, "space")
    if stored:
        return {name: _read_distribution(written) for name, written in stored.items()}
    return {name: d for trial in overview.trials for name, d in trial.distributions.items()}


def _read_distribution(written: object) -> object:
    """The distribution, or what is stored in its place when it cannot be read."""
    try:
        return json_to_distribution(str(written))
    except (ValueError, KeyError, TypeError):
        return written


def _distribution_cells(distribution: object) -> list[str]:
    if isinstance(distribution, CategoricalDistribution):
        return ["choice", ", ".join(str(choice) for choice in distribution.choices)]
    if isinstance(distribution, IntDistribution | FloatDistribution):
        kind = "integer" if isinstance(distribution, IntDistribution) else "real"
        return [kind, f"{distribution.low:g} to {distribution.high:g}{_scale(distribution)}"]
    return [MISSING, _plain(distribution)]


def _scale(distribution: IntDistribution | FloatDistribution) -> str:
    if distribution.log:
        return ", on a logarithmic scale"
    is_plain = distribution.step is None or (
        isinstance(distribution, IntDistribution) and distribution.step == 1
    )
    return "" if is_plain else f", in steps of {distribution.step:g}"


def _settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the space; a field that is searched stands at the baseline's value."""
    searched = {name.partition(".")[0] for name in mapping(identity, "space")}

    def marked(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        return {
            name: f"{_plain(value)} (baseline; searched)" if name in searched else value
            for name, value in part.items()
        }

    return {name: marked(part) for name, part in identity.items() if name != "space"}


def _agreed(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All records as one: where they differ, each value with its number of trials."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: _agreed_value([r[name] for r in records if name in r]) for name in names}


def _agreed_value(values: Sequence[Any]) -> Any:
    if all(isinstance(value, Mapping) for value in values):
        return _agreed(values)
    counts = Counter(_plain(value) for value in values)
    if len(counts) == 1:
        return values[0]
    return "; ".join(f"{ending} ({plural(n, 'trial')})" for ending, n in counts.most_common())


def _settings_tables(settings: Mapping[str, Any]) -> Columns:
    """A table for each mapping, and one for all that stands alone."""
    alone = {name: value for name, value in settings.items() if not isinstance(value, Mapping)}
    tables = [
        _settings_table(name, part) for name, part in settings.items() if isinstance(part, Mapping)
    ]
    return Columns(tables + ([_settings_table("general", alone)] if alone else []))


def _settings_table(caption: str, settings: Mapping[str, Any]) -> Table:
    rows = [[str(name), _plain(value)] for name, value in settings.items()]
    return Table(caption.replace("_", " ").capitalize(), ["setting", "value"], rows)


def _plain(value: object) -> str:
    """A stored value in full: a specification is not rounded."""
    if value is None:
        return MISSING
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return ", ".join(str(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
