"""What shifted images do to the trained models that were asked about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from visweep.analysis.document import Block, Plot, Section, Table, note
from visweep.analysis.figures.shift import shift_chart
from visweep.analysis.overview import Overview
from visweep.analysis.sections.cells import MISSING
from visweep.analysis.sheet import Value, sheet_of
from visweep.analysis.shifted import HOW_EQUIVARIANT, Shifted, read_shifted


def shift_section(overview: Overview) -> Section | None:
    """Accuracy against shift, and the equivariance error of each layer; nothing where no trial was
    measured."""
    found = read_shifted(overview.trials)
    if not found:
        return None
    blocks: list[Block] = [Plot(shift_chart(found, overview.measure)), _pooled(found)]
    if any(model.layers for model in found):
        blocks.append(_layers(found))
    return Section("shift", "Shift robustness", [*blocks, note(HOW_EQUIVARIANT)])


def _pooled(found: Sequence[Shifted]) -> Table:
    distances = found[0].pixels
    return Table(
        "Error after pooling, by shift in pixels",
        ["model", *map(str, distances)],
        [[model.name, *_errors(model, distances)] for model in found],
        numeric=frozenset(range(1, 1 + len(distances))),
        sheet=sheet_of([record for model in found for record in _records(model)]),
    )


def _records(model: Shifted) -> Iterator[dict[str, Value]]:
    measured = zip(model.pixels, model.accuracy, model.invariance, strict=True)
    for distance, accuracy, error in measured:
        yield {
            "model": model.name,
            "trial": model.trial,
            "shift_pixels": distance,
            "val_accuracy": accuracy,
            "error_after_pooling": error,
        }


def _errors(model: Shifted, distances: Sequence[int]) -> Iterator[str]:
    errors = dict(zip(model.pixels, model.invariance, strict=True))
    for distance in distances:
        yield f"{errors[distance]:.2f}" if distance in errors else MISSING


def _layers(found: Sequence[Shifted]) -> Table:
    rows = [
        [
            model.name,
            layer.name,
            str(layer.stride),
            f"{layer.error:.2f}",
            MISSING if layer.far_error is None else f"{layer.far_error:.2f}",
        ]
        for model in found
        for layer in model.layers
    ]
    return Table(
        "Equivariance error of each layer",
        ["model", "layer", "stride in pixels", "shifted by its stride", "shifted by 8 pixels"],
        rows,
        numeric=frozenset(range(2, 5)),
        sheet=sheet_of(
            [
                {
                    "model": model.name,
                    "trial": model.trial,
                    "layer": layer.name,
                    "stride_pixels": layer.stride,
                    "error_shifted_by_stride": layer.error,
                    "error_shifted_by_8_pixels": layer.far_error,
                }
                for model in found
                for layer in model.layers
            ]
        ),
    )
