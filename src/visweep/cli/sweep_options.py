"""The options that sweep scripts alone have; those that other commands share are in `options`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Any

import typer

from visweep.cli.options import SEARCH
from visweep.errors import UsageError
from visweep.storage.limits import Limits

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
MaxParams = Annotated[
    str | None,
    typer.Option(
        "--max-params",
        metavar="N",
        rich_help_panel=SEARCH,
        help="Propose no model of more parameters, such as 500k or 2M. [default: no limit]",
    ),
]
MaxFlops = Annotated[
    str | None,
    typer.Option(
        "--max-flops",
        metavar="N",
        rich_help_panel=SEARCH,
        help="Propose no model that takes more floating-point operations for one image, forward "
        "(two a multiply-add of its matrix products and convolutions), such as 50M. "
        "[default: no limit]",
    ),
]
MaxEpochSeconds = Annotated[
    float | None,
    typer.Option(
        "--max-epoch-seconds",
        metavar="S",
        rich_help_panel=SEARCH,
        help="Propose nothing that would take longer for an epoch, as estimated by the machine "
        "that begins the study, such as 30. [default: no limit]",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show what would be searched and what it would cost; train nothing.",
    ),
]

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)([kKMG]?)")
_THOUSANDS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}


def limits(
    max_params: str | None, max_flops: str | None, max_epoch_seconds: float | None
) -> Limits:
    """What the options say that no trial may exceed.

    Raises:
        UsageError: one of them is no such number.
    """
    if max_epoch_seconds is not None and not 0 < max_epoch_seconds < float("inf"):
        raise UsageError(
            f"--max-epoch-seconds: {max_epoch_seconds} is not accepted; accepted: any number "
            "above 0"
        )
    return Limits(
        max_params=_amount("--max-params", max_params),
        max_flops=_amount("--max-flops", max_flops),
        max_epoch_seconds=max_epoch_seconds,
    )


def _amount(option: str, given: str | None) -> int | None:
    if given is None:
        return None
    found = _AMOUNT.fullmatch(given)
    amount = Decimal(found[1]) * _THOUSANDS[found[2]] if found else Decimal(0)
    if amount < 1 or amount != int(amount):
        raise UsageError(
            f"{option}: {given!r} is not accepted; accepted: whole numbers such as 500k, 2M, 2e6"
        )
    return int(amount)


def space(names: Iterable[str]) -> Any:
    """The option that chooses one of a recipe's spaces."""
    return typer.Option(
        "--space",
        metavar="NAME",
        rich_help_panel=SEARCH,
        help=f"What to search: {' or '.join(names)}, such as report.",
    )
