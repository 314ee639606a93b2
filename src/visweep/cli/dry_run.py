"""What a sweep would search and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.table import Table

from visweep import text
from visweep.cli.prepare import Prepared
from visweep.config import with_parameters
from visweep.data.resident import to_device
from visweep.search.spaces import corners
from visweep.storage.specification import Specification
from visweep.training.cost import measure, multiply_adds


def print_dry_run(console: Console, prepared: Prepared) -> None:
    """Print the specification and the cost of the smallest, middle and largest model."""
    specification, asked = prepared.specification, prepared.asked
    data = to_device(prepared.dataset, prepared.device, specification.train.translate)
    for line in (f"study {prepared.name}, {asked.trials} trials", *_lines(specification)):
        text.print_line(console, line)
    points = sorted(
        corners(specification.space, middle=True),
        key=lambda p: multiply_adds(
            with_parameters(specification.model, specification.train, p)[0]
        ),
    )
    # What is only slow the first time is no part of any trial's cost.
    measure(*with_parameters(specification.model, specification.train, points[0]), data)
    table = Table(title=f"cost of one trial on {prepared.device}", title_justify="left")
    for heading in ("model", "params", "multiply-adds", "per epoch", "unpruned trial"):
        table.add_column(heading, justify="right" if heading != "model" else "left")
    for size, point in zip(
        ("smallest", "middle", "largest"),
        (points[0], points[len(points) // 2], points[-1]),
        strict=True,
    ):
        model, train = with_parameters(specification.model, specification.train, point)
        cost = measure(model, train, data)
        table.add_row(
            f"{size}: {text.parameters(point)}",
            text.count(cost.num_params),
            text.count(cost.multiply_adds),
            text.duration(cost.seconds_per_epoch),
            text.duration(cost.seconds_per_epoch * train.epochs),
        )
    console.print(table)
    console.print("Times were measured on a few steps of models that were thrown away.")


def _lines(specification: Specification) -> Iterator[str]:
    """The specification, one part a line."""
    yield "space"
    for name, distribution in specification.space.items():
        yield f"  {name:<12} {distribution}"
    for part, settings in specification.identity().items():
        if part == "space":
            continue
        if not isinstance(settings, Mapping):
            yield f"{part:<8} {settings}"
            continue
        given = {name: value for name, value in settings.items() if value is not None}
        yield f"{part:<8} {text.parameters(given)}"
