"""Make the README's pictures from a real study.

    python docs/make_pictures.py vit-cluttered-digits-small [--storage URL]

Writes docs/live-view.svg as the terminal showed it at two thirds of the study. The report's
picture is a browser's screenshot of the page that `visweep report` wrote:

    chromium --headless --hide-scrollbars --window-size=1280,1700 --screenshot=docs/report.png \\
        vit-cluttered-digits-small.html
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from visweep.cli.studies import opened
from visweep.search.live import LiveView
from visweep.search.watch import Progress, TrialView

HERE = Path(__file__).parent


def view(trial: FrozenTrial, epochs: int, upto: int | None = None) -> TrialView:
    """A trial as the live view showed it, after `upto` epochs or at its end."""
    curve = tuple(trial.intermediate_values[e] for e in sorted(trial.intermediate_values))
    if upto is not None:
        return TrialView(trial.number, trial.params, epochs, curve[:upto])
    ended = trial.user_attrs.get("ended", "")
    return TrialView(trial.number, trial.params, epochs, curve, trial.state.name.lower(), ended)


def progress(trials: list[FrozenTrial], budget: int) -> Progress:
    """How far the study was when exactly these trials had ended."""
    best = max(trials, key=lambda t: t.value or 0.0)
    return Progress(
        budget=budget,
        running=2,
        complete=sum(t.state == TrialState.COMPLETE for t in trials),
        pruned=sum(t.state == TrialState.PRUNED for t in trials),
        best=(best.number, best.value or 0.0, best.params),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    parser.add_argument("--storage")
    options = parser.parse_args()
    console = Console(record=True, width=116, file=io.StringIO())
    with opened(options.storage, options.study) as (study, _):
        trials = [t for t in study.trials if t.state.is_finished()]
        epochs = max(len(t.intermediate_values) for t in trials)
        shown = trials[: 2 * len(trials) // 3]
        live = LiveView(console)
        live._name = options.study
        ended, running = shown[:-2], shown[-2:]
        live._pace.start(progress(ended, len(study.trials)))
        for trial in ended:
            live.ended(view(trial, epochs), progress(ended, len(study.trials)))
        for trial in running:
            upto = max(1, len(trial.intermediate_values) - 1)
            live.advanced(view(trial, epochs, upto=upto))
        console.print(live.render())
    console.save_svg(str(HERE / "live-view.svg"), title="python sweeps/vit_search.py")


if __name__ == "__main__":
    main()
