"""The command `visweep`: look at studies, train a configuration again, tidy up."""

import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from visweep import text
from visweep.cli import comparing, moving, reporting, taking
from visweep.cli import options as opt
from visweep.cli import train_options as own
from visweep.cli.workers import workers_table
from visweep.storage.overview import StudyOverview, overview
from visweep.training.results import TRAINER_VERSION

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Hyperparameter sweeps for image classifiers, on one shared GPU trainer. "
    "Searches are started by the scripts in sweeps/.",
)


@app.command()
def status(
    study: Annotated[
        str | None, typer.Argument(metavar="STUDY", help="Show this study only.")
    ] = None,
    storage: opt.Storage = None,
) -> None:
    """Show the studies, their budgets, states and best trials."""
    found = [] if opt.is_fresh(storage) else overview(opt.storage_url(storage))
    if study is not None:
        names = [s.name for s in found]
        if study not in names:
            from visweep.errors import unknown_name

            raise unknown_name("STUDY", study, names)
        found = [s for s in found if s.name == study]
    console = opt.console()
    if not found:
        console.print("no studies yet; begin one with: python sweeps/vit_search.py --trials 50")
        return
    table = Table(header_style="bold", box=SIMPLE)
    table.add_column("study", overflow="fold")
    rows = [_cells(s) for s in found]
    for heading in rows[0]:
        # Rarely anything stands there, and terminals are narrow.
        if heading != "interrupted" or any(row[heading] != "0" for row in rows):
            table.add_column(heading, justify="right", no_wrap=True)
    for each, row in zip(found, rows, strict=True):
        table.add_row(each.name, *(row[str(column.header)] for column in table.columns[1:]))
    console.print(table)
    if any(study.workers for study in found):
        console.print(workers_table(found))
    for line in _of_other_trainers(found):
        text.print_line(console, line)


def _of_other_trainers(studies: list[StudyOverview]) -> Iterator[str]:
    """What will differ where a study is gone on with, one line a study."""
    for study in studies:
        unfinished = study.budget is not None and 0 < study.finished < study.budget
        if unfinished and study.trainer not in (None, TRAINER_VERSION):
            yield (
                f"{study.name} was begun by trainer version {study.trainer}, and this is "
                f"{TRAINER_VERSION}, which draws otherwise: the same seeds give other numbers"
            )


def _cells(study: StudyOverview) -> dict[str, str]:
    count = study.states.get
    done = study.finished
    # A budget that was lowered afterwards takes no finished trial away.
    budget = None if study.budget is None else max(study.budget, done)
    return {
        "finished": str(done) if budget is None else f"{done} of {budget}",
        "pruned": str(count("PRUNED", 0)),
        "running": str(count("RUNNING", 0) - study.interrupted),
        "interrupted": str(study.interrupted),
        "waiting": str(count("WAITING", 0)),
        "failed": str(count("FAIL", 0)),
        "best": f"{text.percent(study.best[1])} (#{study.best[0]})" if study.best else "—",
    }


reporting.register(app)


@app.command()
def trials(
    study: opt.Study,
    csv: Annotated[bool, typer.Option("--csv", help="As comma-separated values.")] = False,
    storage: opt.Storage = None,
) -> None:
    """List all trials of a study: the finished ones best first, then the others."""
    from visweep.analysis.comma_separated import to_csv
    from visweep.analysis.trial_rows import trials_sheet
    from visweep.cli.studies import interrupted, opened
    from visweep.search.summary import finished, trial_table
    from visweep.storage.tables import FINISHED

    with opened(storage, study) as (loaded, opened_storage):
        found = loaded.get_trials(deepcopy=False)
        if csv:
            sys.stdout.write(to_csv(trials_sheet(found)))
            return
        others = [t for t in found if t.state not in FINISHED]
        table = trial_table(
            [*finished(found), *others],
            f"trials of {study}",
            interrupted=interrupted(loaded, opened_storage),
        )
        opt.console().print(table)


@app.command()
def resume(
    study: opt.Study,
    storage: opt.Storage = None,
    artifacts: opt.Artifacts = None,
    data_dir: opt.DataDir = None,
    device: opt.Device = "auto",
    workers: opt.Workers = "auto",
    pack: opt.Pack = 1,
    timeout: opt.Timeout = None,
) -> int:
    """Go on with a study, as the command that began it would; to extend it, run that command."""
    from visweep.cli.join import local_of
    from visweep.cli.join import resume as go_on

    local = local_of(storage, artifacts, data_dir, device, workers, pack, timeout)
    return go_on(opt.console(), study, local)


@app.command()
def worker(
    study: Annotated[
        str | None,
        typer.Option(
            "--study",
            metavar="NAME",
            help="Which study to help with, such as night-run. [default: the only unfinished one]",
        ),
    ] = None,
    storage: opt.Storage = None,
    artifacts: opt.Artifacts = None,
    data_dir: opt.DataDir = None,
    device: opt.Device = "auto",
    workers: opt.Workers = "auto",
    pack: opt.Pack = 1,
    timeout: opt.Timeout = None,
) -> int:
    """Help with a study, from this or from another machine; what to train, the study says."""
    from visweep.cli.join import local_of, work

    local = local_of(storage, artifacts, data_dir, device, workers, pack, timeout)
    return work(opt.console(), study, local)


@app.command()
def stop(study: opt.Study, storage: opt.Storage = None) -> None:
    """Ask a running search to stop after its current epoch; run it again to go on."""
    from visweep.cli.studies import opened, stop_study

    with opened(storage, study, to_change=True) as (loaded, opened_storage):
        typer.echo(stop_study(loaded, opened_storage))


@app.command()
def delete(
    study: opt.Study,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Although a worker on another machine, which may be gone, holds it."
        ),
    ] = False,
    storage: opt.Storage = None,
    artifacts: opt.Artifacts = None,
) -> None:
    """Delete a study, its trials and its checkpoints. Asks first."""
    from visweep.cli.studies import delete_study, made_of_it, opened, require_idle

    with opened(storage, study, to_change=True) as (loaded, opened_storage):
        require_idle(loaded, opened_storage, elsewhere_too=not force)
        count = len(loaded.get_trials(deepcopy=False))
        question = f"Delete {study!r} with its {count} trials for good?"
        if not yes and not typer.confirm(question):
            typer.echo("nothing was deleted")
            return
        remaining = made_of_it(loaded)
        delete_study(loaded, opened_storage, opt.artifacts_place(artifacts))
    typer.echo(f"deleted {study}")
    if remaining:
        typer.echo(f"what was made of it is still there: {text.listing(remaining)}")


@app.command()
def train(
    study: own.Study = None,
    trial: own.Trial = None,
    model: own.Model = "vit",
    set_: own.Set = None,
    seed: own.Seed = None,
    epochs: own.Epochs = None,
    dataset: own.Dataset = None,
    data_dir: opt.DataDir = None,
    image_size: opt.ImageSize = None,
    train_size: opt.TrainSize = None,
    device: opt.Device = "auto",
    checkpoint: own.Checkpoint = None,
    train_curves: own.TrainCurves = None,
    storage: opt.Storage = None,
) -> None:
    """Train one configuration again: a study's best, one of its trials, or one spelled out."""
    from visweep.cli.train import Wanted, train_once

    train_once(
        opt.console(),
        Wanted(
            study=study,
            trial=trial,
            model=model,
            changes=tuple(set_ or ()),
            seed=seed,
            epochs=epochs,
            dataset=dataset,
            data_dir=data_dir,
            image_size=image_size,
            train_size=train_size,
            device=device,
            checkpoint=checkpoint,
            train_curves=train_curves,
            storage=storage,
        ),
    )


comparing.register(app)
taking.register(app)
moving.register(app)
