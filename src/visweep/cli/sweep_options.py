"""The options that sweep scripts alone have; those that other commands share are in `options`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from visweep.cli.options import SEARCH

Trials = Annotated[
    int,
    typer.Option(
        "--trials",
        metavar="N",
        min=1,
        rich_help_panel=SEARCH,
        help="How many trials the study has in all, those already finished included, such as 200.",
    ),
]
Study = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="NAME",
        rich_help_panel=SEARCH,
        help="Name of the study to create or resume, such as night-run. "
        "[default: made of the model, data set and space]",
    ),
]
Seeds = Annotated[
    int,
    typer.Option(
        "--seeds",
        metavar="K",
        min=1,
        rich_help_panel=SEARCH,
        help="Replicas of each trial; their mean accuracy counts, such as 3.",
    ),
]
Sampler = Annotated[
    str,
    typer.Option(
        "--sampler",
        metavar="NAME",
        rich_help_panel=SEARCH,
        help="tpe, random, gp, cmaes or qmc, such as random. cmaes runs code that it finds in the "
        "storage, so it takes local files only.",
    ),
]
Pruner = Annotated[
    str,
    typer.Option(
        "--pruner",
        metavar="NAME",
        rich_help_panel=SEARCH,
        help="halving, hyperband, median or none, such as none.",
    ),
]
Duplicates = Annotated[
    str,
    typer.Option(
        "--duplicates",
        metavar="WHAT",
        rich_help_panel=SEARCH,
        help="What becomes of a configuration that is proposed again: replicate trains it with "
        "new seeds, run with the same seeds, and skip asks for another one, such as skip.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        metavar="S",
        min=0,
        rich_help_panel=SEARCH,
        help="Seed of the study, such as 7.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show what would be searched and what it would cost; train nothing.",
    ),
]


def space(names: Iterable[str]) -> Any:
    """The option that chooses one of a recipe's spaces."""
    return typer.Option(
        "--space",
        metavar="NAME",
        rich_help_panel=SEARCH,
        help=f"What to search: {' or '.join(names)}, such as report.",
    )
