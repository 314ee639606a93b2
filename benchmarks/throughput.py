"""How fast is visweep against what one writes today (conventional.py)? In turns, in one run.

    python benchmarks/throughput.py configs                   images/s of each configuration
    python benchmarks/throughput.py sweep --trials 16         trials per hour of a search
    python benchmarks/throughput.py seeds --replicas 4        what K seeds in one pass cost
    python benchmarks/throughput.py lanes --device cuda       what several runs at once give
    python benchmarks/throughput.py accuracy --runs 12        whether both learn equally well
    python benchmarks/throughput.py precision --runs 12       and bfloat16 as well as float32
    python benchmarks/throughput.py sweep --space report --dataset cifar-shaped --device cuda

All read Fashion-MNIST from --data-dir, or images of CIFAR-10's shape that are generated
(generated_images.py). Both sides see the same images, and train as sweeps do
(conventional.TRAIN). Every measurement is made in new processes that have imported torch before
the clock starts; sides take turns, A B A B. Images per second are those of training: a run warms
up for one epoch of a few steps, then is timed over such epochs for --seconds; processes that run
at once are timed at once. What stands in brackets is the lowest and the highest of the turns;
ratios are taken turn by turn.

The peak is that of a matrix product in as many processes, measured in the same turns, in bfloat16
where the device has instructions for it, as visweep then trains in it, else in float32; the
share of it counts what the model needs (three times the multiply-adds of its forward pass, two
operations each) and nothing that a kernel may do beside that.

It prints its tables and appends them, row by row as they are measured, to RESULTS.md, or to what
--append names; --append "" only prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev

import conventional
import torch
from conventional import TRAIN, Machine, fixed_points
from generated_images import COUNT
from lanes import pool, together
from record import RESULTS, Record
from scipy.stats import ttest_ind
from sides import MODELS, Bench, Case, Sweep, our_accuracy, our_sweep, their_accuracy
from torchvision_images import KINDS, opened
from vit_search import SEARCH

from visweep.config import ModelConfig
from visweep.search.mps import Mps

MARGIN = 1.0
"""Points of accuracy within which both sides count as equal."""


def configs(bench: Bench, options: argparse.Namespace, record: Record) -> None:
    """Images per second of each configuration, whole machine, one seed."""
    record.table("configuration", "side", "images/s", "ratio", f"of the {bench.precision} peak")
    for name in options.models or list(MODELS)[:4]:
        case = Case(bench, MODELS[name].replace(**bench.fields))
        one = Machine(device=bench.device, loaders=case.loaders())
        several = Machine(device=bench.device, threads=bench.threads)
        each = f"{bench.workers} × {bench.threads} thread"
        sides = {
            f"conventional, 1 process, {one.loaders} loaders": partial(case.conventional, one, 1),
            f"conventional, {each}": partial(case.conventional, several, bench.workers),
            f"visweep, {each}": case.ours,
            "peak": case.peak,
        }
        found = bench.in_turns(sides)
        peaks = found.pop("peak")
        peak = median(peaks)
        for side, rates in found.items():
            share = f"{100 * median(rates) * case.operations / peak:.1f} %"
            record.row(name, side, _spread(rates, ",.0f"), _ratios(rates, found), share)
        gigaflops = _spread([each / 1e9 for each in peaks], ",.0f")
        record.row(name, "the peak itself", f"{gigaflops} GFLOP/s", "", "100 %")


def seeds(bench: Bench, options: argparse.Namespace, record: Record) -> None:
    """What K replicas in one pass cost, in times of one."""
    count = options.replicas
    rates_of = (f"images/s, {replicas}" for replicas in ("1 seed", f"{count} seeds"))
    record.table("configuration", *rates_of, "cost, in runs")
    for name in options.models or list(MODELS)[:2]:
        case = Case(bench, MODELS[name].replace(**bench.fields))
        sides = {"one": partial(case.ours, 1), "all": partial(case.ours, count)}
        found = bench.in_turns(sides)
        costs = [count * one / all_ for one, all_ in zip(found["one"], found["all"], strict=True)]
        rates = [_spread(found[side], ",.0f") for side in sides]
        record.row(name, *rates, _spread(costs, ".2f"))


def lanes(bench: Bench, options: argparse.Namespace, record: Record) -> None:
    """Runs at once, each in a pass of its own: as lanes of one process, and as processes, which
    CUDA MPS serves where it can be started."""
    record.table("configuration", "runs at once", "images/s of all", "ratio")
    with Mps(bench.device, print) as mps:
        for name in options.models or list(MODELS)[1:2]:
            case = Case(bench, MODELS[name].replace(**bench.fields))
            sides: dict[str, Callable[[], float]] = {}
            for count in options.counts:
                sides[f"{count} in one process"] = partial(case.lanes, count)
                sides[f"{count} processes"] = partial(case.processes, count, mps)
            found = bench.in_turns(sides)
            for side, rates in found.items():
                record.row(name, side, _spread(rates, ",.0f"), _ratios(rates, found))


def sweep(bench: Bench, options: argparse.Namespace, record: Record) -> None:
    """Trials per hour of a search of fixed trials, from its call to its end."""
    points = fixed_points(options.trials, options.space)
    train = TRAIN.replace(epochs=options.epochs)
    images = bench.images(options.train_size)
    few = Case(bench, SEARCH.baseline.replace(**bench.fields))
    machine = Machine(device=bench.device, loaders=few.loaders())
    workers = None if options.auto else bench.workers
    ours = Sweep(points, options.space, options.epochs, options.train_size, workers, options.pack)
    packed = f" of {options.pack} trials" if options.pack > 1 else ""
    sides: dict[str, Callable[[], tuple[float, list[float]]]] = {
        f"conventional, 1 process, {machine.loaders} loaders": lambda: together(
            1, conventional.sweep, points, train, images, machine, options.space
        )[0],
        f"visweep, {workers or 'automatic'} workers{packed}": partial(our_sweep, bench, ours),
    }
    per_hour: dict[str, list[float]] = {side: [] for side in sides}
    record.table("turn", "side", "seconds", "trials per hour", "mean final accuracy")
    for turn, side, (seconds, accuracies) in bench.turns(sides):
        per_hour[side].append(3600 * len(points) / seconds)
        cells = f"{seconds:.1f}", f"{per_hour[side][-1]:.1f}", f"{100 * fmean(accuracies):.2f} %"
        record.row(turn, side, *cells)
    record.table("side", "trials per hour", "ratio")
    for side, rates in per_hour.items():
        record.row(side, _spread(rates, ".1f"), _ratios(rates, per_hour))


def accuracy(bench: Bench, options: argparse.Namespace, record: Record) -> None:
    """Final accuracy of both sides over seeds, with the interval of the difference (Welch)."""
    train = TRAIN.replace(epochs=options.epochs)
    images = bench.images(options.train_size)
    machine = Machine(device=bench.device, threads=bench.threads)

    def begin(side: str, model: ModelConfig, seed: int) -> Future[float]:
        own = model, train.replace(seeds=(seed,))
        if side == "conventional":
            return processes.submit(their_accuracy, *own, images, machine)
        return processes.submit(our_accuracy, *own, bench, options.train_size)

    with pool(bench.workers) as processes:
        _over_seeds(bench, options, ("visweep", "conventional"), begin, record)


def precision(bench: Bench, options: argparse.Namespace, record: Record) -> None:
    """Final accuracy in bfloat16 and in float32 over seeds, with the interval of the difference
    (Welch)."""
    train = TRAIN.replace(epochs=options.epochs)

    def begin(side: str, model: ModelConfig, seed: int) -> Future[float]:
        own = train.replace(seeds=(seed,), precision=side)
        return processes.submit(our_accuracy, model, own, bench, options.train_size)

    with pool(bench.workers) as processes:
        _over_seeds(bench, options, ("bfloat16", "float32"), begin, record)


def _over_seeds(
    bench: Bench,
    options: argparse.Namespace,
    sides: tuple[str, str],
    begin: Callable[[str, ModelConfig, int], Future[float]],
    record: Record,
) -> None:
    """The accuracies that two sides come to, which are begun seed by seed in turns."""
    equal = f"equal within {MARGIN:g} point"
    record.table("validation accuracy, %", *sides, "difference (95 %)", equal)
    for name in options.models or [next(iter(MODELS)), list(MODELS)[-1]]:
        model = MODELS[name].replace(**bench.fields)
        jobs = [[begin(side, model, seed) for side in sides] for seed in range(options.runs)]
        found = [[100 * job.result() for job in jobs_of_seed] for jobs_of_seed in jobs]
        ours, theirs = ([values[side] for values in found] for side in (0, 1))
        record.row(name, _scatter(ours), _scatter(theirs), *_compared(ours, theirs))


def _compared(ours: Sequence[float], theirs: Sequence[float]) -> tuple[str, str]:
    """The difference of the means with its interval, and whether that lies within the margin."""
    low, high = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    is_equal = low > -MARGIN and high < MARGIN
    difference = f"{fmean(ours) - fmean(theirs):+.2f} ({low:+.2f} to {high:+.2f})"
    return difference, "shown" if is_equal else "not shown"


def _scatter(values: Sequence[float]) -> str:
    return f"{fmean(values):.2f} ± {stdev(values):.2f}"


def _ratios(rates: Sequence[float], found: Mapping[str, Sequence[float]]) -> str:
    """Of these rates to those of the first side, turn by turn."""
    base = next(iter(found.values()))
    return _spread([rate / b for rate, b in zip(rates, base, strict=True)], ".2f")


def _spread(values: Sequence[float], form: str) -> str:
    """Median, lowest and highest."""
    return f"{median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


_MODES: dict[str, Callable[[Bench, argparse.Namespace, Record], None]] = {
    "configs": configs,
    "sweep": sweep,
    "seeds": seeds,
    "lanes": lanes,
    "accuracy": accuracy,
    "precision": precision,
}


def main() -> None:
    options = _parser().parse_args()
    where = "" if options.device == "cpu" else f"; {torch.cuda.get_device_name(options.device)}"
    record = Record(Path(options.append) if options.append else None, where)
    with opened(options.dataset, options.data_dir, options.images) as root:
        bench = Bench(
            dataset=options.dataset,
            root=root,
            data_dir=options.data_dir,
            device=options.device,
            workers=options.workers,
            repetitions=options.repetitions,
            seconds=options.seconds,
            batch_size=options.batch_size,
        )
        _MODES[options.mode](bench, options, record)


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("--dataset", choices=list(KINDS), default="fashion-mnist")
    add(
        "--data-dir",
        type=Path,
        default=Path("/usr/share/datasets/fashion-mnist"),
        help="of Fashion-MNIST",
    )
    add("--images", type=int, default=COUNT, help="that are generated")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--workers", type=int, default=2, help="processes that share the machine")
    add("--repetitions", type=int, default=5)
    add("--seconds", type=float, default=4.0, help="that images are counted for, after a warm-up")
    add("--batch-size", type=int, default=128, help="where only speed is measured")
    add("--append", default=str(RESULTS), metavar="FILE", help="what the tables are added to")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_subparsers(dest="mode", required=True)
    for name, mode in _MODES.items():
        own = modes.add_parser(name, parents=[shared], help=mode.__doc__)
        if name == "sweep":
            own.add_argument("--trials", type=int, default=16)
            own.add_argument("--space", choices=list(SEARCH.spaces), default="small")
            own.add_argument("--pack", type=int, default=1, help="trials that share a worker")
            own.add_argument("--auto", action="store_true", help="visweep chooses the workers")
        else:
            own.add_argument("--models", nargs="+", choices=list(MODELS))
        if name == "seeds":
            own.add_argument("--replicas", type=int, default=4)
        if name == "lanes":
            own.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
        if name in ("accuracy", "precision"):
            own.add_argument("--runs", type=int, default=12, help="seeds of each side")
        if name in ("sweep", "accuracy", "precision"):
            own.add_argument("--epochs", type=int, default=3)
            own.add_argument("--train-size", type=int, help="default: all training images")
    return parser


if __name__ == "__main__":
    main()
