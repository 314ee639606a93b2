"""What a sweep would search and cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from rich.console import Console
from rich.table import Table

from visweep import text
from visweep.cli.prepare import Prepared
from visweep.config import ModelConfig, TrainConfig, completed
from visweep.data.dataset import Dataset
from visweep.data.resident import ResidentData, to_device
from visweep.errors import OutOfMemory, UsageError, VisweepError
from visweep.search.probing import calibration
from visweep.search.spaces import corners
from visweep.search.threads import usual_threads
from visweep.storage.overview import overview
from visweep.storage.specification import Specification
from visweep.training.cost import seconds_per_epoch
from visweep.training.counts import flops, num_params
from visweep.training.estimate import Images, estimate

_INCLUDED = {
    "cpu": " which has trained many others, torch and the images included, most of which several "
    "processes share",
    "cuda": " on the GPU, with images of its own, and besides what torch itself takes there",
}
_UNTOLD = ("kind", "fingerprint")
_TOLD_APART = ("space", "arms")


def print_dry_run(console: Console, prepared: Prepared) -> None:
    """Print the specification and the cost of the smallest, middle and largest model."""
    specification, asked = prepared.specification, prepared.asked
    done = _finished(asked.storage, prepared.name)
    left = max(0, asked.trials - done)
    device = torch.device(prepared.device)
    data = to_device(prepared.dataset, device, specification.most_translation)
    for line in (
        _extent(prepared.name, asked.trials, done, left),
        _images(prepared.dataset),
        *_lines(specification),
    ):
        text.print_line(console, line)
    if specification.arms:
        _print_arms(console, prepared, data, left)
        return
    _print_sizes(console, prepared, data, left)
    text.print_line(
        console,
        "Times were measured on a few steps and evaluations of models that were thrown away. "
        f"Memory is the most that a process holds{_INCLUDED[device.type]}; it is estimated from "
        "smaller models.",
    )


def _print_sizes(console: Console, prepared: Prepared, data: ResidentData, left: int) -> None:
    """The cost of the smallest, middle and largest model, and of trials like the middle one."""
    specification = prepared.specification
    points = sorted(
        corners(specification.space, middle=True),
        key=lambda p: flops(specification.configurations(p)[0]),
    )
    # What is only slow the first time is no part of any trial's cost.
    _seconds(*specification.configurations(points[0]), data)
    table = Table(title=f"cost of one trial on {prepared.device}", title_justify="left")
    memory = _memory(prepared, partial(text.print_line, console))
    for heading in ("model", "params", "FLOPs", "memory", "per epoch", "unpruned trial"):
        table.add_column(heading, justify="right" if heading != "model" else "left")
    total = None
    for size, index in (("smallest", 0), ("middle", len(points) // 2), ("largest", -1)):
        model, train = specification.configurations(points[index])
        seconds = _seconds(model, train, data)
        if size == "middle" and seconds is not None:
            total = left * seconds * train.epochs
        table.add_row(
            f"{size}: {text.parameters(points[index])}",
            text.count(num_params(model)),
            text.count(flops(model)),
            memory(model, train),
            *_durations(seconds, train.epochs),
        )
    console.print(table)
    if total:
        text.print_line(
            console,
            f"{text.plural(left, 'trial')} like the middle one, none of them pruned: "
            f"{text.duration(total)} of one process's time.",
        )


def _print_arms(console: Console, prepared: Prepared, data: ResidentData, left: int) -> None:
    """The cost of each arm, and of what is left of all."""
    arms = prepared.specification.taking_part(prepared.renewed)
    # What is only slow the first time is no part of any trial's cost.
    first = next(iter(arms.values()))
    _seconds(first.model, first.train, data)
    table = Table(title=f"cost of one trial on {prepared.device}", title_justify="left")
    for heading in ("arm", "params", "FLOPs", "per epoch", "trial"):
        table.add_column(heading, justify="right" if heading != "arm" else "left")
    known = []
    for name, arm in arms.items():
        seconds = _seconds(arm.model, arm.train, data)
        if seconds is not None:
            known.append(seconds * arm.train.epochs)
        size, work = num_params(arm.model), flops(arm.model)
        told = _durations(seconds, arm.train.epochs)
        table.add_row(name, text.count(size), text.count(work), *told)
    console.print(table)
    if known:
        total = text.duration(left * sum(known) / len(known))
        text.print_line(
            console,
            f"{text.plural(left, 'trial')}: about {total} of one process's time, measured on a "
            "few steps and evaluations of models that were thrown away.",
        )


def _finished(storage: str, name: str) -> int:
    """How many trials the study has finished; none where it is yet to be created."""
    try:
        studies = overview(storage)
    except UsageError:  # there is no storage yet
        return 0
    return sum(s.finished for s in studies if s.name == name and s.budget is not None)


def _extent(name: str, trials: int, done: int, left: int) -> str:
    """`study night-run, 8 trials`, of which some are done."""
    so_far = f", {done} of them finished: {left} left" if done else ""
    if done > trials:
        so_far = f", and has {done} finished: none left"
    return f"study {name}, {text.plural(trials, 'trial')}{so_far}"


def _memory(
    prepared: Prepared, tell: Callable[[str], object]
) -> Callable[[ModelConfig, TrainConfig], str]:
    """Tells what the process of a trial will hold at most, by this machine's calibration."""
    specification, device = prepared.specification, prepared.device
    try:
        threads = usual_threads(prepared.asked.workers, device)
        found = calibration(specification, device, threads, tell)
    except VisweepError:  # one column of several
        return lambda *_: "—"
    images = Images(len(prepared.dataset.train), len(prepared.dataset.val))
    return lambda model, train: text.memory(estimate(model, train, images, found).process_memory)


def _seconds(model: ModelConfig, train: TrainConfig, data: ResidentData) -> float | None:
    """Of one epoch; None where it does not fit in memory, for which a search would prune it."""
    try:
        return seconds_per_epoch(model, train, data)
    except OutOfMemory:
        return None


def _durations(seconds: float | None, epochs: int) -> tuple[str, str]:
    """Of one epoch, and of all."""
    if seconds is None:
        return "—", "does not fit in memory"
    return text.duration(seconds), text.duration(seconds * epochs)


def _lines(specification: Specification) -> Iterator[str]:
    """The specification, one part a line."""
    yield "space"
    for name, distribution in specification.space.items():
        yield f"  {name:<12} {_values(distribution)}"
    for part, settings in specification.identity().items():
        if part in _TOLD_APART:
            continue
        if not isinstance(settings, Mapping):
            yield f"{part:<10} {settings}"
            continue
        told = completed(settings).items()
        given = {n: v for n, v in told if v is not None and n not in _UNTOLD}
        yield f"{part:<10} {text.parameters(given)}"


def _images(dataset: Dataset) -> str:
    size, channels = dataset.train.images.shape[-1], dataset.train.images.shape[1]
    return (
        f"images     {len(dataset.train):,} for training and {len(dataset.val):,} for validation, "
        f"{size}×{size} pixels, {text.plural(channels, 'channel')}, "
        f"{len(dataset.classes)} classes, fingerprint {dataset.fingerprint[:12]}"
    )


def _values(distribution: BaseDistribution) -> str:
    """`4, 8 or 16`, `0 to 0.3`, `0.001 to 0.1 (logarithmic)`, `2 to 6 in steps of 2`."""
    if isinstance(distribution, CategoricalDistribution):
        *others, last = (text.value(choice) for choice in distribution.choices)
        return f"{', '.join(others)} or {last}" if others else last
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return str(distribution)
    span = f"{text.value(distribution.low)} to {text.value(distribution.high)}"
    if distribution.log:
        return f"{span} (logarithmic)"
    step = distribution.step
    return span if step in (None, 1) else f"{span} in steps of {text.value(step)}"
