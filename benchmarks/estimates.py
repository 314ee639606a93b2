"""How far is the estimate of a configuration from what it takes?

    python benchmarks/estimates.py --device cpu --threads 1

Probes the device as `--dry-run` does, draws random configurations of the spaces that are shipped,
estimates each, then measures it in some processes like those of workers, one after the other:

- seconds of an epoch: so many times a step and an evaluation, the median of three bursts of which
  each gives its fastest, and of the processes the median;
- memory: the most that the process held in a real run of a few steps, with its evaluation and
  checkpoint, as trials record it and `--dry-run` tells it; and what of it came on top of what the
  process held before. In each process the median of three runs, which take place after all others
  had a turn, and of the processes the median. It trained the same once before, since what is
  compiled for new shapes stays in the process (up to 40 MiB on the CPU) and belongs to no trial.
  How tensors fit depends on what lies in the heap, and that on what was trained before: the range
  of the processes is told, too.

Both are measured in turns over all configurations, in other orders in each process. Prints a
table in Markdown, then the median and the worst error. How many are within the bar is told twice
for memory: of 10 %, and of 10 % or 1 MiB, since the allocator alone makes such a difference. Run
it on a machine that does nothing else: other work slows the probe and the measurement at different
moments, even where CPU time is what is measured, since the caches are shared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import optuna
import torch
from measuring import environment, print_table

sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))

import convnet_search
import vit_search

from visweep import text
from visweep.config import ConvNetConfig, DataConfig, ModelConfig, TrainConfig, with_parameters
from visweep.search.probing import calibrated, design
from visweep.search.processes import context_with_torch
from visweep.search.recipe import Recipe
from visweep.storage.specification import Specification
from visweep.training.amounts import EVALUATED
from visweep.training.device import resolve_precision
from visweep.training.estimate import Calibration, Estimate, Images, estimate, images_memory
from visweep.training.probe import LITTLE, Measured, measure, synthetic

Configuration = tuple[ModelConfig, TrainConfig]

RECIPES = {"vit": vit_search.SEARCH, "convnet": convnet_search.SEARCH}


@dataclass(frozen=True)
class Row:
    """A configuration, what it was estimated to take, and what it took.

    Attributes:
        process: memory of the whole process.
        memory: what came on top of what it held before.
        spread: the least and the most of that that a process found.
    """

    shown: str
    seconds: tuple[float, float]
    process: tuple[float, float]
    memory: tuple[float, float]
    spread: tuple[float, float]

    def cells(self) -> tuple[str, ...]:
        return (
            self.shown,
            *(f"{value:.3g}" for value in self.seconds),
            f"{100 * error(self.seconds):+.0f} %",
            *(text.memory(value) for value in self.process),
            f"{100 * error(self.process):+.0f} %",
            *(text.memory(value) for value in self.memory),
            "–".join(text.memory(value) for value in self.spread),
            f"{100 * error(self.memory):+.0f} %",
        )


def error(pair: tuple[float, float]) -> float:
    """Of the estimate, relative to what was measured."""
    estimated, measured = pair
    return estimated / measured - 1


def is_near(memory: tuple[float, float]) -> bool:
    """Whether the estimate is within a tenth, or what the allocator may do."""
    estimated, measured = memory
    return abs(estimated - measured) <= max(0.1 * measured, LITTLE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--points", type=int, default=10, help="of each model")
    parser.add_argument("--space", default="small", choices=["small", "report"])
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--seeds", type=int, default=1, help="replicas of each configuration")
    parser.add_argument("--processes", type=int, default=5, help="that measure one by one")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--train-images", type=int, default=54_000)
    parser.add_argument("--val-images", type=int, default=6_000)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    device = torch.device(options.device)
    images = Images(options.train_images, options.val_images)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{environment()}; {name}, {text.plural(options.threads, 'thread')}")
    rows: list[Row] = []
    for kind, recipe in RECIPES.items():
        specification = specified(recipe, options, device)
        calibration = calibrated(design(specification), options.device, options.threads)
        drawn = points(specification, options.points, options.seed)
        took = [
            _measured_apart(drawn, options.device, options.threads, seed)
            for seed in range(options.processes)
        ]
        rows += compared(kind, drawn, took, images, calibration)
    headings = ("configuration", "s per epoch, estimated", "measured", "error")
    of_process = ("memory, estimated", "measured", "error")
    of_trial = ("of it the trial's, estimated", "measured", "least and most", "error")
    print_table([*headings, *of_process, *of_trial], [r.cells() for r in rows])
    print_errors("seconds per epoch", [error(row.seconds) for row in rows], 0.2)
    print_errors("memory", [error(row.process) for row in rows], 0.1)
    print_errors("of it the trial's", [error(row.memory) for row in rows], 0.1)
    near = sum(is_near(row.memory) for row in rows)
    print(f"the trial's: {near} of {len(rows)} within 10 % or {text.memory(LITTLE)}")


def specified(recipe: Recipe, options: argparse.Namespace, device: torch.device) -> Specification:
    """The search of which configurations are drawn; on images of Fashion-MNIST's shape."""
    train = recipe.train.replace(
        batch_size=options.batch_size,
        seeds=tuple(range(options.seeds)),
        precision=resolve_precision("auto", device),
    )
    return Specification(
        space=recipe.spaces[options.space](32),
        data=DataConfig(),
        fingerprint="",
        model=recipe.baseline.replace(image_size=32, in_chans=1, num_classes=10),
        train=train,
        sampler="random",
        pruner="none",
        seed=0,
    )


def points(
    specification: Specification, count: int, seed: int
) -> list[tuple[ModelConfig, TrainConfig]]:
    """Random configurations of a space."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    asked = (study.ask(dict(specification.space)).params for _ in range(count))
    return [with_parameters(specification.model, specification.train, point) for point in asked]


def _measured_apart(
    drawn: Sequence[Configuration], device: str, threads: int, seed: int
) -> list[Measured | None]:
    """What they take in a process like those of workers."""
    context = context_with_torch()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(drawn, device, threads, seed, theirs))
    process.start()
    theirs.close()
    took: list[Measured | None] = ours.recv()
    process.join()
    return took


def _measure(
    drawn: Sequence[Configuration], device: str, threads: int, seed: int, pipe: Connection
) -> None:
    torch.set_num_threads(threads)
    pipe.send(measure(drawn, synthetic(*drawn[0], torch.device(device)), seed))


def compared(
    kind: str,
    drawn: Sequence[Configuration],
    measured: Sequence[Sequence[Measured | None]],
    images: Images,
    calibration: Calibration,
) -> Iterator[Row]:
    """One row a configuration that fits in memory.

    Args:
        measured: by process, then by configuration.
    """
    for (model, train), found in zip(drawn, zip(*measured, strict=True), strict=True):
        fitted = [one for one in found if one is not None]
        if len(fitted) < len(found):
            print(f"{described(model)}: does not fit in memory", file=sys.stderr)
            continue
        estimated = estimate(model, train, images, calibration)
        memory = [one.memory for one in fitted]
        whole = [one.held + one.memory for one in fitted]
        took = median(seconds(one, train, images, calibration.device) for one in fitted)
        yield Row(
            f"{kind} {described(model)}",
            (estimated.seconds_per_epoch, took),
            (_without_images(estimated, model, train, images), median(whole)),
            (estimated.peak_memory, median(memory)),
            (min(memory), max(memory)),
        )


def _without_images(
    estimated: Estimate, model: ModelConfig, train: TrainConfig, images: Images
) -> float:
    """Of the whole process, whose few images here are not those of the epochs."""
    return estimated.process_memory - images_memory(model, train, images)


def seconds(measured: Measured, train: TrainConfig, images: Images, device: str) -> float:
    """Of an epoch, from those of a step and of the evaluation of a few images."""
    evaluations = images.val / EVALUATED[device]
    return images.train // train.batch_size * measured.step + evaluations * measured.evaluation


def described(model: ModelConfig) -> str:
    if isinstance(model, ConvNetConfig):
        return f"{model.widths} wide, {model.depths} deep, {model.block}"
    dropped = f"drop {model.drop:.2f}, attn_drop {model.attn_drop:.2f}"
    return (
        f"{model.embed_dim} wide, {model.depth} deep, patch {model.patch_size}, "
        f"{model.num_heads} heads, {dropped}"
    )


def print_errors(what: str, errors: Sequence[float], bar: float) -> None:
    sizes = [abs(e) for e in errors]
    within = sum(size <= bar for size in sizes)
    print(
        f"{what}: median error {100 * median(sizes):.1f} %, worst {100 * max(sizes):.1f} %, "
        f"{within} of {len(sizes)} within {100 * bar:.0f} %"
    )


if __name__ == "__main__":
    main()
