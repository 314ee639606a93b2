"""Which parameters mattered: two methods side by side, with what they can and cannot tell."""

from __future__ import annotations

import re

from visweep import text
from visweep.analysis.axes import parameter_axes
from visweep.analysis.document import Block, Paragraph, Plot, Section, Table, note
from visweep.analysis.figures.importance import FANOVA, PED_ANOVA, importance, share_text
from visweep.analysis.importance import (
    MOST_PAIRED,
    SHUFFLES,
    Compared,
    Importances,
    Shares,
    at_common_epoch,
    at_the_end,
    completed_only,
    importances,
    order_kept,
    ped_anova,
)
from visweep.analysis.measure import GAP, plural
from visweep.analysis.overview import Overview
from visweep.analysis.sections.cells import MISSING
from visweep.analysis.sheet import sheet_of


def importance_section(overview: Overview) -> Section:
    """Which parameters mattered, with pruned trials counted."""
    return Section("importance", "Parameter importance", _blocks(overview))


def _blocks(overview: Overview) -> list[Block]:
    trials, measure = overview.trials, overview.measure
    if not parameter_axes(trials):
        return [note("No parameter has more than one value: none can be important.")]
    compared = at_common_epoch(trials, measure)
    if compared.lacking:
        return [note(compared.lacking)]
    found = importances(compared)
    alone = completed_only(trials, measure)
    is_selected = len(alone.trials) < len(compared.trials)
    completed = importances(alone, deals=0) if is_selected and not alone.lacking else None
    ends = at_the_end(trials, measure) if is_selected else alone
    end = ped_anova(ends) if is_selected and not ends.lacking else None
    words = [_agreement(found), _chance(found, compared)]
    if is_selected:
        words += [_rung(overview, compared), _selection(found, completed, alone)]
    return [
        Plot(importance(found, _caption(overview, compared, found, completed), completed)),
        *(Paragraph(each) for each in words if each),
        _table(overview, compared, found, completed, end),
    ]


def _caption(
    overview: Overview, compared: Compared, found: Importances, completed: Importances | None
) -> str:
    step, total = overview.measure.step, len(compared.trials)
    when = (
        "their final values"
        if compared.epoch is None
        else f"what each had reached after {step} {compared.epoch}, the last that all of them "
        "came to: nothing had been pruned by then"
    )
    how = "two of Optuna's evaluators on the same" if found.fanova else "one of Optuna's, on"
    asked = f"{PED_ANOVA} asks which parameters' values tell the best {compared.top} from all"
    if found.fanova:
        asked += (
            f"; {FANOVA}, which share of the variance over the whole space is due to each "
            "parameter alone"
        )
    parts = [
        f"Method: {how} {total:,} finished trials, by {when}.",
        f"{asked}. Shares add up to 100 %. They say neither which value is good nor how much it "
        "is worth.",
        *_unread(found),
    ]
    if compared.worst:
        verb = "counts" if compared.worst == 1 else "count"
        parts.append(
            f"{plural(compared.worst, 'trial')} without a value there {verb} as the worst."
        )
    if compared.absent:
        parts.append(
            f"Left out, since nothing is known of it: {plural(compared.absent, 'trial')}."
        )
    if found.fanova and found.read < total:
        parts.append(f"{FANOVA} read {found.read} of the trials, evenly chosen.")
    if completed is not None:
        parts.append(
            "Paler: the same of the completed trials alone, by their final values, which is what "
            "Optuna counts."
        )
    return " ".join(parts)


def _unread(found: Importances) -> list[str]:
    """What fANOVA cannot read."""
    reads = f"{FANOVA} reads only parameters that every trial has, over one range"
    if not found.fanova:
        return [f"{reads}: there are fewer than two, so that it says nothing here."]
    return [f"{reads}: it leaves out {text.listing(found.unread)}."] if found.unread else []


def _agreement(found: Importances) -> str:
    """How far the methods agree, where both say something of every parameter."""
    if not found.fanova or found.unread:
        return ""
    alike, pairs = found.ordered_alike
    first, other = next(iter(found.ped_anova)), next(iter(found.fanova))
    top = (
        f"both put {first} first"
        if first == other
        else f"{PED_ANOVA} puts {first} first and {FANOVA} {other}, which need not be a "
        "contradiction: what makes the best trials is not what makes the bad ones"
    )
    return (
        f"The two methods put {share_text(found.overlap)} of the importance on the same "
        f"parameters, and order {alike} of {plural(pairs, 'pair')} of parameters alike; {top}."
    )


def _chance(found: Importances, compared: Compared) -> str:
    clear = [name for name in found.ped_anova if name in found.clear]
    rest = [name for name in found.ped_anova if name not in found.clear]
    dealt = (
        f"chance (the values dealt out anew among the trials {SHUFFLES} times; at 0.05 for all "
        "parameters together)"
    )
    if not clear:
        said = (
            f"Too few trials for {PED_ANOVA}: among the best {compared.top} no parameter stands "
            f"out beyond {dealt}."
        )
    else:
        verb = "exceeds" if len(clear) == 1 else "exceed"
        said = f"By {PED_ANOVA}, {text.listing(clear)} {verb} what {dealt} gives"
        said += f"; {text.listing(rest)} may have come by chance." if rest else "."
    if clear or found.explained is None or found.explained > 0:
        return f"{said} {_explained(found)}".strip()
    nothing = (
        f"These {plural(len(compared.trials), 'trial')} do not show that any parameter matters."
    )
    return f"{said} {_explained(found)} {nothing}"


def _explained(found: Importances) -> str:
    if found.explained is None:
        return ""
    if found.explained <= 0:
        return (
            f"The model behind {FANOVA} predicts trials that it has not seen no better than their "
            "mean does: its shares mean nothing here, and it takes more trials."
        )
    return (
        f"The model behind {FANOVA} predicts {share_text(found.explained)} of the variance of "
        "trials that it has not seen; the shares are only as good as that."
    )


def _rung(overview: Overview, compared: Compared) -> str:
    if compared.epoch is None:
        return "No pruned trial reported a value, so all of them count as the worst."
    step = overview.measure.step
    kept = order_kept(overview.trials, overview.measure, compared.epoch)
    early = (
        f"{step.capitalize()} {compared.epoch} is early, and what matters then may not at the end"
    )
    if kept is None:
        return f"{early}; too few trials completed to tell."
    completed = len(completed_only(overview.trials, overview.measure).trials)
    some = f"{MOST_PAIRED} evenly chosen " if completed > MOST_PAIRED else ""
    return (
        f"{early}: {share_text(kept)} of the pairs of {some}completed trials ended in "
        f"the order in which they stood after it, where 50{GAP}% would be chance. Completed "
        "trials are much alike, having been chosen; among all it would be more."
    )


def _selection(found: Importances, completed: Importances | None, alone: Compared) -> str:
    total = len(alone.trials)
    if completed is None:
        return (
            f"The {plural(total, 'completed trial')} alone would be too few, and are a selection "
            "by what is asked about."
        )
    same = sum(min(s, completed.ped_anova.get(n, 0.0)) for n, s in found.ped_anova.items())
    return (
        f"The {plural(total, 'completed trial')} alone are a selection by what is asked about: a "
        "parameter whose bad values are always pruned hardly varies among them. By "
        f"{PED_ANOVA} they put {share_text(same)} of the importance where all trials put it."
    )


def _table(
    overview: Overview,
    compared: Compared,
    found: Importances,
    completed: Importances | None,
    end: Shares | None,
) -> Table:
    step = overview.measure.step
    when = "at the end" if compared.epoch is None else f"{step} {compared.epoch}"
    columns = [(f"{m}, {when}", s) for m, s in _methods(found)]
    if end is not None:
        columns.append((f"{PED_ANOVA}, end", end))
    if completed is not None:
        columns += [(f"{m}, completed", s) for m, s in _methods(completed)]
    rows = [
        [
            name,
            *(share_text(shares[name]) if name in shares else MISSING for _, shares in columns),
            "yes" if name in found.clear else "no",
        ]
        for name in found.names
    ]
    headings = ["parameter", *(heading for heading, _ in columns), "beyond chance"]
    return Table(
        _heading(when, has_end=end is not None, has_completed=completed is not None),
        headings,
        rows,
        numeric=frozenset(range(1, len(columns) + 1)),
        sheet=sheet_of(
            [
                {
                    "parameter": name,
                    **{_column(heading): shares.get(name) for heading, shares in columns},
                    "beyond_chance": name in found.clear,
                }
                for name in found.names
            ]
        ),
    )


def _column(heading: str) -> str:
    """What the share of a method is called among columns: `ped_anova_epoch_1`."""
    return re.sub(r"\W+", "_", heading.lower())


def _heading(when: str, *, has_end: bool, has_completed: bool) -> str:
    counted = [f"all trials {when}" if when == "at the end" else f"all trials after {when}"]
    if has_end:
        counted.append("all at the end, the pruned ones below the others")
    if has_completed:
        counted.append("completed ones only")
    return f"Shares of the importance: {text.listing(counted)}"


def _methods(found: Importances) -> list[tuple[str, Shares]]:
    both = ((PED_ANOVA, found.ped_anova), (FANOVA, found.fanova))
    return [(method, shares) for method, shares in both if shares]
