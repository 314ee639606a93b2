"""The sections that are figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from optuna.trial import FrozenTrial

from visweep.analysis.document import Plot, PlotGrid, Section, note
from visweep.analysis.figures.chart import Chart, NothingToDraw
from visweep.analysis.figures.curves import learning_curves
from visweep.analysis.figures.history import history
from visweep.analysis.figures.marks import Singled, first_runs
from visweep.analysis.figures.parallel import parallel_coordinates
from visweep.analysis.figures.slices import slices
from visweep.analysis.figures.train_curves import train_curves
from visweep.analysis.measure import Measure
from visweep.analysis.overview import Overview, mapping

_TWO_TRANSFORMS = (
    "Training accuracy can look lower than validation accuracy merely because it is measured "
    "while the training images are moved at random (the dotted line), which makes them harder "
    "than validation images, which are not. Measured on images as they are (the dashed line), it "
    "compares with validation accuracy, and only the gap between these two tells of overfitting."
)


def history_section(overview: Overview) -> Section:
    """The objective by trial number."""
    chart = partial(history, *_shown(overview), overview.baseline)
    return _drawn("history", "History", chart)


def curves_section(overview: Overview) -> Section:
    """The learning curves, and where it was measured training accuracy beside them."""
    shown = (*_shown(overview), overview.baseline, _singled(overview))
    chart = partial(learning_curves, *shown)
    section = _drawn("curves", "Learning curves", chart)
    try:
        training = train_curves(*shown)
    except NothingToDraw:
        return section
    return replace(section, blocks=[*section.blocks, Plot(training), note(_TWO_TRANSFORMS)])


def _singled(overview: Overview) -> Singled | None:
    """What stands out in a study of arms: a run of each baseline, if it has changes."""
    if not overview.compares_arms:
        return None
    arms = mapping(overview.identity, "arms")
    baselines = [name for name in arms if mapping(arms, name).get("against") is None]
    return first_runs(overview.trials, baselines) if len(baselines) < len(arms) else []


def parallel_section(overview: Overview) -> Section:
    """All parameters of all trials in one picture."""
    chart = partial(parallel_coordinates, *_shown(overview), overview.baseline)
    return _drawn("parallel", "Parallel coordinates", chart)


def slices_section(overview: Overview) -> Section:
    """The objective against one parameter at a time."""
    try:
        charts = slices(overview.trials, overview.measure, overview.baseline)
    except NothingToDraw as e:
        return Section("slices", "Slices", [note(str(e))])
    diamond = "" if overview.baseline in (None, overview.best) else ", the diamond the baseline"
    caption = (
        f"{overview.measure.name.capitalize()} of each trial against one parameter at a time. "
        "Circles completed; crosses were pruned and stand at the last value that they reported; "
        f"the star is the best trial{diamond}. The other parameters differ from point to point, "
        "so a slice does not show the effect of one parameter alone."
    )
    return Section("slices", "Slices", [PlotGrid(charts, caption)])


def _shown(overview: Overview) -> tuple[Sequence[FrozenTrial], Measure]:
    return overview.trials, overview.measure


def _drawn(anchor: str, title: str, draw: Callable[[], Chart]) -> Section:
    """A section of one figure, or of the reason why there is none."""
    try:
        return Section(anchor, title, [Plot(draw())])
    except NothingToDraw as e:
        return Section(anchor, title, [note(str(e))])
